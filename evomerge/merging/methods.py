"""The methods, one class each: a form, and how coefficients become its numbers.

Elections and masks are made anew for each candidate (`coupling: per_candidate` of mergekit), with density as a second
variable that is searched like the weight. Which elements a density keeps is the same for all devices, threads and
chunks: the largest come from a sort that was made once, and draws are nested in the density.

    linear           Σ_k λ_k τ_k: task arithmetic (Ilharco et al. 2023); of transformed task vectors too, such as TIES'
    ties             trim by magnitude, elect signs, sum those that agree (Yadav et al. 2023)
    dare, dare_ties  drop at random and rescale (Yu et al. 2024); then sum, or elect and sum
    della            drop by chance, small elements more often (Deep et al. 2024); then elect and sum
    breadcrumbs      without the largest and the smallest (Davari and Belilovsky 2024); then sum, or elect and sum
    slerp, nuslerp   along the great circle between two models (Shoemake 1985)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.merging.kernels.form import Form, Numbers
from evomerge.merging.method import Formed
from evomerge.merging.sites import Site, Together
from evomerge.space.variable import Variable
from evomerge.task_vectors.draws import STEP, folded, keys
from evomerge.task_vectors.orders import Order, cuts_over
from evomerge.task_vectors.spans import chunks

WEIGHT = Variable("weight", 0.0, 1.5, 0.4)
DENSITY = Variable("density", 0.0, 1.0, 0.5, share=True)
PLACE = Variable("weight", 0.0, 1.0, 0.5)
"""Where between the base and an expert a candidate lies: 0 and 1 are these."""
ALIGNED = 0.9995
"""The cosine above which SLERP goes along a straight line, as in mergekit."""
SLIGHT = 1e-8
"""A sum of weights, or a norm, below which mergekit divides by 1."""
COLINEAR = 1e-16
"""How little the square of a cosine may be from 1 where NuSLERP goes along a straight line, as in mergekit."""
PIECE = 1 << 14
"""Elements that are added up together; torch takes several threads for more than twice as many."""

Elect = Literal["sum", "count"]
Over = Literal["tensor", "group"]


class Linear(Formed):
    """Task arithmetic: θ = θ₀ + Σ_k λ_k τ_k (Ilharco et al. 2023, section 2).

    In float32, the sum first, then θ₀, as mergekit adds them: on CPUs both merge to the same bits, of up to 255
    experts.
    """

    name = "linear"
    title = "the base plus the weighted sum of the experts' differences to it (task arithmetic)"
    paper = "Ilharco et al. 2023, arXiv 2212.04089"
    mergekit: str | None = "task_arithmetic"
    variables = (WEIGHT,)
    linear = True
    form = Form()

    def numbers(self, together: Together, prepared: Any, coefficients: Mapping[str, np.ndarray]) -> Numbers:
        """Return the weights."""
        return Numbers(_weights(together, coefficients))


class Ties(Formed):
    """Trim, elect, merge (Yadav et al. 2023, section 3), with weights and densities per candidate as mergekit has them.

    Trimming keeps exactly floor(density · n) elements by magnitude (the lower index wins a tie). The weighted, trimmed
    deltas elect the sign of each element, and those that agree are summed.

    Args:
        normalize: divide by the weights that agree; then the overall scale of the weights means nothing.
        elect: by the `sum` of the weighted elements (0 counts as plus), or by the `count` of their signs.
        over: what the density is a share of: each `tensor`, or all elements of a `group` of the space; with
            space=model that is the whole model, as in the paper.
    """

    name = "ties"
    title = "TIES: differences to the base trimmed by magnitude, signs elected, those that agree summed"
    paper = "Yadav et al. 2023, arXiv 2306.01708"
    mergekit: str | None = "ties"
    variables = (WEIGHT, DENSITY)

    def __init__(self, normalize: bool = False, elect: Elect = "sum", over: Over = "tensor") -> None:
        self.normalize, self.elect, self.over = normalize, elect, over
        _check("elect", elect, ("sum", "count"))
        _check("over", over, ("tensor", "group"))
        self.whole = over == "group"
        self.form = Form("largest", _join(elect), divide=normalize)

    def prepare(self, together: Together) -> _Sorted:
        """Sort the magnitudes."""
        return _Sorted(together, self.over)

    def numbers(self, together: Together, prepared: _Sorted, coefficients: Mapping[str, np.ndarray]) -> Numbers:
        """Return weights, and the cuts that the densities ask for."""
        density = coefficients["density"][together.places]
        return Numbers(_weights(together, coefficients), cut=prepared.cuts(density, np.zeros_like(density)))


class Breadcrumbs(Formed):
    """Keep what is neither among the largest nor among the smallest (Davari and Belilovsky 2024, section 3).

    Of each tensor the floor(gamma · n) largest elements are left out, and the floor(density · n) next ones kept; where
    there are not so many, fewer of the largest are left out, as in mergekit. A density of 1 keeps all.

    Args:
        gamma: share of the elements that are left out since they are the largest.
        elect: whether signs are elected as in TIES; None to sum what is kept.
        normalize: divide by the weights, with an election by those that agree.
        over: see `Ties`.
    """

    name = "breadcrumbs"
    title = "Breadcrumbs: differences to the base without their largest and smallest elements, summed"
    paper = "Davari and Belilovsky 2024, arXiv 2312.06795"
    mergekit: str | None = "breadcrumbs"
    variables = (WEIGHT, DENSITY)

    def __init__(
        self, gamma: float = 0.01, elect: Elect | None = None, normalize: bool = False, over: Over = "tensor"
    ) -> None:
        self.gamma, self.elect, self.normalize, self.over = gamma, elect, normalize, over
        _check("elect", elect, ("sum", "count", None))
        _check_share("gamma", gamma)
        _check("over", over, ("tensor", "group"))
        self.whole = over == "group"
        self.form = Form("between", _join(elect), divide=normalize)

    def prepare(self, together: Together) -> _Sorted:
        """Sort the magnitudes."""
        return _Sorted(together, self.over)

    def numbers(self, together: Together, prepared: _Sorted, coefficients: Mapping[str, np.ndarray]) -> Numbers:
        """Return weights, and two cuts."""
        density = coefficients["density"][together.places]
        out = np.where(density < 1, np.minimum(self.gamma, 1), 0)
        return Numbers(
            _weights(together, coefficients),
            divisor=_divisor(together, coefficients),
            cut=prepared.cuts(density, out),
            upper=prepared.cuts(density, out, upper=True),
        )


class Dare(Formed):
    """Drop at random and rescale (Yu et al. 2024), then sum.

    An element is kept where its draw is below the density, and divided by the density, so the expectation of the delta
    stays. Draws depend on the seed, the row, the parameter and the element alone, and masks are nested in the density.

    Args:
        seed: of the draws, which are the same for all candidates.
        rescale: whether what is kept is divided by the density.
        normalize: divide the sum by the weights.
    """

    name = "dare"
    title = "DARE: differences to the base dropped at random and rescaled, summed"
    paper = "Yu et al. 2024, arXiv 2311.03099"
    mergekit: str | None = "dare_linear"
    variables = (WEIGHT, DENSITY)

    def __init__(self, seed: int = 0, rescale: bool = True, normalize: bool = False) -> None:
        self.seed, self.rescale, self.normalize = seed, rescale, normalize
        self.form = Form("drawn", "sum", divide=normalize)

    def prepare(self, together: Together) -> np.ndarray:
        """Return the keys of the draws."""
        return _keys(together, self.seed)

    def numbers(self, together: Together, prepared: np.ndarray, coefficients: Mapping[str, np.ndarray]) -> Numbers:
        """Return weights, densities and keys."""
        return _drawn(self, together, prepared, coefficients)


class DareTies(Formed):
    """Drop at random and rescale as `Dare` does, then elect and sum as `Ties` does, without a trim.

    Args:
        seed: of the draws.
        normalize: divide by the weights that agree.
        rescale: whether what is kept is divided by the density.
        elect: see `Ties`.
    """

    name = "dare_ties"
    title = "DARE with the election of TIES: differences dropped at random and rescaled, signs elected, summed"
    paper = "Yu et al. 2024, arXiv 2311.03099"
    mergekit: str | None = "dare_ties"
    variables = (WEIGHT, DENSITY)

    def __init__(self, seed: int = 0, normalize: bool = False, rescale: bool = True, elect: Elect = "sum") -> None:
        self.seed, self.normalize, self.rescale, self.elect = seed, normalize, rescale, elect
        _check("elect", elect, ("sum", "count"))
        self.form = Form("drawn", _join(elect), divide=normalize)

    def prepare(self, together: Together) -> np.ndarray:
        """Return the keys of the draws."""
        return _keys(together, self.seed)

    def numbers(self, together: Together, prepared: np.ndarray, coefficients: Mapping[str, np.ndarray]) -> Numbers:
        """Return weights, densities and keys."""
        return _drawn(self, together, prepared, coefficients)


class Della(Formed):
    """Drop by chance, small elements more often, then elect and sum (MAGPRUNE; Deep et al. 2024, section 3).

    The chance to be kept grows with the rank of an element by magnitude within its row of the parameter, from density −
    epsilon to density + epsilon; what is kept is divided by its chance. Where that is no chance, epsilon is less: the
    distance of the density to 0 or 1. A density of 1 keeps all as it is.

    Args:
        epsilon: half of what the chances in a row are apart.
        seed: of the draws.
        rescale: whether what is kept is divided by its chance.
        elect: see `Ties`; None to sum what is kept.
        normalize: divide by the weights, with an election by those that agree.
    """

    name = "della"
    title = "DELLA: differences to the base dropped by chance, small ones more often, signs elected, summed"
    paper = "Deep et al. 2024, arXiv 2406.11617"
    mergekit: str | None = "della"
    variables = (WEIGHT, DENSITY)

    def __init__(
        self,
        epsilon: float = 0.15,
        seed: int = 0,
        rescale: bool = True,
        elect: Elect | None = "sum",
        normalize: bool = False,
    ) -> None:
        self.epsilon, self.seed, self.rescale, self.elect, self.normalize = epsilon, seed, rescale, elect, normalize
        _check("elect", elect, ("sum", "count", None))
        _check_share("epsilon", epsilon)
        self.form = Form("ranked", _join(elect), divide=normalize)

    def prepare(self, together: Together) -> tuple[np.ndarray, list[list[Tensor]]]:
        """Return the keys of the draws, and the ranks."""
        return _keys(together, self.seed), together.ranks()

    def ranks(self, prepared: Any) -> Sequence[Sequence[Tensor]]:
        """Return the ranks."""
        return prepared[1]

    def numbers(self, together: Together, prepared: Any, coefficients: Mapping[str, np.ndarray]) -> Numbers:
        """Return weights, the chances of the first rank and what each rank adds, and keys."""
        density = coefficients["density"][together.places]
        apart = np.minimum(self.epsilon, np.minimum(density, 1 - density))
        steps = np.array([[max(site.row_length - 1, 1)] for site in together.sites])
        alone = np.array([[site.row_length == 1] for site in together.sites])
        least, more = np.where(alone, density, density - apart), np.where(alone, 0, 2 * apart / steps)
        chance = np.stack([least, more, np.full_like(density, float(self.rescale))], axis=2).astype(np.float32)
        return Numbers(
            _weights(together, coefficients),
            divisor=_divisor(together, coefficients),
            chance=chance,
            keys=prepared[0],
        )


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


def _weights(together: Together, coefficients: Mapping[str, np.ndarray]) -> np.ndarray:
    return coefficients["weight"][together.places].astype(np.float32)


def _divisor(together: Together, coefficients: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the sum of the weights of all rows by site, those with a zero delta there included; 1 for next to none.

    In float32, as mergekit adds them, since it is a quotient of what may nearly cancel.
    """
    weights = torch.tensor(coefficients["weight"], dtype=torch.float32)
    total = torch.cat([row[:, None].sum(dim=0) for row in weights]).numpy()
    return np.where(np.abs(total) < SLIGHT, np.float32(1), total)[together.places[0][:, 0]]


def _drawn(
    method: Dare | DareTies, together: Together, prepared: np.ndarray, coefficients: Mapping[str, np.ndarray]
) -> Numbers:
    density = coefficients["density"][together.places].astype(np.float32)
    density[density < STEP] = 0  # draws have no smaller steps, and its inverse would be too large
    with np.errstate(divide="ignore"):  # a density of 0 keeps nothing
        scale = np.where((density > 0) & method.rescale, np.float32(1) / density, np.float32(1))
    return Numbers(
        _weights(together, coefficients),
        divisor=_divisor(together, coefficients),
        chance=np.stack([density, scale], axis=2),
        keys=prepared,
    )


def _keys(together: Together, seed: int) -> np.ndarray:
    return np.array(
        [
            [folded(keys(seed, row, site.span.parameter), site.span.start) for row in site.names]
            for site in together.sites
        ],
        dtype=np.uint32,
    )


class _Sorted:
    """The sorted magnitudes of sites, and the cuts that shares of them ask for.

    Args:
        together: the sites.
        over: what shares are of: each site by itself, or all sites of a group.
    """

    def __init__(self, together: Together, over: str) -> None:
        own = {id(site): s for s, site in enumerate(together.sites)}
        self._shared: dict[tuple[int, int], list[tuple[Order, tuple[int, int] | None]]] = {}
        sites = together.sites if over == "tensor" else together.everything
        for s, (site, orders) in enumerate(zip(sites, together.orders(sites), strict=True)):
            for r, (row, order) in enumerate(zip(site.rows, orders, strict=True)):
                place = (own[id(site)], r) if id(site) in own else None
                key = (s, row) if over == "tensor" else (site.group, row)
                self._shared.setdefault(key, []).append((order, place))

    def cuts(self, density: np.ndarray, out: np.ndarray, upper: bool = False) -> np.ndarray:
        """Return cuts, uint32 (S, R, 2).

        Args:
            density: share of the elements that are kept, (S, R).
            out: share of the largest elements that are not, (S, R).
            upper: the cut above which elements are not kept, in place of that above which they are.
        """
        found = np.zeros((*density.shape, 2), dtype=np.uint32)
        for members in self._shared.values():
            orders, places = zip(*members, strict=True)
            if not (ours := [place for place in places if place is not None]):
                continue
            size = sum(len(order) for order in orders)
            rank = _ranks(size, float(density[ours[0]]), float(out[ours[0]]))[upper]
            for cut, place in zip(cuts_over(orders, rank), places, strict=True):
                if place is not None:
                    found[place] = cut.bits, cut.stop
        return found


def _ranks(size: int, density: float, out: float) -> tuple[int, int]:
    """Return after which rank elements are not kept, and from which rank on they are."""
    kept, top = math.floor(density * size + 1e-9), math.floor(out * size + 1e-9)  # 0.29 * 100 is 28.999999999999996
    top = min(top, size - kept)
    return top + kept, top


def _join(elect: Elect | None) -> Any:
    return {"sum": "elect", "count": "count", None: "sum"}[elect]


def _check(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        listed = ", ".join("null" if one is None else str(one) for one in known)
        raise ConfigError(f"method.{name}={value} is not known: write one of {listed}.")


def _check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"method.{name}={value} is no share: write a number from 0, below 1.")
