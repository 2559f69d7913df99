"""From settings to the parts of a search: sources, live model, task vectors, space, merger, tasks and fitness.

In: a typed configuration. Out: an `Assembly`, complete and checked, before anything expensive has run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from evomerge.checkpoint import Checkpoint, open_checkpoint
from evomerge.config import SearchConfig, build
from evomerge.errors import ConfigError
from evomerge.fitness.base import Fitness
from evomerge.items import Item
from evomerge.live import LiveModel, load_live
from evomerge.merger import Merger
from evomerge.methods import Method
from evomerge.progress import Reporter
from evomerge.recipe import Recipe
from evomerge.searchers.base import Searcher
from evomerge.searchers.warm import WarmStart
from evomerge.sources import Sources, find_sources, head_identity, make_heads, read_split
from evomerge.space import CoefficientSpace, make_space
from evomerge.task_vectors import TaskVectors, check_family, task_vectors


@dataclass(frozen=True)
class Assembly:
    """The parts of a search.

    Attributes:
        sources: where models and tasks come from.
        live: the loaded base.
        vectors: base and task vectors.
        space: the coefficient space.
        method: how candidates are built.
        merger: builds them.
        fitness: scores them.
        items: the items of each split by task.
        warnings: what the user should know about the sources.
    """

    sources: Sources
    live: LiveModel
    vectors: TaskVectors
    space: CoefficientSpace
    method: Method
    merger: Merger
    fitness: Fitness
    items: dict[str, dict[str, list[Item]]]
    warnings: list[str]

    @property
    def experts(self) -> dict[str, str]:
        """The expert of each task, for those tasks that have one."""
        return {name: task.expert for name, task in self.sources.tasks.items() if task.expert}

    def coefficients(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return coefficients with the given weights, (K,) for all groups, and every other variable at its start."""
        shape = (len(self.space.groups), len(self.space.experts))
        others = {
            variable.name: np.full(shape, variable.start)
            for variable in self.space.variables
            if variable.name != "weight"
        }
        return {"weight": np.broadcast_to(weights, shape), **others}


def assemble(config: SearchConfig, reporter: Reporter) -> Assembly:
    """Read the sources and build every part.

    Raises:
        EvomergeError: whatever is wrong with the settings or the sources.
    """
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # pyright: ignore[reportAssignmentType, reportArgumentType]
    sources = find_sources(config.model, settings["fitness"]["tasks"])
    items = {split: read_split(sources.tasks, split) for split in ("search", "select", "report")}
    method: Method = build(settings["method"], "method")
    with reporter.working("loading the base"):
        live = load_live(sources.base, config.model.auto_class, config.model.device)
    base, experts = open_sources(sources, live, Path(config.model.cache), reporter)
    parameters = {name: shape for name, shape in live.parameters.items() if name not in base.missing}
    warnings = check_family(base, experts, parameters)
    vectors = task_vectors(base, experts, parameters, Path(config.model.cache), reporter.steps)
    space = make_space(
        settings["space"]["granularity"],
        parameters,
        list(experts),
        method.variables,
        vectors.zero,
        sharing=config.space.sharing,
        frozen=settings["space"]["frozen"],
        tied=settings["space"]["tied"],
        bounds=_bounds(settings["space"]["bounds"]),
    )
    with reporter.working("preparing the merge"):
        merger = Merger(live.model, vectors, space.groups, method)
    heads = make_heads(sources, parameters) if "classification" in settings["fitness"]["_target_"] else None
    if heads is None and base.missing:  # frozen heads do not use it, and own heads bring theirs
        warnings.append("the base holds no pooler, so the live one is random: your fitness must not use pooled outputs")
    fitness: Fitness = build(settings["fitness"], "fitness", **({} if heads is None else {"heads": heads}))
    for name in ("metric", "report_metric"):
        if settings["fitness"][name] not in fitness.metrics:
            raise ConfigError(
                f"fitness.{name} is '{settings['fitness'][name]}'; this fitness gives {', '.join(fitness.metrics)}."
            )
    return Assembly(sources, live, vectors, space, method, merger, fitness, items, warnings)


def open_sources(
    sources: Sources, live: LiveModel, cache: Path, reporter: Reporter
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """Open the files of base and experts, seen through the live model's parameters."""

    def open_one(path: Path) -> Checkpoint:
        return open_checkpoint(path, live.parameters, live.prefix, live.tied, cache, reporter.steps)

    return open_one(sources.base), {name: open_one(path) for name, path in sources.experts.items()}


def make_searcher(
    settings: Mapping[str, Any], space: CoefficientSpace, parameters: Mapping[str, tuple[int, ...]]
) -> Searcher:
    """Return the searcher, with the warm start that `start` asks for.

    Args:
        settings: of the search; `start` is `constants`, a number, the text `1/K`, or the path of a recipe.
        space: where it searches.
        parameters: name -> shape, to carry a recipe over to other groups.

    Raises:
        ConfigError: `start` is none of these, or the searcher's settings do not fit the space.
    """

    def make(start: np.ndarray) -> Searcher:
        return build(settings["searcher"], "searcher", space=space, start=start, seed=settings["seed"])

    start = settings["start"]
    if start == "constants":
        searcher = make(
            space.start({})
        )  # also where constants are tried first: settings that do not fit are refused now
        return searcher if space.dim == 1 else WarmStart(space, make)
    if start == "1/K":
        return make(space.start({"weight": 1 / len(space.experts)}))
    if isinstance(start, int | float) and not isinstance(start, bool):
        return make(space.start({"weight": float(start)}))
    if not isinstance(start, str) or not Path(start).is_file():
        raise ConfigError(
            f"start={start} is no number and no recipe file: write start=constants (tries a few), start=0.4, "
            f"start=1/K or start=runs/<name>/recipe.yaml."
        )
    known = Recipe.from_yaml(Path(start).read_text()).on_groups(space.groups, space.experts, parameters)
    return make(
        space.start({variable.name: known[variable.name] for variable in space.variables if variable.name in known})
    )


def describe(assembly: Assembly, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes this search this search: names and hashes, no paths. It is the identity of the trial log."""
    fitness = {
        name: value
        for name, value in settings["fitness"].items()
        if name not in ("tasks", "select_items", "report_items")
    }
    if "function" in fitness:
        fitness["function"] = Path(fitness["function"]).name
    return {
        "base": assembly.vectors.base.sha256,
        "experts": {name: expert.sha256 for name, expert in assembly.vectors.experts.items()},
        "items": {task: _digest([item.id for item in items]) for task, items in assembly.items["search"].items()},
        "heads": {name: head_identity(task) for name, task in assembly.sources.tasks.items()},
        "method": settings["method"],
        "space": {
            "coordinates": _digest([assembly.space.names, assembly.space.low.tolist(), assembly.space.high.tolist()]),
            **settings["space"],
        },
        "searcher": settings["searcher"],
        "fitness": fitness,
        "objective": settings["objective"],
        "start": _start_identity(settings["start"]),
        "seed": settings["seed"],
    }


def _bounds(bounds: Any) -> dict[str, tuple[float, float]]:
    if not isinstance(bounds or {}, dict) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in (bounds or {}).values()
    ):
        raise ConfigError(
            f"space.bounds is {bounds}; write the lower and the upper bound of a variable: "
            f"'space.bounds={{weight: [0, 1.5]}}'."
        )
    return {name: (float(low), float(high)) for name, (low, high) in (bounds or {}).items()}


def _start_identity(start: Any) -> Any:
    """Return a start without its path: a recipe by its content."""
    path = Path(start) if isinstance(start, str) else None
    return f"recipe {_digest(path.read_text())}" if path is not None and path.is_file() else start


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
