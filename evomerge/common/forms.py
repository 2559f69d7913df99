"""Arguments that a program gives to a public function, held against the annotations before anything acts on them.

In: a function, and for each argument that is checked an example of how it is written. Out: the function, which refuses
an argument of another form: by its name, with what was given, and with the example. Numbers of numpy are numbers; a
truth value is none, and a text is no list of texts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from functools import cache, wraps
from numbers import Integral, Real
from types import UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from evomerge.common.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")


def checked(**examples: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that has a function refuse arguments of a wrong form.

    Args:
        examples: argument -> how it is written; arguments without an example are not looked at.
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        hints = cache(lambda: get_type_hints(function))  # not before everything is imported that they name

        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs).arguments
            for name, example in examples.items():
                several = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
                for value in given.get(name, ()) if several else [given[name]] if name in given else []:
                    if not has_form(value, hints()[name]):
                        raise ConfigError(
                            f"{name}={value!r:.100} has a form that evomerge cannot use: write {example}."
                        )
            return function(*args, **kwargs)

        return wrapped

    return decorated


def has_form(value: Any, annotation: Any) -> bool:
    """Return whether a value is what an annotation says, elements of mappings and sequences included."""
    kind, parts = get_origin(annotation) or annotation, get_args(annotation)
    if kind in (Union, UnionType):
        return any(has_form(value, part) for part in parts)
    if kind is Any:
        return True
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(
            has_form(name, parts[0]) and has_form(inner, parts[1]) for name, inner in value.items()
        )
    if kind is Sequence:
        ordered = isinstance(value, Collection) and not isinstance(value, str | bytes | Set | Mapping)
        return ordered and all(has_form(inner, parts[0]) for inner in value)
    return isinstance(value, kind)
