"""The part that each task plays: it guides the search, it is held out of it, or it is to be forgotten.

In: the settings `fitness.held_out` and `objective.forget`, the names of the tasks, and the items of each split. Out:
the items of the tasks that a search sees, and beside them the report items of those that it never sees; or a refusal of
what contradicts itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from evomerge.common.arguments import is_kind
from evomerge.common.errors import ConfigError
from evomerge.common.names import unknown
from evomerge.fitness.items import HELD_OUT, Item
from evomerge.runs.objectives import check_valued, normalised
from evomerge.runs.sampled import changing

Items = Mapping[str, Mapping[str, list[Item]]]
"""Split -> task -> items."""
KEEP = 0.95
"""The share of the base's score that the other tasks keep, where the user says nothing else."""
NEGATIVE = "'space.bounds={weight: [-1, 0]}'"
"""The bounds within which task vectors are taken away."""


def check_roles(settings: Mapping[str, Any]) -> None:
    """Check the settings of tasks and of the objective, as far as nothing else need be known.

    Raises:
        ConfigError: one has another form, or two of them do not go together.
    """
    fitness, objective = settings["fitness"], settings["objective"]
    if not all(0 <= weight < math.inf for weight in (objective["weights"] or {}).values()):
        raise ConfigError(f"objective.weights are {objective['weights']}; write finite numbers, none negative.")
    forget = objective.get("forget")
    if (normalised(settings) or forget) and (items := changing(settings)):
        raise ConfigError(
            f"objective.{'forget' if forget else 'normalised'} needs base and experts on the items of a candidate, and "
            f"with {items} those change: use one or the other."
        )
    given = {"fitness.held_out": fitness.get("held_out"), "objective.forget": forget}
    for setting, names in given.items():
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ConfigError(f"{setting} is {names}; write a list of tasks: '{setting}=[mood]'.")
    keep = objective.get("keep", 1.0)
    if not (is_kind(keep, "float") and 0 < keep <= 1):
        raise ConfigError(
            f"objective.keep={keep} is no share of the base's score: write a number above 0, up to 1, such as 0.95."
        )
    if forget and fitness.get("worth"):
        raise ConfigError(
            "fitness.worth=true says what is gained beside the experts, and with objective.forget the aim is to lose: "
            "leave it out."
        )
    if forget and (objective["aggregate"] != "mean" or objective["normalised"]):
        raise ConfigError(
            "objective.forget lowers the mean score of some tasks and holds that of the others against the base: leave "
            "out objective.aggregate and objective.normalised."
        )


def check_names(settings: Mapping[str, Any], tasks: Collection[str]) -> None:
    """Hold both settings against the tasks.

    Raises:
        ConfigError: a name is none of a task, a task plays two parts, no task is left for one of them, or nothing says
            that weights may be negative.
    """
    objective, held = settings["objective"], held_out_of(settings)
    weights, forget = objective["weights"] or {}, objective.get("forget") or ()
    _known("fitness.held_out", held, tasks)
    searched = [name for name in tasks if name not in held]
    if tasks and not searched:
        raise ConfigError(
            "fitness.held_out names all tasks, so nothing is left to search by: leave at least one of them out of it."
        )
    for setting, named in (("objective.weights", weights), ("objective.forget", forget)):
        if both := [name for name in named if name in held]:
            raise ConfigError(
                f"{setting} names the task {both[0]}, which is held out (fitness.held_out), so no value depends on it: "
                f"leave it out of one of the two."
            )
    _known("objective.forget", forget, searched)
    check_valued(settings, searched)
    if forget and "weight" not in (settings["space"]["bounds"] or {}):
        raise ConfigError(
            f"objective.forget takes task vectors away, which needs negative weights, and no bounds are given that "
            f"allow them: write {NEGATIVE}."
        )
    if forget and set(forget) >= set(searched):
        raise ConfigError(
            "objective.forget names every task that the search sees, so nothing says what is to be kept: give "
            "fitness.tasks another one as a control."
        )


def held_out_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tasks that a search never sees; runs of earlier versions have none."""
    return tuple(settings["fitness"].get("held_out") or ())


def set_apart(items: Items, held_out: Collection[str]) -> dict[str, dict[str, list[Item]]]:
    """Return the items of each split without the tasks that are held out, and the report items of these by themselves.

    Args:
        items: of all tasks.
        held_out: the names of such tasks; without any, the items are what they are.
    """
    seen = {
        split: {task: chosen for task, chosen in each.items() if task not in held_out} for split, each in items.items()
    }
    apart = {task: chosen for task, chosen in items["report"].items() if task in held_out}
    return seen | ({HELD_OUT: apart} if apart else {})


def role_notes(settings: Mapping[str, Any]) -> list[str]:
    """Return what should be known of tasks to forget: where bounds were given within which nothing is taken away, and
    where only a part of the settings was given.
    """
    bounds = settings["space"]["bounds"] or {}
    if settings["objective"].get("forget") and bounds["weight"][0] >= 0:
        return [
            f"objective.forget with weights of {bounds['weight']} takes no task vector away, it only adds them: the "
            f"usual bounds for forgetting are {NEGATIVE}"
        ]
    if not settings["objective"].get("forget") and settings["objective"].get("keep", KEEP) != KEEP:
        return ["objective.keep counts where something is to be forgotten: write objective.forget=[task] as well"]
    return []


def _known(setting: str, names: Iterable[str], tasks: Collection[str]) -> None:
    for name in names:
        if name not in tasks:
            raise ConfigError(f"{setting}: {unknown('task', name, tasks)}")
