"""Transforms that weigh what a task vector changed by how much it matters there and beside the others.

In: task vectors. Out: the same, each element or each column times a weight that is found once. Weights go by ranks and
shares, so most of the small changes get little, or nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.task_vectors.cuts import find_cuts
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.base import Transform
from evomerge.transforms.parts import Parts, by_chunks, positive, share

LOOKED_UP = re.compile(r"embed|(^|\.)w[tp]e\.")
"""Matrices of which a token has a row, not a column."""


class Span(NamedTuple):
    """From where to where numbers go, of which the first counts as 0 and the last as 1."""

    low: float
    high: float

    def of(self, values: Tensor) -> Tensor:
        """Return numbers as shares of the way from low to high; where there is no way, whether they reach it."""
        if not self.high > self.low:
            return (values >= self.high).float()
        return (values.clamp(self.low, self.high) - self.low) / (self.high - self.low)


class Pcb(Transform):
    """Balance the competition of parameters (Du et al. 2024: PCB-Merging), over the whole model.

    The size of an element is its place between the smallest and the largest of its task vector. It scores by that,
    exp(K size²), times how far it agrees with all K task vectors, Σ_j tanh(x_k x_j), where x is the size with the sign.
    Elements with the best scores stay, each with its share of the scores of all task vectors. This is the form of the
    authors' evolutionary search, which does not depend on the scale of task vectors.

    Args:
        density: which share of its elements each task vector keeps.
        outliers: which share of the smallest elements, and of the largest, count as the next one does.

    Raises:
        ConfigError: a setting is no share, or nothing is left between outliers.
    """

    name = "pcb"
    title = "PCB: differences to the base weighted by their size and by how far they agree with others"
    paper = "Du et al. 2024, arXiv 2410.02396"

    def __init__(self, density: float = 0.1, outliers: float = 0.01) -> None:
        self.density = share(self.name, "density", density, example=0.1)
        self.outliers = share(self.name, "outliers", outliers, zero=True, example=0.01)
        if self.outliers >= 0.5:
            raise ConfigError(
                f"The transform pcb has outliers={outliers}, which leaves nothing between the smallest and the largest "
                f"elements: write a share below 0.5, such as 0.01."
            )

    def prepare(self, store: TaskVectors, statistics: Any) -> tuple[dict[str, Span], dict[str, Span]]:
        """Return from where to where magnitudes and scores of each row go."""
        total, order = sum(math.prod(shape) for shape in store.parameters.values()), list(store.parameters)
        low, high = int(total * self.outliers), max(int(total * (1 - self.outliers) - 1), 0)
        least = min(int(total * (1 - self.density)), total - 1)
        sizes = {
            row: Span(*(_largest(store.deltas[row], total - place, order) for place in (low, high)))
            for row in store.rows
        }

        def scores(row: str) -> Span:
            above, below = (_Scores(store, row, sizes, sign) for sign in (1, -1))
            best = max((float(found.dense().max()) for found in above.values() if len(found)), default=0.0)
            return Span(_largest(above, total - least, order) or -_largest(below, least + 1, order), best)

        return sizes, {row: scores(row) for row in store.rows}

    def apply(
        self, name: str, deltas: Mapping[str, Tensor], state: tuple[Mapping[str, Span], Mapping[str, Span]]
    ) -> dict[str, Tensor]:
        """Return the weighted rows."""
        sizes, spans = state
        absent = [span for row, span in spans.items() if row not in deltas and span.low < 0]
        rest = sum(float(span.of(torch.zeros(()))) for span in absent)

        def weighed(start: int, parts: Parts) -> Parts:
            weights = {row: spans[row].of(score) for row, score in _scores(parts, sizes, list(parts)).items()}
            divisor = reduce(torch.add, weights.values(), torch.tensor(rest)).clamp(min=1e-12)
            return {
                row: part.sign() * part.abs().clamp(*sizes[row]) * weights[row] / divisor for row, part in parts.items()
            }

        return by_chunks(deltas, list(deltas), weighed)


class Widen(Transform):
    """Weigh the columns of each matrix by how much their length and their direction changed (Yu et al. 2024: WIDEN).

    Of each expert, columns are ranked by both changes. A column that is above the average of its ranks counts in full;
    another one by the softmax of its ranks over experts; the weight of a column is the mean of both. What is no matrix
    is weighed element by element, by magnitude. Embeddings are taken by rows, of which each token has one.

    Args:
        above: how many times the average a rank must be to count in full.
        score: what counts as in full.

    Raises:
        ConfigError: a setting means nothing.
    """

    name = "widen"
    title = "WIDEN: differences to the base weighted by how much lengths and directions of columns changed"
    paper = "Yu et al. 2024, arXiv 2408.03092"

    def __init__(self, above: float = 1.0, score: float = 1.0) -> None:
        self.above = positive(self.name, "above", above, example=1.0)
        self.score = positive(self.name, "score", score, example=1.0)

    def prepare(self, store: TaskVectors, statistics: Any) -> tuple[list[str], dict[str, Tensor]]:
        """Return the rows, and the weights of the columns of each matrix, (K, n)."""
        matrices = [name for name, shape in store.parameters.items() if len(shape) == 2]
        return list(store.rows), {name: self._weights(store, name) for name in matrices}

    def apply(
        self, name: str, deltas: Mapping[str, Tensor], state: tuple[list[str], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the weighted rows."""
        rows, columns = state
        if not deltas:
            return {}
        if name not in columns:
            first = next(iter(deltas.values()))
            sizes = torch.stack([deltas[row].abs() if row in deltas else torch.zeros(first.shape) for row in rows])
            weights = dict(zip(rows, self._scores(sizes), strict=True))
            return {row: delta * weights[row] for row, delta in deltas.items()}
        weights = dict(zip(rows, columns[name], strict=True))
        along = (-1, 1) if LOOKED_UP.search(name) else (1, -1)
        return {row: delta * weights[row].reshape(along) for row, delta in deltas.items()}

    def _weights(self, store: TaskVectors, name: str) -> Tensor:
        base = store.base.tensor(name).float()
        turned = LOOKED_UP.search(name) is not None
        changes = []
        for row in store.rows:
            delta = store.dense(row, name)
            delta = torch.zeros(base.shape) if delta is None else delta
            changes.append(_changes(base.T, delta.T) if turned else _changes(base, delta))
        ranks = torch.stack(changes).argsort(dim=2, stable=True).argsort(dim=2) / max(base.shape[0 if turned else 1], 1)
        return (self._scores(ranks[:, 0]) + self._scores(ranks[:, 1])) / 2

    def _scores(self, found: Tensor) -> Tensor:
        """Return the scores of what was found of each expert, (K, ...)."""
        mean = found.reshape(len(found), -1).mean(dim=1).reshape(-1, *[1] * (found.dim() - 1))
        return torch.where(found > self.above * mean, self.score, torch.softmax(found, dim=0))


def _changes(base: Tensor, delta: Tensor) -> Tensor:
    """Return by how much the length and the direction of each column change, (2, n), from sums that do not cancel.

    Args:
        base: (m, n).
        delta: (m, n).
    """
    model = base + delta
    old, new = (torch.linalg.vector_norm(each, dim=0) for each in (base, model))
    length = (delta * (2 * base + delta)).sum(dim=0).abs() / (old + new).clamp(min=1e-30)
    turn = (model / new.clamp(min=1e-30) - base / old.clamp(min=1e-30)).square().sum(dim=0) / 2
    return torch.stack([length, turn])


def _scores(parts: Parts, sizes: Mapping[str, Span], rows: Iterable[str]) -> dict[str, Tensor]:
    """Return the scores of some elements of rows.

    Args:
        parts: the same elements of all rows that are not zero there.
        sizes: from where to where the magnitudes of all rows go.
        rows: of which scores are wanted.
    """
    size = {row: sizes[row].of(part.abs()) for row, part in parts.items()}
    signed = {row: part.sign() * size[row] for row, part in parts.items()}
    return {
        row: torch.exp(len(sizes) * size[row] ** 2)
        * reduce(torch.add, [torch.tanh(signed[row] * other) for other in signed.values()])
        for row in rows
    }


class _Scores(Mapping[str, DenseDelta]):
    """The scores of a row by parameter, those of one sign, computed when they are asked for."""

    def __init__(self, store: TaskVectors, row: str, sizes: Mapping[str, Span], sign: int) -> None:
        self._store, self._row, self._sizes, self._sign = store, row, sizes, sign

    def __getitem__(self, name: str) -> DenseDelta:
        found = {row: self._store.dense(row, name) for row in self._store.rows}
        deltas = {row: delta for row, delta in found.items() if delta is not None}
        row, sizes = self._row, self._sizes
        made = by_chunks(deltas, [row], lambda start, parts: _scores(parts, sizes, [row]))
        return DenseDelta((self._sign * made[row]).clamp(min=0).reshape(-1))

    def __contains__(self, name: object) -> bool:
        return name in self._store.deltas[self._row]

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.deltas[self._row])

    def __len__(self) -> int:
        return len(self._store.deltas[self._row])


def _largest(deltas: Mapping[str, Delta], rank: int, order: Sequence[str]) -> float:
    """Return the magnitude of an element by its rank, 1 for the largest; 0 where there are fewer."""
    bits = next((cut.bits for cut in find_cuts(deltas, rank, order).values()), 0)
    if bits:
        return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
    count, least = 0, math.inf
    for delta in (deltas[name] for name in order if name in deltas):
        count, least = count + len(delta), min(least, float(delta.dense().abs().min()) if len(delta) else math.inf)
    return least if count == rank else 0.0
