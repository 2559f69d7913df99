"""Methods that keep elements by their magnitude: those in a window of the sorted ones.

Which elements a density keeps is the same for all devices, threads and chunks: they come from a sort that was made
once.

    ties             trim by magnitude, elect signs, sum those that agree (Yadav et al. 2023)
    breadcrumbs      without the largest and the smallest (Davari and Belilovsky 2024); then sum, or elect and sum
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from evomerge.merging.kernels.form import Form, Keep, Numbers
from evomerge.merging.method import Formed
from evomerge.merging.methods.common import DENSITY, WEIGHT, Elect, check, check_share, divisor, join, scaling, weights
from evomerge.merging.sites import Together
from evomerge.task_vectors.cuts import count
from evomerge.task_vectors.orders import Order, cuts_over

Over = Literal["tensor", "group"]


class _Trimmed(Formed):
    """Keeps elements by magnitude; abstract. Its arguments are those of the methods."""

    variables = (WEIGHT, DENSITY)

    def __init__(self, keep: Keep, elect: Elect | None, normalize: bool, over: Over, scale: float) -> None:
        check("over", over, ("tensor", "group"))
        self.elect, self.normalize, self.over, self.scale = elect, normalize, over, scale
        self.whole = over == "group"
        self.form = Form(keep, join(elect), normalize, scaling(scale))

    def prepare(self, together: Together) -> _Sorted:
        """Sort the magnitudes."""
        return _Sorted(together, self.over)


class Ties(_Trimmed):
    """Trim, elect, merge (Yadav et al. 2023, section 3), with weights and densities per candidate as mergekit has them.

    Trimming keeps exactly floor(density · n) elements by magnitude (the lower index wins a tie). The weighted, trimmed
    deltas elect the sign of each element, and those that agree are summed.

    Args:
        normalize: divide by the weights that agree; then the overall scale of the weights means nothing.
        elect: by the `sum` of the weighted elements (0 counts as plus), or by the `count` of their signs.
        over: what the density is a share of: each `tensor`, or all elements of a `group` of the space; with
            space=model that is the whole model, as in the paper.
        scale: what the sum is multiplied by in the end (`lambda` of mergekit).
    """

    name = "ties"
    title = "TIES: differences to the base trimmed by magnitude, signs elected, those that agree summed"
    paper = "Yadav et al. 2023, arXiv 2306.01708"
    mergekit: str | None = "ties"

    def __init__(
        self, normalize: bool = False, elect: Elect = "sum", over: Over = "tensor", scale: float = 1.0
    ) -> None:
        check("elect", elect, ("sum", "count"))
        super().__init__("largest", elect, normalize, over, scale)

    def numbers(self, together: Together, prepared: _Sorted, coefficients: Mapping[str, np.ndarray]) -> Numbers:
        """Return weights, and the cuts that the densities ask for."""
        density = coefficients["density"][together.places]
        return Numbers(weights(together, coefficients), cut=prepared.cuts(density, np.zeros_like(density)))


class Breadcrumbs(_Trimmed):
    """Keep what is neither among the largest nor among the smallest (Davari and Belilovsky 2024, section 3).

    Of each tensor the floor(gamma · n) largest elements are left out, and the floor(density · n) next ones kept; where
    there are not so many, fewer of the largest are left out, as in mergekit. A density of 1 keeps all.

    Args:
        gamma: share of the elements that are left out since they are the largest.
        elect: whether signs are elected as in TIES; None to sum what is kept.
        normalize: divide by the weights, with an election by those that agree.
        over: see `Ties`.
        scale: see `Ties`.
    """

    name = "breadcrumbs"
    title = "Breadcrumbs: differences to the base without their largest and smallest elements, summed"
    paper = "Davari and Belilovsky 2024, arXiv 2312.06795"
    mergekit: str | None = "breadcrumbs"

    def __init__(
        self,
        gamma: float = 0.01,
        elect: Elect | None = None,
        normalize: bool = False,
        over: Over = "tensor",
        scale: float = 1.0,
    ) -> None:
        check("elect", elect, ("sum", "count", None))
        check_share("gamma", gamma)
        super().__init__("between", elect, normalize, over, scale)
        self.gamma = gamma

    def numbers(self, together: Together, prepared: _Sorted, coefficients: Mapping[str, np.ndarray]) -> Numbers:
        """Return weights, and two cuts."""
        density = coefficients["density"][together.places]
        out = np.where(density < 1, np.minimum(self.gamma, 1), 0)
        return Numbers(
            weights(together, coefficients),
            divisor=divisor(together, coefficients),
            cut=prepared.cuts(density, out),
            upper=prepared.cuts(density, out, upper=True),
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
    kept = count(density, size)
    top = min(count(out, size), size - kept)
    return top + kept, top
