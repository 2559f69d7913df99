"""What a plan is made of: tasks, how their experts are trained, and the kind of suite that they belong to.

A `Kind` says what texts and images do differently: how a content becomes an item, what the base is, what a head is made
of, how an expert is tuned. Everything else is the same for all suites (`build.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from evomerge.fitness.items import Item
from suite_builder.packages import Package
from suite_builder.splits import Row

BATCH = 32  # items a step of an expert


@dataclass(frozen=True)
class Task:
    """A task and how its expert is trained.

    Attributes:
        name: of the task and of its expert.
        package: where its data are.
        read: directory of the package -> rows to draw from, and rows of the source's own test file (None: it has none).
        classes: name in the source -> readable name.
        steps: optimiser steps of the expert.
        lr: highest learning rate of the expert.
    """

    name: str
    package: Package
    read: Callable[[Path], tuple[list[Row], list[Row] | None]]
    classes: dict[str, str]
    steps: int
    lr: float


class Kind(Protocol):
    """What is particular to suites of texts or of images."""

    name: str
    """Of the suite."""
    base: Package
    """What holds the base."""
    settings: dict[str, Any]
    """Those that its items and experts depend on, to be recorded."""
    cache_bytes: float
    """What the packages and what is unpacked of them need on the disk."""

    def item(self, content: Any, label: int) -> Item:
        """Make an item of a content."""
        ...

    def key(self, content: Any) -> str | None:
        """Return what two contents have in common that count as the same; None to leave this one out."""
        ...

    def make_base(self, source: Path, target: Path) -> None:
        """Write the base as a Hugging Face directory.

        Args:
            source: the unpacked package.
            target: an empty directory.
        """
        ...

    def make_head(self, base: Path, task: Task, items: Sequence[Item], file: Path) -> None:
        """Write the frozen head of a task.

        Args:
            base: the directory of the base.
            task: the task.
            items: its train items.
            file: where to.
        """
        ...

    def train(
        self,
        base: Path,
        task: Task,
        items: Sequence[Item],
        head: Path,
        target: Path,
        *,
        seed: int,
        on_step: Callable[[], object],
    ) -> None:
        """Tune the expert of a task against its head and write it.

        Args:
            base: the directory of the base.
            task: the task.
            items: its train items.
            head: the file of its head.
            target: an empty directory.
            seed: of the order of the data.
            on_step: called after each step.
        """
        ...


@dataclass(frozen=True)
class Plan:
    """What to build.

    Attributes:
        kind: of the suite.
        tasks: its tasks.
        sizes: split -> most items (train: of what the others leave).
        room_steps: steps of the gradient search that measures how much there is to find; 0: it is not measured.
        proving: whether a suite in which too little is to be found is an error; else it is only for trying out.
        seed: of splits and experts.
    """

    kind: Kind
    tasks: tuple[Task, ...]
    sizes: dict[str, int]
    room_steps: int = 100
    proving: bool = True
    seed: int = 0
