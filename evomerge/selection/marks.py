"""Rows of a table that are not the model of their name, since it runs under another configuration here.

In: the sources, and whether tasks are scored with heads. Out: for a row, sentences that stand beside it. Three things
can be otherwise: an expert, or a model directory, runs under the base's configuration, or with tensors of the base in
place of its own; and a task that is scored with its expert's own head runs under the expert's configuration, whichever
model is merged into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from evomerge.common.errors import CheckpointError
from evomerge.common.names import listed
from evomerge.fitness.capabilities import Headed
from evomerge.fitness.items import Item
from evomerge.models.adapter_files import is_adapter
from evomerge.models.configurations import Configuration, compare_configurations, said
from evomerge.problem import Problem, Sources
from evomerge.task_vectors.store import unlike


class Marks:
    """Says of rows what is not as their names say.

    Args:
        sources: base, experts and tasks.
        by_head: whether tasks without a head of their own are scored with their expert's.
        tensors: by expert, with which tensors that are not its own it is scored (`task_vectors.unlike`).
    """

    def __init__(self, sources: Sources, by_head: bool, tensors: Mapping[str, str] | None = None) -> None:
        self._tensors = tensors or {}
        self._sources, self._base = sources, Configuration(sources.base)
        self._own = {
            name: task.expert for name, task in sources.tasks.items() if by_head and task.expert and not task.head
        }
        self._differences = cache(self._compare)

    def of_merge(self) -> list[str]:
        """Say it of a merge, and of the base."""
        return list(self._heads().values())

    def of_experts(self) -> list[str]:
        """Say it of the row that scores each task with its own expert: an own head runs as the expert does."""
        others: dict[str, list[str]] = {}
        for name, task in self._sources.tasks.items():
            if task.expert and name not in self._own:
                others.setdefault(task.expert, []).append(name)
        return [text for expert, tasks in others.items() for text in self._under_base(expert, tasks)]

    def of_expert(self, expert: str) -> list[str]:
        """Say it of an expert on all tasks."""
        tasks = [task for task in self._sources.tasks if self._own.get(task) != expert]
        others = [text for task, text in self._heads().items() if self._own[task] != expert]
        return [*(self._under_base(expert, tasks) if tasks else ()), *others]

    def of_directory(self, path: Path) -> list[str]:
        """Say it of a model directory."""
        text = self._differences(path)
        return [*([f"it is scored under the base's configuration: {text}"] if text else ()), *self.of_merge()]

    def _heads(self) -> dict[str, str]:
        """Say of tasks that are scored with their expert's own head under what configuration that runs."""
        return {
            task: f"task {task} is scored under the configuration of expert {expert}, whose head it has: {text}"
            for task, expert in self._own.items()
            if (text := self._differences(self._sources.experts[expert]))
        }

    def _under_base(self, expert: str, tasks: list[str]) -> list[str]:
        texts = []
        if text := self._differences(self._sources.experts[expert]):
            texts.append(f"expert {expert} is scored under the base's configuration on {listed(tasks)}: {text}")
        if text := self._tensors.get(expert):
            texts.append(f"expert {expert} is scored on {listed(tasks)} with {text}")
        return texts

    def _compare(self, path: Path) -> str:
        """Say in what the forward pass of a directory is another; nothing where it is the base's, as that of an adapter
        is, or where one of the two is in memory.
        """
        if not (path.is_dir() and self._base.path.is_dir()) or is_adapter(path):
            return ""
        try:
            return said(one for one in compare_configurations(self._base, Configuration(path)) if one.forward)
        except CheckpointError as error:
            return f"the two could not be compared ({error})"


def task_notes(sources: Sources, by_head: bool, items: Mapping[str, Mapping[str, Sequence[Item]]]) -> list[str]:
    """Return what should be known of tasks before a search: too few items, and heads that run otherwise than the base.

    Args:
        sources: where tasks come from.
        by_head: whether tasks without a head of their own are scored with their expert's.
        items: split -> task -> items.
    """
    return [*few_items(items), *Marks(sources, by_head).of_merge()]


def marks_of(problem: Problem) -> Marks:
    """Return what says of rows what is not as their names say, with the tensors of experts."""
    vectors = problem.vectors
    tensors = {name: unlike(vectors.base, expert, problem.buffers) for name, expert in vectors.experts.items()}
    return Marks(problem.sources, isinstance(problem.fitness, Headed), tensors)


FEW = 30
"""Fewer items of a task than this make a standard error of nine points and more."""


def few_items(items: Mapping[str, Mapping[str, Sequence[Item]]]) -> list[str]:
    """Return which splits are too small to decide anything.

    Args:
        items: split -> task -> items.
    """
    warnings = []
    for split, tasks in items.items():
        small = [f"{task} ({len(chosen)})" for task, chosen in tasks.items() if len(chosen) < FEW]
        if small:
            warnings.append(f"few {split.replace('_', '-')} items, so scores on them mean little: {', '.join(small)}")
    return warnings
