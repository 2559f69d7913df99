"""Chains: transforms one after the other, each on all parameters or on those that patterns name.

In: a chain, and task vectors. Out: the names of its rows, its description as plain data, and a `Stage`: one step of it,
prepared, which makes all rows of a parameter at once. Parameters that a step is not for pass through as they are, and
so do their rows, beside those that the step makes; or they are averaged, or stay the base's, as most papers have it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from evomerge.common.code import called
from evomerge.common.errors import ConfigError, MergeError
from evomerge.common.names import nearest
from evomerge.common.progress import Steps
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.base import Transform

RESTS = KEEP, AVERAGE, BASE = ("keep", "average", "base")
"""What becomes of the parameters that a step is not for."""


@dataclass(frozen=True)
class Step:
    """A transform and what it is for.

    Attributes:
        transform: what is done.
        only: names or patterns of the parameters to which it is done; none for all of them.
        rest: what becomes of the others: `keep` leaves their rows as they are, so that a weight of 1 adds all of them
            up; `average` divides by the number of rows, or makes the mean where the transform has rows of its own;
            `base` leaves nothing.
    """

    transform: Transform
    only: tuple[str, ...] = ()
    rest: str = KEEP

    def chosen(self, parameters: Collection[str]) -> tuple[str, ...]:
        """Return the parameters that this step is for, in their order.

        Raises:
            ConfigError: a pattern matches none of them.
        """
        for pattern in self.only:
            if not any(name == pattern or fnmatchcase(name, pattern) for name in parameters):
                near = ", ".join(nearest(pattern, parameters, n=3, cutoff=0.0))
                raise ConfigError(
                    f"The transform {self.transform.name} is for the parameters {pattern!r}, and there are none: "
                    f"correct the pattern in its setting `only`. The nearest are {near}."
                )
        if not self.only:
            return tuple(parameters)
        return tuple(name for name in parameters if any(name == p or fnmatchcase(name, p) for p in self.only))

    def rows(self, before: Sequence[str], parameters: Collection[str]) -> tuple[str, ...]:
        """Return the names of the rows after this step.

        Args:
            before: those before it.
            parameters: names of all parameters.

        Raises:
            ConfigError: there are none, or two of the same name.
        """
        made = list(self.transform.rows(before))
        rows = (
            [*made, *(row for row in before if row not in made)]
            if self.rest == KEEP and len(self.chosen(parameters)) < len(parameters)
            else made
        )
        if not rows or len(set(rows)) < len(rows) or not all(isinstance(row, str) and row for row in rows):
            raise ConfigError(
                f"The transform {self.transform.name} makes the rows {rows}: each needs a name of its own."
            )
        return tuple(rows)

    def mean_row(self, before: Sequence[str]) -> str | None:
        """Return the row that has the mean of what is averaged; None where each row before it has its share."""
        made = list(self.transform.rows(before))
        return next(iter(self.transform.unscaled), None if set(before) <= set(made) else made[0])

    def about(self) -> dict[str, Any]:
        """Return the step as plain data: name, settings, what it is for, and what becomes of the rest."""
        return {
            "name": called(self.transform.name, type(self.transform)),
            **self.transform.settings,
            **({"only": list(self.only)} if self.only else {}),
            **({"rest": self.rest} if self.rest != KEEP else {}),
        }


Chain = Sequence[Step]


def row_names(chain: Chain, experts: Sequence[str], parameters: Collection[str]) -> tuple[str, ...]:
    """Return the names of the rows that a chain makes of experts."""
    rows = tuple(experts)
    for step in chain:
        rows = step.rows(rows, parameters)
    return rows


def said(chain: Chain) -> str:
    """Return the names of the transforms of a chain, in words."""
    texts = [f"{step.transform.name} (of {', '.join(step.only)})" * bool(step.only) for step in chain]
    return " and then ".join(text or step.transform.name for text, step in zip(texts, chain, strict=True))


class Stage:
    """One step of a chain, prepared.

    Args:
        step: what is done.
        vectors: to what.
        progress: told what was looked at before anything is made, in elements; over again where that is done again.

    Attributes:
        rows: the names of the rows that it makes.
    """

    def __init__(self, step: Step, vectors: TaskVectors, progress: Steps | None = None) -> None:
        self._transform, self._vectors = step.transform, vectors
        self._chosen = frozenset(chosen := step.chosen(vectors.parameters))
        self.rows = step.rows(vectors.rows, vectors.parameters)
        self._made = frozenset(step.transform.rows(vectors.rows))
        self._rest, self._mean = step.rest, step.mean_row(vectors.rows)
        given = restricted(vectors, chosen)
        self._state = step.transform.prepare(watched(given, step, progress) if progress else given, None)
        self._last: tuple[str, dict[str, Tensor]] = ("", {})

    def __call__(self, name: str) -> dict[str, Tensor]:
        """Return the rows of a parameter, float32, without those that are zero.

        Raises:
            MergeError: the transform made something else than it says.
        """
        if self._last[0] != name:
            given = {row: self._vectors.dense(row, name) for row in self._vectors.rows}
            deltas = {row: delta for row, delta in given.items() if delta is not None}
            self._last = (name, self._changed(name, deltas) if name in self._chosen else self._others(deltas))
        return self._last[1]

    def _others(self, deltas: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the rows of a parameter that the step is not for."""
        if self._rest == KEEP or not deltas:
            return deltas
        if self._rest == BASE:
            return {}
        number = len(self._vectors.rows)
        if self._mean is None:
            return {row: delta / number for row, delta in deltas.items()}
        mean = sum(deltas.values(), torch.zeros(())) / number
        return {self._mean: mean} if mean.any() else {}

    def _changed(self, name: str, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found, shape = self._transform.apply(name, deltas, self._state), self._vectors.parameters[name]
        for row, delta in found.items():
            if row not in self._made or tuple(delta.shape) != shape or delta.dtype != torch.float32:
                raise MergeError(
                    f"The transform {self._transform.name} made {delta.dtype} {tuple(delta.shape)} of the row {row} of "
                    f"{name}. It must make float32 {shape}, of the rows {', '.join(sorted(self._made))}."
                )
        largest = {
            row: float(torch.linalg.vector_norm(delta, math.inf)) if delta.numel() else 0.0
            for row, delta in found.items()
        }
        if lost := [row for row, size in largest.items() if not size < math.inf]:
            raise MergeError(f"The transform {self._transform.name} made the row {lost[0]} of {name} not finite.")
        return {row: delta for row, delta in found.items() if largest[row] > 0}


def restricted(vectors: TaskVectors, names: Sequence[str]) -> TaskVectors:
    """Return the same rows of some parameters."""
    if len(names) == len(vectors.parameters):
        return vectors
    deltas = {row: _Some(held, [name for name in names if name in held]) for row, held in vectors.deltas.items()}
    return replace(vectors, parameters={name: vectors.parameters[name] for name in names}, deltas=deltas)


def watched(vectors: TaskVectors, step: Step, progress: Steps) -> TaskVectors:
    """Return the same task vectors, which tell what is read of them."""
    total = sum(math.prod(vectors.parameters[name]) for held in vectors.deltas.values() for name in held)
    read = 0

    def tell(name: str) -> None:
        nonlocal read
        read = (read if read < total else 0) + math.prod(vectors.parameters[name])
        progress(f"{step.transform.name} looks at all task vectors", min(read, total), total)

    return replace(vectors, deltas={row: _Watched(held, tell) for row, held in vectors.deltas.items()})


def streamed(vectors: TaskVectors, stage: Stage) -> TaskVectors:
    """Return the rows of a stage, each parameter made anew when it is asked for; nothing is kept but the last one."""
    held: dict[str, list[str]] = {row: [] for row in stage.rows}
    for name in vectors.parameters:
        for row in stage(name):
            held[row].append(name)
    return replace(vectors, deltas={row: _Made(stage, row, names) for row, names in held.items()}, contents={})


class _Some(Mapping[str, Any]):
    """A part of the deltas of a row, none of which is touched before it is asked for."""

    def __init__(self, held: Mapping[str, Any], names: Sequence[str]) -> None:
        self._held, self._names = held, dict.fromkeys(names)

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Watched(_Some):
    """The deltas of a row, which tell when one is asked for."""

    def __init__(self, held: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        super().__init__(held, list(held))
        self._tell = tell

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        self._tell(name)
        return found


class _Made(_Some):
    """The deltas of a row of a stage."""

    def __init__(self, stage: Stage, row: str, names: Sequence[str]) -> None:
        super().__init__({}, names)
        self._stage, self._row = stage, row

    def __getitem__(self, name: str) -> DenseDelta:
        if name not in self._names:
            raise KeyError(name)
        return DenseDelta(self._stage(name)[self._row].reshape(-1))
