"""What the tests of models side by side share: settings of the pico suite, recipes, and what the cache remembers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.problem import Problem
from evomerge.recipes.handover import make_recipe
from evomerge.recipes.recipe import Recipe
from evomerge.runs.build import goal_of, opening_of, sampling_of, written_of
from evomerge.runs.config import plain
from evomerge.runs.suite import Suite
from tests.kit.helpers import compose


def sources_of(suite: Suite, cache: Path) -> list[str]:
    """Settings of a search on few items of a pico suite."""
    small = ["fitness.items=30", "fitness.select_items=60", "fitness.report_items=90"]
    return ["model=pico", f"model.suite={suite.path}", f"model.cache={cache}", "model.device=cpu", *small]


def settings_of(*overrides: str) -> dict[str, Any]:
    return plain(compose(*overrides))


def under(problem: Problem, settings: dict[str, Any]) -> Problem:
    """The same models, items and space with what other settings say of goal, sampling and cache."""
    more = {"opening": opening_of(settings), "written": written_of(settings)}
    return replace(problem, goal=goal_of(settings), sampling=sampling_of(settings), **more)


def elsewhere(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """The same settings with a cache of their own."""
    return {**settings, "model": {**settings["model"], "cache": str(path / "cache")}}


def remembered(settings: dict[str, Any]) -> set[str]:
    """The outcomes in the cache."""
    return {file.name for file in (Path(settings["model"]["cache"]) / "outcomes").glob("*.json")}


def is_base(problem: Problem) -> bool:
    """Whether the live model holds the base, bit for bit."""
    base = problem.vectors.base
    return all(p.equal(base.tensor(name)) for name, p in problem.live.model.named_parameters() if name in base.keys)


def recipe_of(problem: Problem, coefficients: dict[str, np.ndarray]) -> Recipe:
    return make_recipe(problem, coefficients, {}, {})
