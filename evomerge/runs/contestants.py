"""Who takes part in a comparison: every method, transform and start of the lists, or those that a person names.

In: the settings `compare`, and the names of the experts. Out: contestants, each with method and transforms as a search
would have them, from conf/; and why others cannot run on these models. Nothing is listed here a second time: a method
or a transform that is new takes part. All have one weight λ for everything, chosen among the same few constants; a
start in closed form and a merge YAML of mergekit's have weights of their own, and so one merge.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from evomerge.common.arguments import is_kind
from evomerge.common.digests import digest
from evomerge.common.errors import ConfigError
from evomerge.common.names import unknown
from evomerge.merging.method import Formed, check_rows
from evomerge.merging.methods.common import WEIGHT
from evomerge.merging.starts import STARTS
from evomerge.merging.trajectories import SCHEDULES
from evomerge.recipes.catalog import METHODS, TRANSFORMS
from evomerge.recipes.mergekit.numbers import Values
from evomerge.runs.choices import load_choice
from evomerge.runs.closed_forms import FORMS, SCORED, UNIFORM
from evomerge.runs.config import CONF, build, check_method
from evomerge.runs.other_names import written_here
from evomerge.runs.targets import find_class
from evomerge.runs.theirs import Theirs, find_files, is_file
from evomerge.runs.transforms import resolved

GROUPS: Mapping[str, Mapping[str, Any]] = {"method": METHODS, "transform": TRANSFORMS}
METHOD, TRANSFORM, START = "method:", "transform:", "start:"
PUBLISHED: tuple[list[Any], ...] = (["trim", {"elect": {"join": "mean"}}], ["della", "elect"])
"""Chains that are TIES and DELLA as published: the transform `ties` adds up what agrees, `della` elects no signs."""
MOST = 10.0
"""The largest weight that a comparison takes: papers tune theirs up to 3, and what is above it is a slip."""
REFERENCE = "linear"
"""Task arithmetic: it always takes part, and the others are held against it."""


@dataclass(frozen=True)
class Compared:
    """The settings `compare`.

    Attributes:
        methods: what takes part, as it was written; None for all there is.
        constants: the weights among which each of them chooses.
        files: merge YAMLs of mergekit's that take part as well, by their names.
    """

    methods: tuple[Any, ...] | None
    constants: tuple[float, ...]
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Contestant:
    """A method, or transforms before a weighted sum, with its usual settings.

    Attributes:
        name: what the table calls it.
        title: what it does, in a few words.
        paper: where it was published.
        needs: what it needs beside a base, in words.
        method: its class and settings, as a search has them.
        transform: the same of each transform, in order.
        others: the values of its variables but for the weight.
        constants: among which its weight is chosen; one, where it changes nothing.
        unscaled: the rows that have a weight of 1 instead, as in the paper.
        start: the closed form that its weights are of, in place of one for everything.
        told: the numbers of a merge YAML, by variable, parameter and expert, in place of one for everything.
    """

    name: str
    title: str
    paper: str
    needs: str
    method: Mapping[str, Any]
    transform: Sequence[Mapping[str, Any]]
    others: Mapping[str, float]
    constants: tuple[float, ...]
    unscaled: tuple[str, ...] = ()
    start: str = ""
    told: Values | None = None

    def about(self) -> dict[str, Any]:
        """Return all that decides which models it makes, as plain data."""
        own = {"method": self.method, "transform": self.transform, "others": self.others, "constants": self.constants}
        if self.unscaled:
            own["unscaled"] = self.unscaled
        if self.start:
            own["start"] = self.start
        if self.told:
            own["told"] = digest(self.told)
        return {"name": self.name, **own}


def read_compared(given: Mapping[str, Any]) -> Compared:
    """Return the settings `compare`: those that were given, and the others from conf/compare.yaml.

    Raises:
        ConfigError: there is no such setting, or it cannot have that value.
    """
    usual = yaml.safe_load((CONF / "compare.yaml").read_text(encoding="utf-8"))
    if strange := [name for name in given if name not in usual]:
        raise ConfigError(f"compare: {unknown('setting', strange[0], usual)}")
    found = {**usual, **given}
    methods, constants = found["methods"], found["constants"]
    if methods is not None and (not isinstance(methods, list) or not methods):
        raise ConfigError(
            f"compare.methods={methods} is no list: write names in brackets, 'compare.methods=[ties,tsvm]'; "
            f"compare.methods=null stands for all there is."
        )
    if not (isinstance(constants, list) and constants and all(is_kind(one, "float") for one in constants)) or not all(
        0 <= one <= MOST for one in constants
    ):
        raise ConfigError(
            f"compare.constants={constants}: the weights among which each chooses are numbers from 0 to {MOST:g}. "
            f"Write a list of some, such as 'compare.constants=[0.4,1.0,2.0]'."
        )
    others = [one for one in methods or () if not is_file(one)]
    for entry in others:
        list(_understood(entry, 0))  # before any model is looked at
    files = find_files([one for one in methods or () if is_file(one)])
    each = tuple(sorted({float(one) for one in constants}))
    return Compared(None if methods is None else tuple(others), each, files)


def everybody(trajectory: bool = False) -> list[Any]:
    """Return all there is, as `compare.methods` takes it; task arithmetic is the first.

    Args:
        trajectory: whether the experts are the checkpoints of one training run.
    """
    methods, transforms = ([_label(group, name) for name in known] for group, known in GROUPS.items())
    starts = [name for name in FORMS if trajectory or name not in SCHEDULES]
    return [*methods, *transforms, *PUBLISHED, *(f"{START}{name}" for name in starts)]


def find_contestants(
    compared: Compared, experts: Sequence[str], seed: int, trajectory: bool = False
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Return who takes part, and why others cannot, both by name.

    Args:
        compared: what was asked for.
        experts: the names of the experts, in order.
        seed: of all that is drawn, such as random masks, where its settings are the usual ones.
        trajectory: whether the experts are the checkpoints of one training run.

    Raises:
        ConfigError: something that was asked for does not exist, or cannot have these settings.
    """
    found, refused = dict[str, Contestant](), dict[str, str]()
    for entry in (REFERENCE, *(everybody(trajectory) if compared.methods is None else compared.methods)):
        for name, method, transform in _understood(entry, seed):
            start = name.removeprefix(START) if name.startswith(START) else ""
            if start in SCHEDULES and not trajectory:
                refused[name] = "it weighs the checkpoints of one training run (model.trajectory)"
            elif reason := _reason(method, transform, experts):
                refused[name] = reason
            else:
                check_method(method, transform, experts)
                one = _contestant(name, method, transform, compared.constants)
                if start:
                    one = _closed(one, start)
                if one.constants:
                    found[name] = one
                else:
                    refused[name] = "none of compare.constants lies within the bounds of its weight"
    return found, refused


def of_theirs(
    name: str, theirs: Theirs, parameters: Mapping[str, tuple[int, ...]], experts: Sequence[str]
) -> Contestant | str:
    """Return a merge YAML of mergekit's as a contestant with one merge, or why it cannot run on these models.

    Args:
        name: what the table calls it.
        theirs: the YAML.
        parameters: name -> shape, in the order of the live model.
        experts: the names of the experts, in order.

    Raises:
        ConfigError: it says what evomerge cannot do; the message names the line.
    """
    read = theirs.read(parameters)
    ones = all(weight == 1 for row in read.values["weight"].values() for weight in row.values())
    if read.transform and not (ones and set(theirs.rows) == set(experts)):
        lacking = [name for name in experts if name not in theirs.rows]
        what = f"lacks {', '.join(lacking)}" if lacking else "has other weights than 1"
        return (
            f"{theirs.peer.name} is a transform of all experts here, each with a weight of 1, and this YAML {what}: "
            f"compare it where model.experts names those that it has"
        )
    method = load_choice("method", read.method["name"], _rest(read.method))
    transform = resolved([{step["name"]: _rest(step)} for step in read.transform])
    if reason := _reason(method, transform, experts):
        return reason
    check_method(method, transform, experts)
    one = replace(_contestant(name, method, transform, (1.0,)), others={}, constants=(1.0,))
    return one if read.transform else replace(one, told=read.values)


def _rest(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "name"}


def _closed(one: Contestant, start: str) -> Contestant:
    """Return task arithmetic with the weights of a closed form."""
    if start == UNIFORM:
        kind: Any = METHODS["average"]
        title = "the same weight for all: the mean of the experts"
    else:
        kind = {**STARTS, **SCHEDULES, **SCORED}[start]
        title = kind.title
    needs = "a score of each expert" if start in SCORED else one.needs
    return replace(one, title=title, paper=kind.paper, needs=needs, start=start, constants=(1.0,))


def _understood(entry: Any, seed: int) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Yield name, method and transforms of all that an entry of `compare.methods` stands for."""
    linear = load_choice("method", REFERENCE)
    if isinstance(entry, str) and entry.startswith(START):
        _check_start(entry.removeprefix(START))
        yield entry, linear, []
    elif isinstance(entry, str):
        asked, name = _groups(entry)
        if "method" in asked:
            yield _label("method", name), _seeded(load_choice("method", name), seed), []
        if "transform" in asked:
            yield _label("transform", name), linear, [_seeded(step, seed) for step in resolved(name)]
    elif isinstance(entry, Mapping) and entry and all(_is_method(str(name)) for name in entry):
        for name, own in entry.items():
            yield _called(name, own), load_choice("method", _groups(str(name))[1], own), []
    else:
        chain = resolved(_steps(entry))
        if entry in PUBLISHED:  # its settings are the usual ones; others say their seed
            chain = [_seeded(step, seed) for step in chain]
        yield _written(_steps(entry)), linear, chain


def _check_start(name: str) -> None:
    """Refuse what is no closed form.

    Raises:
        ConfigError: it is none.
    """
    if re.fullmatch(r"\d*\.?\d+", name):
        raise ConfigError(
            f"compare.methods: {START}{name} is a weight for everything, and all choose theirs among the same: write "
            f"compare.constants=[{name}], with others if you like."
        )
    if name not in FORMS:
        raise ConfigError(
            f"compare.methods: {written_here('start', name, comparing=True) or unknown('start', name, FORMS)}"
        )


def _groups(entry: str) -> tuple[list[str], str]:
    """Return of what a name is one, methods or transforms or both, and the name by itself.

    Raises:
        ConfigError: there is no such name.
    """
    group, _, name = entry.rpartition(":")
    groups = [one for one, known in GROUPS.items() if name in known]
    if not (asked := [one for one in groups if group in ("", one)]):
        kind = group if group in GROUPS else "method"
        if groups:  # it is of the other group
            raise ConfigError(f"compare.methods: there is no {entry}, since {name} is a {groups[0]}: write {name}.")
        known = written_here(kind, name, comparing=True) or unknown("method", entry, {**METHODS, **TRANSFORMS})
        raise ConfigError(f"compare.methods: {known}")
    return asked, name


def _is_method(name: str) -> bool:
    """Whether a name with settings of its own is a method; one that both lists have is the transform."""
    return name.startswith(METHOD) or (name in METHODS and name not in TRANSFORMS)


def _steps(entry: Any) -> Any:
    """Return a chain, or one transform with its settings, by names alone: `transform:` may stand before them.

    Raises:
        ConfigError: one of them is a method, a start or nothing that is known; or a setting is the method's.
    """
    if isinstance(entry, list):
        return [_steps(one) for one in entry]
    if isinstance(entry, Mapping) and "_target_" not in entry:
        return {_step(str(name), own): own for name, own in entry.items()}
    return _step(entry) if isinstance(entry, str) else entry


def _step(name: str, own: Any = None) -> str:
    plain = name.removeprefix(TRANSFORM)
    if isinstance(own, Mapping) and "_target_" in own:
        return name
    if name.startswith(START):
        raise ConfigError(
            f"compare.methods: {name} has neither settings nor steps here: write it by itself, or search with "
            f"start={name.removeprefix(START)}."
        )
    if name.startswith(METHOD) or plain not in TRANSFORMS:
        _groups(name)  # one that nobody has
        raise ConfigError(
            f"compare.methods: {name} is a method and no step of a chain, which is of transforms alone: write it by "
            f"itself, with its settings as {{{METHOD}{name.removeprefix(METHOD)}: {{...}}}}."
        )
    of_method = set(load_choice("method", plain)) if plain in METHODS else set()
    if isinstance(own, Mapping) and (theirs := [key for key in own if key in of_method - set(resolved(plain)[0])]):
        raise ConfigError(
            f"compare.methods: {name} with settings is the transform, and {theirs[0]} is a setting of the method: "
            f"write {{{METHOD}{plain}: {{{theirs[0]}: {own[theirs[0]]}}}}}."
        )
    return plain


def _label(group: str, name: str) -> str:
    """Return the name of a method or of a transform; with its group, where there is one of both."""
    return f"{group}:{name}" if name in METHODS and name in TRANSFORMS else name


def _written(entry: Any) -> str:
    """Return what a person wrote as a name: trim+elect, ties(density=0.3)."""
    if isinstance(entry, list):
        return "+".join(map(_written, entry))
    if not isinstance(entry, Mapping):
        return str(entry)
    if "_target_" in entry:
        own = {key: value for key, value in entry.items() if key != "_target_"}
        return _called(str(entry["_target_"]).rpartition(".")[2], own)
    return "+".join(_called(str(name), own) for name, own in entry.items())


def _called(name: str, own: Any) -> str:
    text = ", ".join(f"{key}={value}" for key, value in own.items()) if isinstance(own, Mapping) else str(own or "")
    return f"{name}({text})" if text else name


def _seeded(settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return {**settings, **({"seed": seed} if "seed" in settings else {})}


def _reason(method: Mapping[str, Any], transform: Sequence[Mapping[str, Any]], experts: Sequence[str]) -> str:
    """Return why something cannot run on these models; nothing if it can."""
    for step in transform:
        kind = find_class(str(step["_target_"]), "transform")
        if kind.needs != "nothing":
            return f"it needs {kind.needs}, and a comparison gives a transform the task vectors alone"
        if kind.alone:
            return f"{kind.alone}, and a comparison gives all rows one weight"
    try:
        check_rows(find_class(str(method["_target_"]), "method"), experts)
    except ConfigError as error:
        return str(error)
    return ""


def _contestant(
    name: str, settings: dict[str, Any], transform: list[dict[str, Any]], constants: tuple[float, ...]
) -> Contestant:
    method = build(settings, "method")
    usual = resolved(method.name)[0] if method.name in TRANSFORMS else {}  # as published: the density of TIES is 0.2
    weight = next(variable for variable in method.variables if variable.name == "weight")
    shares = isinstance(method, Formed) and (method.form.divide or method.counts_zero)  # their scale means nothing
    takes = method.takes if isinstance(method, Formed) else None
    most = MOST if weight == WEIGHT else weight.high  # its usual bounds are those of a search, and no law
    within = tuple(one for one in constants if weight.low <= one <= most)
    kinds = [find_class(str(step["_target_"]), "transform") for step in transform] or [method]
    return Contestant(
        name=name,
        title="; ".join(kind.title for kind in kinds),
        paper="; ".join(kind.paper for kind in kinds),
        needs="the models alone" if takes is None else f"{takes} expert{'s' * (takes > 1)}",
        method=settings,
        transform=transform,
        others={v.name: float(usual.get(v.name, v.start)) for v in method.variables if v.name != "weight"},
        constants=(1.0,) if shares else within,
        unscaled=tuple(row for kind in kinds for row in getattr(kind, "unscaled", ())),
    )
