"""A user's own fitness: any function named as `module:function` or `path/to/file.py:function`.

    def score(model, tokenizer, items):        # items: {task: [Item(id, text, label), ...]}
        return {task: [a number for each item, higher is better], ...}

It is called for every candidate with the live model, whose weights have just been overwritten; so it must cache nothing that depends on them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import ConfigError
from evomerge.fitness.base import Outcome
from evomerge.items import Item

Function = Callable[[Any, Any, Mapping[str, Sequence[Item]]], Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class _Prepared:
    tokenizer: Any
    items: dict[str, dict[str, Item]]


class Custom:
    """Fitness by a function of the user's; its one metric is `score`.

    Args:
        function: `module:function` or `file.py:function`.

    Raises:
        ConfigError: the function cannot be found.
    """

    metrics = ("score",)

    def __init__(self, function: str) -> None:
        self._name = function
        self._function: Function = load_function(function)

    def prepare(self, tokenizer: Any, items: Mapping[str, Sequence[Item]]) -> _Prepared:
        """Keep the tokenizer and the items; the rest is the function's."""
        return _Prepared(tokenizer, {task: {item.id: item for item in chosen} for task, chosen in items.items()})

    def __call__(self, model: Any, prepared: _Prepared, ids: Mapping[str, Sequence[str]]) -> Outcome:
        """Call the function and check the shape of its answer."""
        items = {task: [prepared.items[task][i] for i in chosen] for task, chosen in ids.items()}
        scores = self._function(model, prepared.tokenizer, items)
        results = {}
        for task, chosen in items.items():
            values = np.asarray(scores[task] if task in scores else [], dtype=np.float64)
            if values.shape != (len(chosen),):
                raise ConfigError(
                    f"{self._name} must return one number for each item: for the task {task} it got {len(chosen)} items and returned "
                    f"an array of shape {values.shape}. Return {{task: [one float for each item, in order]}}."
                )
            results[task] = {"score": values}
        return Outcome({task: list(chosen) for task, chosen in ids.items()}, results)


def load_function(name: str) -> Function:
    """Import the function that `module:function` or `file.py:function` names.

    Raises:
        ConfigError: the name has another form, or nothing callable is there.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute.isidentifier():
        raise ConfigError(f"'{name}' names no function: write module:function or path/to/file.py:function.")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            if spec is None or spec.loader is None:
                raise ImportError(place)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except (ImportError, FileNotFoundError) as error:
        raise ConfigError(
            f"'{place}' cannot be imported ({error}). Give a file (path/to/file.py:{attribute}), or a module that Python finds from here."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        public = ", ".join(sorted(key for key in vars(module) if not key.startswith("_"))) or "nothing"
        raise ConfigError(f"{place} has no function {attribute}; it has {public}.")
    return function
