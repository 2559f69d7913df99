"""A user's own fitness: any function named as `module:function` or `path/to/file.py:function`.

    def score(model, processor, items):        # items: {task: [Item(id, text, label, image), ...]}
        return {task: [a number for each item, higher is better], ...}

It is called for every candidate with the live model, whose weights have just been overwritten; so it must cache nothing
that depends on them. The processor is the base's tokenizer, or its image processor if it takes images; a base without
one serves a function that does not use it. An image is the bytes of its file:
`evomerge.fitness.images.decode_image` opens them.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.common.exits import contained, line_of
from evomerge.fitness.base import Outcome
from evomerge.fitness.items import Item

Function = Callable[[Any, Any, Mapping[str, Sequence[Item]]], Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class _Prepared:
    processor: Any
    items: dict[str, dict[str, Item]]


class Custom:
    """Fitness by a function of the user's; its one metric is `score`.

    Args:
        function: `module:function` or `file.py:function`.

    Raises:
        ConfigError: the function cannot be found.
    """

    metrics = ("score",)
    pure = False  # the function may change between two runs
    needs_processor = False  # a function may do without; one that does not is told what is missing when it asks

    def __init__(self, function: str) -> None:
        self._name = function
        self._function: Function = load_function(function)
        self.digest = _digest(self._function)

    def prepare(self, processor: Any, items: Mapping[str, Sequence[Item]]) -> _Prepared:
        """Keep the processor and the items; the rest is the function's."""
        return _Prepared(processor, {task: {item.id: item for item in chosen} for task, chosen in items.items()})

    def __call__(self, model: Any, prepared: _Prepared, ids: Mapping[str, Sequence[str]]) -> Outcome:
        """Call the function, check the shape of its answer, and leave the model in eval mode.

        Raises:
            ConfigError: the answer is not one number for each item.
        """
        items = {task: [prepared.items[task][i] for i in chosen] for task, chosen in ids.items()}
        try:
            scores = self._function(model, prepared.processor, items)
        finally:
            model.eval()
        results = {task: {"score": self._numbers(scores, task, len(chosen))} for task, chosen in ids.items()}
        return Outcome({task: list(chosen) for task, chosen in ids.items()}, results)

    def _numbers(self, scores: Any, task: str, n: int) -> np.ndarray:
        try:
            values = np.array(scores[task], dtype=np.float64)  # a copy: the function may use its array again
            got = f"an array of shape {values.shape}"
        except (KeyError, IndexError, TypeError, ValueError):
            values, got = None, f"no numbers for it, but {scores!r:.100}"
        if values is None or values.shape != (n,):
            raise ConfigError(
                f"{self._name} must return one number for each item: for the task {task} it got {n} items and returned "
                f"{got}. Return {{task: [one float for each item, in order]}}."
            )
        return values


def load_function(name: str) -> Function:
    """Import the function that `module:function` or `file.py:function` names.

    Raises:
        ConfigError: the name has another form, the code cannot be imported, or nothing callable is there.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute.isidentifier():
        raise ConfigError(f"'{name}' names no function: write module:function or path/to/file.py:function.")
    try:
        module = contained(
            lambda: _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        )
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(
            f"'{place}' cannot be imported ({type(error).__name__}{line_of(error)}: {error}). Give a file that runs by "
            f"itself (path/to/file.py:{attribute}), or a module that Python finds from here."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        public = ", ".join(sorted(key for key in vars(module) if not key.startswith("_"))) or "nothing"
        raise ConfigError(f"{place} has no function {attribute}; it has {public}.")
    return cast(Function, function)


def _digest(function: Function) -> str:
    """Return a hash of the file that a function stands in: another text is another fitness."""
    try:
        return hashlib.sha256(Path(inspect.getfile(function)).read_bytes()).hexdigest()
    except (TypeError, OSError):  # built in, or a callable object
        return ""


def _import_file(path: Path) -> ModuleType:
    module = ModuleType(f"evomerge_custom_{path.stem}")  # a name that hides no other module
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for it
    exec(compile(path.read_bytes(), path, "exec"), vars(module))
    return module
