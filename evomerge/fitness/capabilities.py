"""What a fitness can do beside scoring items: small protocols, each with the one thing that it adds.

In: any fitness. Out: `isinstance` says what it can do; nobody looks for names on it. A fitness of somebody else's has a
capability by having its members, without inheriting anything; `check_whole` refuses one that has only some of them.

    Reads            its items come from elsewhere than files of labelled texts
    Headed           it scores with the heads of the tasks
    Exporting        it scores the model as a directory
    Differentiable   it gives logits, so coefficients can be learned from it
    Probable         it gives probabilities of classes, so what several models say can be averaged
    Batched          its batches can be halved where memory does not suffice
    Checking         it finds with the model at hand that items cannot be scored
    Measuring        one of its metrics is another number for every task
    Offering         it gives further metrics where somebody asks for them, of some tasks or of all
    Requiring        it needs less, or more, than a processor
    Identified       more than its settings decides what it gives
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from evomerge.common.code import code_of
from evomerge.common.errors import ConfigError, SuiteError
from evomerge.common.names import listed
from evomerge.common.protocols import lacking
from evomerge.fitness.base import Fitness, Outcome
from evomerge.fitness.items import Item, Task

if TYPE_CHECKING:  # whoever asks what a fitness can do needs no torch
    from torch import Tensor

    from evomerge.fitness.heads import Head


@dataclass(frozen=True)
class Requirements:
    """What a fitness needs of the base.

    Attributes:
        processor: a tokenizer or an image processor.
        language_head: a language-modelling head.
    """

    processor: bool = True
    language_head: bool = False


@runtime_checkable
class Requiring(Protocol):
    """A fitness that says what it needs of the base; any other needs `Requirements()`."""

    requires: Requirements


@runtime_checkable
class Identified(Protocol):
    """A fitness whose settings do not tell all that its results depend on, or tell more."""

    def identity(self) -> Mapping[str, Any]:
        """Return hashes of code and data by name; and in place of a setting of the same name, what of it decides
        results. Plain data without paths and clocks. Asked after the items are read.
        """
        ...


@runtime_checkable
class Reads(Protocol):
    """A fitness that reads items by itself, since no file of labelled texts holds them.

    Attributes:
        task_settings: what it understands below fitness.tasks.<task>, beside what every task has.
        warnings: what the user should know of the items that were read.
        data_sets: by task, the names of the data sets that its items are of, as far as they are known.
    """

    task_settings: tuple[str, ...]
    warnings: list[str]
    data_sets: dict[str, list[str]]

    def read(
        self, tasks: Mapping[str, Task], further: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, dict[str, list[Item]]]:
        """Return the items of each split by task, of tasks and their further settings."""
        ...


@runtime_checkable
class Headed(Protocol):
    """A fitness that scores with the heads of the tasks."""

    def with_heads(self, heads: Mapping[str, Head]) -> Fitness:
        """Return a fitness of the same settings that scores with these heads, by task."""
        ...


class Writer(Protocol):
    """Writes what is in a live model as a model directory.

    Attributes:
        nbytes: about how many bytes such a directory has.
    """

    nbytes: int

    def prepare(self, directory: Path) -> None:
        """Write the files that are the same for every candidate: config, tokenizer, what else lies beside weights."""
        ...

    def write(self, model: Any, directory: Path) -> None:
        """Write the weights beside them, to the bit those that a merged model would have.

        Raises:
            NotFinite: they are no finite numbers.
        """
        ...


@runtime_checkable
class Exporting(Protocol):
    """A fitness that scores the model as a directory, and so needs somebody who writes it."""

    def with_writer(self, writer: Writer) -> Fitness:
        """Return a fitness of the same settings that has its models written by this one."""
        ...


@dataclass(frozen=True)
class Answers:
    """Class logits (n, C) of some items of a task, their positions among its ids, and their labels (n,) on the CPU."""

    positions: list[int]
    logits: Tensor
    labels: Tensor


@runtime_checkable
class Differentiable(Fitness, Protocol):
    """A fitness that also gives class logits with a graph, and prepares items without labels.

    Attributes:
        same_classes: whether all items of a task have the same classes, so that distributions can be compared.
    """

    same_classes: bool

    def prepare(self, processor: Any, items: Mapping[str, Sequence[Item]], labelled: bool = True) -> Any:
        """Return all that these items need beside the weights."""
        ...

    def logits(self, model: Any, prepared: Any, ids: Mapping[str, Sequence[str]]) -> Iterator[Mapping[str, Answers]]:
        """Yield the logits of each batch by task."""
        ...


@runtime_checkable
class Probable(Protocol):
    """A fitness that says how probable each class of an item is, and scores such probabilities, whoever gave them."""

    def probabilities(self, model: Any, prepared: Any, ids: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
        """Return the probabilities of the classes, float64 (n, C), by task, in the order of the ids."""
        ...

    def of_probabilities(
        self, said: Mapping[str, np.ndarray], prepared: Any, ids: Mapping[str, Sequence[str]]
    ) -> Outcome:
        """Return the results of what was said of the items with these ids."""
        ...


@runtime_checkable
class Batched(Protocol):
    """A fitness that scores items in batches, whose size is read anew for every call and decides no result."""

    batch_size: int


@runtime_checkable
class Checking(Protocol):
    """A fitness that finds only with the model at hand that items cannot be scored."""

    def check(self, model: Any, prepared: Any, ids: Mapping[str, Sequence[str]]) -> None:
        """Make all that scoring these items needs.

        Raises:
            EvomergeError: some of them cannot be scored, on whichever model.
        """
        ...


def check_items(fitness: Fitness, model: Any, prepared: Any, ids: Mapping[str, Sequence[str]], split: str) -> None:
    """Refuse items that cannot be scored, before anything is.

    Args:
        fitness: scores them.
        model: the live model.
        prepared: what the fitness prepared for them.
        ids: all that may be asked for, by task.
        split: what they are of, for the message.

    Raises:
        SuiteError: there are some.
    """
    if isinstance(fitness, Checking):
        try:
            fitness.check(model, prepared, ids)
        except SuiteError as error:
            raise SuiteError(f"Of the {split} items, {error}") from error


@runtime_checkable
class Measuring(Protocol):
    """A fitness one of whose metrics is another number for every task."""

    def measures(self, metric: str) -> dict[str, str]:
        """Return what the numbers of a metric are, by task."""
        ...


def measures(fitness: Fitness, metric: str, tasks: Iterable[str]) -> dict[str, str]:
    """Return what the numbers of a metric are, by task: the metric itself where the fitness says nothing else."""
    told = fitness.measures(metric) if isinstance(fitness, Measuring) else {}
    return {task: told.get(task, metric) for task in tasks}


@runtime_checkable
class Offering(Protocol):
    """A fitness with metrics that it gives only where somebody asks for them; a task may have some that others lack.

    Attributes:
        offers: by task, their names.
    """

    offers: Mapping[str, tuple[str, ...]]

    def offering(self, names: Iterable[str]) -> Fitness:
        """Return a fitness of the same settings and items that gives what it offers under these names."""
        ...


def offered(fitness: Fitness, task: str) -> tuple[str, ...]:
    """Return the metrics that a fitness has of a task where somebody asks for them."""
    return fitness.offers.get(task, ()) if isinstance(fitness, Offering) else ()


def check_whole(fitness: Any) -> None:
    """Refuse what is no fitness, and a fitness with a part of a capability.

    Raises:
        ConfigError: it lacks something; the message names all that it lacks.
    """
    for protocol, mark in ((Fitness, None), (Reads, "read"), (Differentiable, "logits")):
        missing = lacking(fitness, protocol)
        if missing and (mark is None or mark not in missing):
            why = f"It has `{mark}`, so it" if mark else "Whatever scores models"
            raise ConfigError(
                f"The fitness {type(fitness).__name__} lacks {listed(missing)}. {why} must have all that "
                f"{protocol.__name__} has (see {protocol.__module__})."
            )


def requirements(fitness: Fitness) -> Requirements:
    """Return what a fitness needs of the base."""
    return fitness.requires if isinstance(fitness, Requiring) else Requirements()


def identity(fitness: Fitness) -> dict[str, Any]:
    """Return what results of a fitness depend on beside its settings, or in place of some; of one that says nothing,
    and is not ours, that is its code.
    """
    return {"code": code_of(type(fitness)) or "", **(fitness.identity() if isinstance(fitness, Identified) else {})}
