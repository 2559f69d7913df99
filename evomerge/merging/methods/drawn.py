"""Methods that keep elements by chance. Draws are nested in the density, and the same on all devices and threads.

dare, dare_ties  drop at random and rescale (Yu et al. 2024); then sum, or elect and sum
della            drop by chance, small elements more often (Deep et al. 2024); then elect and sum
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from evomerge.merging.kernels.form import Form, Numbers
from evomerge.merging.method import Formed
from evomerge.merging.methods.common import DENSITY, WEIGHT, Elect, check, check_share, divisor, join, scaling, weights
from evomerge.merging.sites import Together
from evomerge.task_vectors.draws import STEP, folded, keys


class _Dropped(Formed):
    """Drops at random, and may rescale what is kept; abstract.

    Attributes:
        seed: of the draws.
        rescale: whether what is kept is divided by the density.
    """

    paper = "Yu et al. 2024, arXiv 2311.03099"
    variables = (WEIGHT, DENSITY)
    seed: int
    rescale: bool

    def prepare(self, together: Together) -> np.ndarray:
        """Return the keys of the draws."""
        return _keys(together, self.seed)

    def numbers(self, together: Together, prepared: np.ndarray, coefficients: Mapping[str, np.ndarray]) -> Numbers:
        """Return weights, densities and keys."""
        density = coefficients["density"][together.places].astype(np.float32)
        density[density < STEP] = 0  # draws have no smaller steps, and its inverse would be too large
        with np.errstate(divide="ignore"):  # a density of 0 keeps nothing
            scale = np.where((density > 0) & self.rescale, np.float32(1) / density, np.float32(1))
        return Numbers(
            weights(together, coefficients),
            divisor=divisor(together, coefficients),
            chance=np.stack([density, scale], axis=2),
            keys=prepared,
        )


class Dare(_Dropped):
    """Drop at random and rescale (Yu et al. 2024), then sum.

    An element is kept where its draw is below the density, and divided by the density, so the expectation of the delta
    stays. Draws depend on the seed, the row, the parameter and the element alone, and masks are nested in the density.

    Args:
        seed: of the draws, which are the same for all candidates.
        rescale: whether what is kept is divided by the density.
        normalize: divide the sum by the weights.
        scale: what the sum is multiplied by in the end (`lambda` of mergekit).
    """

    name = "dare"
    title = "DARE: differences to the base dropped at random and rescaled, summed"
    mergekit: str | None = "dare_linear"

    def __init__(self, seed: int = 0, rescale: bool = True, normalize: bool = False, scale: float = 1.0) -> None:
        self.seed, self.rescale, self.normalize, self.scale = seed, rescale, normalize, scale
        self.form = Form("drawn", "sum", normalize, scaling(scale))


class DareTies(_Dropped):
    """Drop at random and rescale as `Dare` does, then elect and sum as `Ties` does, without a trim.

    Args:
        seed: of the draws.
        normalize: divide by the weights that agree.
        rescale: whether what is kept is divided by the density.
        elect: see `Ties`.
        scale: see `Dare`.
    """

    name = "dare_ties"
    title = "DARE with the election of TIES: differences dropped at random and rescaled, signs elected, summed"
    mergekit: str | None = "dare_ties"

    def __init__(
        self,
        seed: int = 0,
        normalize: bool = False,
        rescale: bool = True,
        elect: Elect = "sum",
        scale: float = 1.0,
    ) -> None:
        self.seed, self.normalize, self.rescale, self.elect, self.scale = seed, normalize, rescale, elect, scale
        check("elect", elect, ("sum", "count"))
        self.form = Form("drawn", join(elect), normalize, scaling(scale))


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
        scale: see `Dare`.
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
        scale: float = 1.0,
    ) -> None:
        self.epsilon, self.seed, self.rescale, self.elect, self.normalize = epsilon, seed, rescale, elect, normalize
        self.scale = scale
        check("elect", elect, ("sum", "count", None))
        check_share("epsilon", epsilon)
        self.form = Form("ranked", join(elect), normalize, scaling(scale))

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
            weights(together, coefficients),
            divisor=divisor(together, coefficients),
            chance=chance,
            keys=prepared[0],
        )


def _keys(together: Together, seed: int) -> np.ndarray:
    return np.array(
        [
            [folded(keys(seed, row, site.span.parameter), site.span.start) for row in site.names]
            for site in together.sites
        ],
        dtype=np.uint32,
    )
