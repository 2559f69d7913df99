"""What a search would be made of, before any model is read: what `inspect` measures a search by.

In: settings. Out: an `Intent`, typed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.fitness.base import Fitness
from evomerge.fitness.goal import Goal
from evomerge.merging.method import Method, check_rows
from evomerge.models.devices import Devices
from evomerge.problem import Opening, Sampling, Sources
from evomerge.runs.build import goal_of, opening_of, sampling_of
from evomerge.runs.config import build
from evomerge.runs.leakage import training_files
from evomerge.runs.roles import check_names, held_out_of


@dataclass(frozen=True)
class Intent:
    """What a search would be made of.

    Attributes:
        sources: where models and tasks come from.
        fitness: as it is made before items are read; None without tasks.
        method: how candidates are built.
        transforms: how many transforms the task vectors pass first.
        bounds: of weights.
        devices: where the live model is to lie.
        compute: the dtype that it computes in; may be `auto`; None for that of the checkpoint.
        opening: how model directories are opened.
        goal: what is maximised.
        sampling: how many items are scored.
        trained_on: training files of experts, by name.
        held_out: the tasks that the search never sees.
        time_limit: the setting: seconds, `auto` or None.
    """

    sources: Sources
    fitness: Fitness | None
    method: Method
    transforms: int
    bounds: tuple[float, float]
    devices: Devices
    compute: str | None
    opening: Opening
    goal: Goal
    sampling: Sampling
    trained_on: Mapping[str, list[Path]]
    held_out: tuple[str, ...]
    time_limit: float | str | None


def intent_of(settings: Mapping[str, Any], sources: Sources, fitness: Fitness | None) -> Intent:
    """Return what a search under these settings would be made of.

    Args:
        settings: of the search.
        sources: where models and tasks come from.
        fitness: of the settings, if there are tasks.

    Raises:
        ConfigError: the method cannot be made or merges another number of experts, or training files are missing.
    """
    check_names(settings, sources.tasks)
    model, method = settings["model"], build(settings["method"], "method")
    check_rows(method, list(sources.experts))
    weight = next(variable for variable in method.variables if variable.name == "weight")
    low, high = (settings["space"]["bounds"] or {}).get("weight", (weight.low, weight.high))
    return Intent(
        sources=sources,
        fitness=fitness,
        method=method,
        transforms=len(settings.get("transform") or ()),
        bounds=(low, high),
        devices=Devices(model["device"], model["device_map"]),
        compute=model.get("compute"),
        opening=opening_of(settings),
        goal=goal_of(settings),
        sampling=sampling_of(settings),
        trained_on=training_files(model["trained_on"], sources.experts),
        held_out=held_out_of(settings),
        time_limit=settings["time_limit"],
    )
