"""Methods that go along the great circle between two models, tensor by tensor, as mergekit does (Shoemake 1985).

slerp            from the base to an expert
nuslerp          from one expert to the other
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.kernels.form import Form, Numbers
from evomerge.merging.method import Formed
from evomerge.merging.methods.common import SLIGHT, WEIGHT
from evomerge.merging.sites import Site, Together
from evomerge.space.variable import Variable
from evomerge.task_vectors.spans import chunks

PLACE = Variable("weight", 0.0, 1.0, 0.5)
"""Where between the base and an expert a candidate lies: 0 and 1 are these."""
ALIGNED = 0.9995
"""The cosine above which SLERP goes along a straight line, as in mergekit."""
COLINEAR = 1e-16
"""How little the square of a cosine may be from 1 where NuSLERP goes along a straight line, as in mergekit."""
PIECE = 1 << 14
"""Elements that are added up together; torch takes several threads for more than twice as many."""


class Slerp(Formed):
    """Go along the great circle from the base to the expert (Shoemake 1985), tensor by tensor, as mergekit does.

    Of one expert; its weight is t. Where they point in the same direction (a cosine above .9995 in size), along the
    straight line.
    """

    name = "slerp"
    title = "SLERP: between the base and the expert along the great circle"
    paper = "Shoemake 1985, Animating rotation with quaternion curves"
    mergekit: str | None = "slerp"
    variables = (PLACE,)
    takes = 1
    separable = False
    form = Form(join="blend")

    def prepare(self, together: Together) -> Tensor:
        """Return the cosines between base and expert, float32 (S,)."""
        return torch.tensor([_cosine(site, (None, 0)) for site in together.sites])

    def numbers(self, together: Together, prepared: Tensor, coefficients: Mapping[str, np.ndarray]) -> Numbers:
        """Return what base and expert are multiplied by (Shoemake 1985, section 3.3)."""
        t = torch.tensor(coefficients["weight"][together.places][:, 0], dtype=torch.float32)
        straight = prepared.abs() > ALIGNED
        angle = torch.acos(torch.where(straight, 0, prepared))
        base = torch.where(straight, 1 - t, torch.sin((1 - t) * angle) / torch.sin(angle))
        expert = torch.where(straight, t, torch.sin(t * angle) / torch.sin(angle))
        return Numbers(expert[:, None].numpy(), base=base.numpy())


class NuSlerp(Formed):
    """Go along the great circle from one expert to the other, tensor by tensor, as mergekit's `nuslerp` does.

    Of two experts; t is the second weight's share of both.

    Args:
        deltas: between the differences to the base, in place of the models.
    """

    name = "nuslerp"
    title = "NuSLERP: between two experts along the great circle"
    paper = "Goddard et al. 2024, arXiv 2403.13257"
    mergekit: str | None = "nuslerp"
    variables = (WEIGHT,)
    takes = 2
    separable = False

    def __init__(self, deltas: bool = False) -> None:
        self.deltas = deltas
        self.form = Form(join="sum" if deltas else "blend", divide=True)

    def prepare(self, together: Together) -> Tensor:
        """Return the cosines between the two, float32 (S,)."""
        return torch.tensor([_cosine(site, (0, 1), self.deltas) for site in together.sites])

    def numbers(self, together: Together, prepared: Tensor, coefficients: Mapping[str, np.ndarray]) -> Numbers:
        """Return what the two are multiplied by, and what the sum is divided by."""
        both = coefficients["weight"][together.places[0][:, 0]]
        total = both.sum(axis=1)
        share = np.where(np.abs(total) < 1e-6, 0.5, both[:, 1] / np.where(total == 0, 1, total))
        first, second = (torch.tensor(each, dtype=torch.float32) for each in (1 - share, share))
        straight = 1 - prepared.square() <= COLINEAR
        angle = torch.acos(torch.where(straight, 0, prepared))
        pair = torch.stack(
            [torch.where(straight, each, torch.sin(each * angle)) for each in (first, second)], dim=1
        ).numpy()
        divisor = torch.where(straight, 1, torch.sin(angle)).numpy()
        present = np.zeros(pair.shape, dtype=bool)
        np.put_along_axis(present, together.places[1], True, axis=1)
        return Numbers(
            np.take_along_axis(pair, together.places[1], axis=1),
            base=np.where(present, 0, pair).sum(axis=1).astype(np.float32),
            divisor=divisor,
        )


def _cosine(site: Site, ends: tuple[int | None, int | None], deltas: bool = False) -> Tensor:
    """Return the cosine between two models in float32, with the operations of mergekit 0.1.5 on every piece.

    Pieces are so small that torch adds up each in one thread: the number of threads changes nothing.

    Args:
        site: the span.
        ends: their rows; None for the base. A row without a delta here is the base as well.
        deltas: between their differences to the base.
    """
    held = dict(zip(site.rows, site.deltas, strict=True))

    def pieces() -> Iterator[list[Tensor]]:
        for place in chunks(len(site), PIECE):
            base = site.base[place].float()
            found = []
            for end in ends:
                delta = held.get(end) if end is not None else None
                if delta is None:
                    found.append(torch.zeros_like(base) if deltas else base)
                else:
                    found.append(delta[place].dense() if deltas else delta[place].added(base))
            yield found

    norms = torch.stack([torch.stack([torch.linalg.vector_norm(one) for one in both]) for both in pieces()])
    sizes = torch.linalg.vector_norm(norms, dim=0)
    sizes = torch.where(sizes > SLIGHT, sizes, 1)
    dots = [(one / sizes[0] * (other / sizes[1])).sum() for one, other in pieces()]
    return torch.stack(dots).sum().clamp(-1, 1).cpu()
