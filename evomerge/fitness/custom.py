"""A user's own fitness: any function, or the name of one (`module:function`, `path/to/file.py:function`).

    def score(model, items):                   # items: [Item(id, text, label, image), ...], of one task after the other
        return [a number for each item, higher is better]

    def score(model, tokenizer, items):        # items: {task: [Item, ...]}, all tasks at once
        return {task: [a number for each item, higher is better], ...}

The two are told apart by their parameters. A function that gives more than one number of an item says their names, and
returns the numbers of a task by these names:

    score.metrics = ("score", "length")        # {"score": [...], "length": [...]} in place of each list above

The function is called for every candidate with the live model, whose
weights have just been overwritten; so it must cache nothing that depends on them. The tokenizer is the base's, or its
image processor if it takes images; a base without one serves a function that does not use it. An image is the bytes of
its file: `evomerge.fitness.images.decode_image` opens them.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CellType, ModuleType
from typing import Any, cast

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.common.exits import contained, line_of
from evomerge.common.names import listed
from evomerge.fitness.base import Outcome
from evomerge.fitness.capabilities import Requirements
from evomerge.fitness.items import Item

Function = Callable[..., Any]
Whole = Callable[[Any, Any, Mapping[str, Sequence[Item]]], Mapping[str, Sequence[float]]]
SCORE = ("score",)
"""The metrics of a function that says none."""
FORMS = (
    "def score(model, items): return [a number for each item], which is called for one task after the other, or "
    "def score(model, tokenizer, items): return {task: [a number for each item]}"
)


@dataclass(frozen=True)
class _Prepared:
    processor: Any
    items: dict[str, dict[str, Item]]


class Custom:
    """Fitness by a function of the user's; its one metric is `score`, unless the function says others.

    Args:
        function: the function, or its name: `module:function` or `file.py:function`.

    Raises:
        ConfigError: the function cannot be found, takes other parameters, or says metrics that are no names.
    """

    pure = False  # the function may change between two runs
    requires = Requirements(processor=False)  # a function that needs one is told what is missing when it asks

    def __init__(self, function: str | Function) -> None:
        found = function if callable(function) else load_function(str(function))
        self._name = function if isinstance(function, str) else name_of(found)
        self._function, self._wanted = _whole(found, self._name)
        self._code = _digest_of_file(found) if isinstance(function, str) else _digest_of_source(found)
        self.metrics: tuple[str, ...] = _metrics(found, self._name)

    def identity(self) -> dict[str, Any]:
        """Return the function's name, without the directory that it lies in, a hash of its code, and its metrics."""
        more = {} if self.metrics == SCORE else {"metrics": list(self.metrics)}
        return {"function": Path(self._name).name, "code": self._code, **more}

    def prepare(self, processor: Any, items: Mapping[str, Sequence[Item]]) -> _Prepared:
        """Keep the processor and the items; the rest is the function's."""
        return _Prepared(processor, {task: {item.id: item for item in chosen} for task, chosen in items.items()})

    def __call__(self, model: Any, prepared: _Prepared, ids: Mapping[str, Sequence[str]]) -> Outcome:
        """Call the function, check the shape of its answer, and leave the model in eval mode.

        Raises:
            ConfigError: the answer is not one number for each item, of each metric.
        """
        items = {task: [prepared.items[task][i] for i in chosen] for task, chosen in ids.items()}
        try:
            scores = self._function(model, prepared.processor, items)
        finally:
            model.eval()
        results = {
            task: {metric: self._numbers(scores, task, metric, len(chosen)) for metric in self.metrics}
            for task, chosen in ids.items()
        }
        return Outcome({task: list(chosen) for task, chosen in ids.items()}, results)

    def _numbers(self, scores: Any, task: str, metric: str, n: int) -> np.ndarray:
        several = self.metrics != SCORE
        try:
            own = scores[task][metric] if several else scores[task]
            values = np.array(_widened(own), dtype=np.float64)  # a copy: the function may use its array again
            got = f"an array of shape {values.shape}"
        except (KeyError, IndexError, TypeError, ValueError):
            values, got = None, f"no numbers for it, but {scores!r:.100}"
        if values is None or values.shape != (n,):
            of = f" as {metric}" if several else ""
            wanted = f", in a dictionary by {listed(self.metrics)}" if several else ""
            raise ConfigError(
                f"{self._name} must return one number for each item{of}: for the task {task} it got {n} items and "
                f"returned {got}. Return {self._wanted}{wanted}."
            )
        return values


def _metrics(function: Function, name: str) -> tuple[str, ...]:
    """Return the names of the numbers that a function gives: those that it says, else `score`."""
    said = getattr(function, "metrics", SCORE)
    if not isinstance(said, list | tuple):  # a member of that name that somebody's object has for itself
        return SCORE
    if not said or not all(isinstance(one, str) and one for one in said) or len(set(said)) < len(said):
        raise ConfigError(f"{name}.metrics is {said}: write different names, such as ('score', 'length').")
    return tuple(said)


def _widened(numbers: Any) -> Any:
    """Return numbers in a form that numpy reads: tensors on the CPU, and in float64, since numpy has no bfloat16."""
    from torch import Tensor  # here, where a model has been scored: settings are read without torch

    if isinstance(numbers, list | tuple):
        return [_widened(number) for number in numbers]
    return numbers.detach().cpu().double().numpy() if isinstance(numbers, Tensor) else numbers


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


def name_of(function: Function) -> str:
    """Return what a function is called: its own name, or that of its class."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _whole(function: Function, name: str) -> tuple[Whole, str]:
    """Return a function that takes all tasks at once, whichever of the two forms it has, and what that must return.

    Raises:
        ConfigError: it has neither.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built in
        parameters = ()
    by_place = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    needed = [each.name for each in by_place if each.default is each.empty]
    by_name = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.default is each.empty]
    if len(needed) == 3 and not by_name:
        return function, "{task: [one float for each item, in order]}"
    if len(needed) == 2 and not by_name:

        def whole(model: Any, processor: Any, items: Mapping[str, Sequence[Item]]) -> dict[str, Sequence[float]]:
            return {task: function(model, chosen) for task, chosen in items.items()}

        return whole, "[one float for each item, in order]"
    took = ", ".join(str(each) for each in parameters)
    raise ConfigError(f"{name}({took}) cannot be a fitness, since it takes neither 2 nor 3 arguments: write {FORMS}.")


def _digest_of_file(function: Function) -> str:
    """Return a hash of the file that a function stands in: another text is another fitness."""
    try:
        return hashlib.sha256(Path(inspect.getfile(function)).read_bytes()).hexdigest()
    except (TypeError, OSError):  # built in, or a callable object
        return ""


def _digest_of_source(function: Function) -> str:
    """Return a hash of a function's own lines, without those around it: a script or a notebook changes in between.

    Plain values that belong to it, the arguments of a `functools.partial` and what a closure holds, are part of it.
    What the function calls, and other objects that it takes from around it, are not looked at.
    """
    try:
        text = inspect.getsource(_code_of(function))
    except (TypeError, OSError):  # typed in where Python keeps no text
        text = ""
    values = _values(function)
    if not text and not values:
        return ""
    return hashlib.sha256((text + (repr(values) if values else "")).encode()).hexdigest()


def _values(function: Any) -> list[Any]:
    """Return the plain values that a function carries with it."""
    if isinstance(function, partial):
        own = [*function.args, *sorted(function.keywords.items())]
        return [value for value in own if _is_plain(value)] + _values(function.func)
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _is_filled(cell)]
    return [value for value in cells if _is_plain(value)]


def _is_filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not bound yet
        return False


def _is_plain(value: Any) -> bool:
    """Whether the text of a value says all of it."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool | complex | bytes)


def _code_of(function: Function) -> Any:
    """Return what of a callable has lines of its own: of an object its class, of a `functools.partial` its function."""
    if isinstance(function, partial):
        return _code_of(function.func)
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function)


def _import_file(path: Path) -> ModuleType:
    module = ModuleType(f"evomerge_custom_{path.stem}")  # a name that hides no other module
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for it
    exec(compile(path.read_bytes(), path, "exec"), vars(module))
    return module
