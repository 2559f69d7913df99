"""How task vectors lie to each other: norms, cosines, and where their signs disagree.

In: the base and the experts as `Checkpoint`s. Out: for each parameter a `Geometry`, sums that add up: those of a layer
are the sum of its parameters', those of the model the sum of all. Nothing is written and no task vector is held: chunks
of a parameter are read, subtracted in float32 as the merge does, and summed in float64. Signs are also compared among
the elements of largest magnitude alone, as TIES looks at them (Yadav et al. 2023, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evomerge.common.progress import Steps
from evomerge.models.checkpoint import Checkpoint

CHUNK = 1 << 15  # elements of a parameter that are looked at together: a few experts' fit into a processor's cache
BINS = 1 << 15  # of magnitudes: the upper 16 bits of a float32 without its sign


@dataclass(frozen=True, eq=False)
class Signs:
    """Counts of elements by the signs that K task vectors have there. A task vector that is zero there has none.

    Attributes:
        shared: int64 (K, K), elements that both have changed; on the diagonal, those that one has changed.
        opposite: int64 (K, K), those of them with opposite signs.
        several: elements that two or more have changed.
        conflicts: those of them where not all signs agree,
        chance: and how many these would be if every sign were drawn.
    """

    shared: np.ndarray
    opposite: np.ndarray
    several: int
    conflicts: int
    chance: float

    def __add__(self, other: Signs) -> Signs:
        return Signs(
            self.shared + other.shared,
            self.opposite + other.opposite,
            self.several + other.several,
            self.conflicts + other.conflicts,
            self.chance + other.chance,
        )

    @property
    def pairs(self) -> np.ndarray:
        """Share of opposite signs among the elements that both have changed, (K, K); NaN where there are none."""
        return _divided(self.opposite, self.shared)

    @property
    def shares(self) -> tuple[float, float]:
        """Share of elements with a conflict among those that two or more have changed, and the share by chance; NaN
        where there are none.
        """
        return (self.conflicts / self.several, self.chance / self.several) if self.several else (math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class Geometry:
    """What K task vectors are like in some elements of the model.

    Attributes:
        elements: how many.
        gram: inner products of the base and the task vectors, in this order, float64 (1 + K, 1 + K). Rows of an expert
            whose weights are not finite are NaN.
        sums: of the elements of the task vectors, float64 (K,); NaN as above.
        signs: of all elements.
        top: of the elements that `measure` was asked to look at by themselves.
    """

    elements: int
    gram: np.ndarray
    sums: np.ndarray
    signs: Signs
    top: Signs

    def __add__(self, other: Geometry) -> Geometry:
        return Geometry(
            self.elements + other.elements,
            self.gram + other.gram,
            self.sums + other.sums,
            self.signs + other.signs,
            self.top + other.top,
        )

    @property
    def norms(self) -> np.ndarray:
        """‖τ_k‖, (K,)."""
        return np.sqrt(np.diag(self.gram)[1:])

    @property
    def ratios(self) -> np.ndarray:
        """‖τ_k‖ / ‖θ₀‖, (K,); NaN where the base is zero."""
        return _divided(self.norms, np.sqrt(self.gram[0, 0]))

    @property
    def changed(self) -> np.ndarray:
        """Share of elements that each expert has changed, (K,)."""
        return _divided(np.diag(self.signs.shared), np.asarray(self.elements))

    @property
    def cosines(self) -> np.ndarray:
        """Cosines of the task vectors, (K, K), 1 on the diagonal; NaN where one is zero."""
        products = self.gram[1:, 1:]
        cosines = _divided(products, np.outer(self.norms, self.norms))
        np.fill_diagonal(cosines, np.where(np.isfinite(np.diag(cosines)), 1.0, np.nan))
        return cosines.clip(-1, 1)

    @property
    def pearson(self) -> np.ndarray:
        """Correlations of the task vectors over the elements, (K, K): the kinship of Hu et al. (2024, arXiv 2410.12613,
        section 3), with its sign; NaN where one is constant.
        """
        covariance = self.gram[1:, 1:] - _divided(np.outer(self.sums, self.sums), np.asarray(self.elements))
        spread = np.sqrt(np.diag(covariance).clip(min=0))
        return _divided(covariance, np.outer(spread, spread)).clip(-1, 1)

    @property
    def distances(self) -> np.ndarray:
        """‖τ_j - τ_k‖, (K, K)."""
        squares = self.norms**2
        return np.sqrt((squares[:, None] + squares - 2 * self.gram[1:, 1:]).clip(min=0))


def measure(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    parameters: Mapping[str, tuple[int, ...]],
    density: float = 0.2,
    progress: Steps | None = None,
) -> dict[str, Geometry]:
    """Read all weights twice, once for the magnitudes and once for everything else.

    Args:
        base: θ₀, which holds every parameter.
        experts: θ_k, K of them, in the order of all results. Where one lacks a parameter, its task vector is zero.
        parameters: name -> shape of the live model.
        density: the share of its elements, of largest magnitude, that `top` sees of each task vector (as closely as
            magnitudes can be told apart in bfloat16).
        progress: told what is done, in elements.

    Returns:
        The geometry of each parameter, in their order.
    """
    total = sum(math.prod(shape) for shape in parameters.values())
    counts, done = torch.zeros(len(experts), BINS, dtype=torch.int64), 0
    for _, chunk in _chunks(base, experts, parameters):
        for row, deltas in zip(counts, chunk[1:], strict=True):
            row += torch.bincount(deltas.abs().view(torch.int32) >> 16, minlength=BINS)
        done += chunk.shape[1]
        if progress:
            progress("reading task vectors", done, 2 * total)
    cutoffs = torch.stack([_cutoff(row, density * total) for row in counts]) if experts else torch.empty(0)
    found = {name: geometry(torch.zeros(1 + len(experts), 0), cutoffs) for name in parameters}
    for name, chunk in _chunks(base, experts, parameters):
        found[name] += geometry(chunk, cutoffs)
        done += chunk.shape[1]
        if progress:
            progress("reading task vectors", done, 2 * total)
    return found


def geometry(rows: Tensor, cutoffs: Tensor) -> Geometry:
    """The geometry of some elements.

    Args:
        rows: the base and the K task vectors there, float32 (1 + K, n), n at most 2^24.
        cutoffs: the least magnitude that `top` sees of each task vector, float32 (K,).
    """
    wide = rows.double()
    deltas = rows[1:]
    signs = deltas.sign().nan_to_num_(0.0)
    top = signs * (deltas.abs() >= cutoffs[:, None])
    gram = (wide @ wide.T).numpy()
    gram[~np.isfinite(gram)] = np.nan  # infinities of two signs could not be added up
    sums = wide[1:].sum(1).numpy()
    sums[~np.isfinite(sums)] = np.nan
    return Geometry(rows.shape[1], gram, sums, _compare(signs), _compare(top))


def _compare(signs: Tensor) -> Signs:
    """Count, given -1, 0 and 1 in float32 (K, n), which is exact."""
    held = signs.abs()
    shared, balance = (held @ held.T).long(), (signs @ signs.T).long()  # the balance: equal signs less opposite ones
    changed = held.sum(0)
    return Signs(
        shared.numpy(),
        ((shared - balance) // 2).numpy(),
        int((changed >= 2).sum()),
        int((signs.sum(0).abs() < changed).sum()),
        float((1 - torch.exp2(1 - changed)).clamp_(min=0).sum(dtype=torch.float64)),
    )


def _chunks(
    base: Checkpoint, experts: Sequence[Checkpoint], parameters: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter chunk by chunk: the base and the task vectors, float32 (1 + K, n), good until the next."""
    held = torch.empty(1 + len(experts), CHUNK)
    for name in parameters:
        ours = base.tensor(name).reshape(-1)
        theirs = [_reader(expert, name) for expert in experts]
        for start in range(0, len(ours), CHUNK):
            chunk = held[:, : min(CHUNK, len(ours) - start)]
            chunk[0] = ours[start : start + CHUNK]
            for row, read in zip(chunk[1:], theirs, strict=True):
                read(start, chunk[0], row)
            yield name, chunk


def _reader(expert: Checkpoint, name: str) -> Callable[[int, Tensor, Tensor], None]:
    """Return what writes the task vector in some elements of a parameter, given the first, the base there, and where
    to write.
    """
    if (factors := expert.factors.get(name)) is not None:
        return lambda start, base, out: factors.write(start, out)
    if name not in expert.keys:
        return lambda start, base, out: _zero(out)
    tensor = expert.tensor(name).reshape(-1)
    return lambda start, base, out: _subtract(tensor[start : start + len(out)], base, out)


def _zero(out: Tensor) -> None:
    out.zero_()


def _subtract(expert: Tensor, base: Tensor, out: Tensor) -> None:
    out.copy_(expert).sub_(base)


def _cutoff(counts: Tensor, keep: float) -> Tensor:
    """The lower edge of the magnitudes whose number comes nearest to `keep`, float32 ().

    Args:
        counts: elements by the upper half of the bits of their magnitude; zeros are in the first bin.
        keep: how many to keep.
    """
    above = counts.flip(0).cumsum(0)  # elements in the last bins, 1 of them, 2, ...
    bins = 1 + int((above - keep).abs().argmin())
    return torch.tensor((BINS - bins) << 16, dtype=torch.int32).view(torch.float32)


def _divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = np.broadcast_arrays(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)
