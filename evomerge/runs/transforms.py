"""The setting `transform`: names of transforms with settings of their own, in any form that a person may write.

In: nothing, a name, a list of names and of `{name: settings}`, or a class with its settings (`_target_`). Out: a list
of classes with their settings, in order, which is what a run directory and the identity hold; and the chain that it
stands for. What a name leaves open is taken from `conf/transform/<name>.yaml`.

Hydra composes names by itself (`transform=ties`, `transform=[ties,mine]`): each file has its settings under its own
name, so that those of each can be overridden (`transform.ties.density=0.3`). It knows no list with settings in it; the
command hands that on as `transform={chain: [...]}`, as one may write it in a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from evomerge.common.errors import ConfigError
from evomerge.common.names import unknown
from evomerge.runs.earlier import in_todays_words
from evomerge.runs.other_names import written_here
from evomerge.runs.targets import CONF, choices_of, find_class

if TYPE_CHECKING:  # settings are read without torch
    from evomerge.transforms.chain import Chain

CHAIN = "chain"
NONE = "none"
EXAMPLE = "'transform=[{ties: {density: 0.3, only: [\"*.attention.*\"]}}]'"


def in_order(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, of this version or of an earlier one, in the form that everything else takes.

    Raises:
        ConfigError: the setting `transform` is in no form that is understood.
    """
    if (settings.get("method") or {}).get("transform") and resolved(settings.get("transform")):
        raise ConfigError(
            "The method brings a transform, and transform= names another: write method=linear, and all transforms in "
            "the list, such as transform=[ties]."
        )
    today = in_todays_words(settings)
    return {**today, "transform": resolved(today.get("transform"))}


def resolved(given: Any) -> list[dict[str, Any]]:
    """Return the setting `transform` as a list of classes with their settings.

    Args:
        given: the setting as it was written, as plain containers; what this function returned stays as it is.

    Raises:
        ConfigError: it is in no form that is understood, or names a transform that does not exist.
    """
    return [{name: value for name, value in step.items() if not _unsaid(step, name, value)} for step in _steps(given)]


def _unsaid(step: Mapping[str, Any], name: str, value: Any) -> bool:
    """Return whether a setting is as it was before there was such a setting: then nothing names it."""
    ours = str(step.get("_target_")).startswith("evomerge.")
    return (name, value) in (("only", None), ("rest", "keep")) or (ours and (name, value) == ("svd", "exact"))


def make_chain(settings: Sequence[Mapping[str, Any]]) -> Chain:
    """Return the chain of resolved settings.

    Raises:
        ConfigError: a class cannot be found or is no transform, has no such settings, or needs what is not there.
    """
    from evomerge.recipes.catalog import make_step

    return tuple(
        make_step(_class_of(step), {name: value for name, value in step.items() if name != "_target_"})
        for step in settings
    )


def described(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return resolved settings as the identity has them: with a hash of the code where a class is not ours."""
    from evomerge.common.code import code_of

    return [{**step, **({"code": code} if (code := code_of(_class_of(step))) else {})} for step in settings]


def _steps(given: Any) -> Iterator[dict[str, Any]]:
    if given is None or given == NONE:
        return
    if isinstance(given, str):
        given = {given: {}}
    if isinstance(given, list):
        for one in given:
            yield from _steps(one)
    elif not isinstance(given, Mapping):
        raise ConfigError(f"transform={given} is no transform: write transform=ties, or {EXAMPLE}.")
    elif "_target_" in given:
        yield dict(given)
    elif CHAIN in given:
        if others := [name for name in given if name != CHAIN]:
            raise ConfigError(
                f"transform.{CHAIN} stands beside transform.{others[0]}, and nothing says which comes first: name all "
                f"of them in the list."
            )
        yield from _steps(given[CHAIN])
    else:
        for name, settings in given.items():
            if not isinstance(settings, Mapping | None):
                raise ConfigError(f"transform.{name}={settings}: write its settings, as in {EXAMPLE}.")
            yield dict(settings) if settings and "_target_" in settings else _usual(name) | dict(settings or {})


def _usual(name: str) -> dict[str, Any]:
    """Return class and usual settings of a transform, from its file."""
    if name not in (known := [choice for choice in choices_of("transform") if choice != NONE]):
        raise ConfigError(
            f"transform: {written_here('transform', str(name)) or unknown('transform', str(name), known)}"
        )
    return yaml.safe_load((CONF / "transform" / f"{name}.yaml").read_text(encoding="utf-8"))[name]


def _class_of(step: Mapping[str, Any]) -> Any:
    return find_class(str(step["_target_"]), "transform")
