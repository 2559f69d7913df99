"""Every setting is part of what makes a search that search, or says why not.

A setting that is new, and has no other value to be tried or no reason, fails here.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from evomerge.cli.progress import Reporter
from evomerge.problem import Problem
from evomerge.runs.build import build_problem
from evomerge.runs.checks import make_fitness
from evomerge.runs.config import CHOOSING, UNNAMED, check, plain
from evomerge.runs.identity import search_identity
from evomerge.runs.suite import Suite
from evomerge.runs.targets import choices_of
from tests.kit import user_fitness
from tests.kit.evaluations import sources_of, under
from tests.kit.helpers import compose

FREE = {
    ("budget", "budget_items", "budget_hours"): "how long a search goes on: with more it goes on where it stopped",
    ("time_limit",): "what takes longer has failed, and that is in the log",
    ("tracker",): "where a search is shown",
    ("baselines",): "are judged beside what is found, after the search",
    ("fitness.report_metric", "fitness.select_items", "fitness.report_items"): "chooses and reports after the search",
    ("objective.keep",): "counts where something is to be forgotten (test_roles.py): not here",
    (
        *("model.name", "model.cache", "model.device", "model.device_map", "model.place"),
    ): "where something is kept or computed, not what",
    ("model.builder",): "makes a suite where there is none; what lies in it counts",
    ("fitness.directory",): "where a command's models are written to, not what",
    ("fitness.remember",): "what is remembered is what would be scored",
    ("fitness.worth",): "scores the winner's parents after the search",
    ("model.allow_missing",): "decides what is refused; the same tensors are merged in the same way",
    ("model.dequantise",): "decides what is refused; an expert's numbers count, wherever they come from",
    ("model.trained_on",): "decides what evomerge warns of",
    (
        "model.buffers",
        "model.buffer_items",
    ): "count where there are statistics (test_buffers.py): not here",
    (
        "evaluator.kind",
        "evaluator.workers",
        "evaluator.gpus",
        "evaluator.address",
    ): "who scores, not what",
    ("racing.looks",): "counts where candidates are raced (test_racing_run.py): not here",
    ("evaluator.threads",): "stands in the fingerprint of the log",
    ("model.vocabulary",): "counts where vocabularies differ (test_vocabulary_runs.py), and here they do not",
}
"""Settings that may not change the identity, and why."""
ALONE = {name: ("searcher.incumbents",) for name in ("random", "tpe")}
"""The same of one choice: how many points of a front are handed over counts where there is one (test_fronts.py)."""
IMPOSSIBLE = (
    *("model.part", "model.trajectory", "objective.values", "objective.choose", "objective.sure"),
    "fitness.estimate_from",
)
"""Settings that have no other valid value on these models; those of a search with several values: test_fronts.py; of
estimates: test_estimates.py
"""
GROUPS = ("method", "transform", "space", "searcher", "fitness", "loss", "objective")
CHOICES = {group: choices_of(group) for group in GROUPS}
DEFAULTS = {"mean", "", "pico", "linear", "none", "layer", "cmaes", "classification", "cross_entropy", "ray"}
GIVEN = {
    "command": ["fitness.command='true {model} {items} {out}'"],
    "custom": [f"fitness.function={user_fitness.__file__}:score"],
    "blocks": ["space.n=2"],
    "modules": ["space.n=2"],
    "core_space": ["transform.core_space.rank=2"],
    "pareto": ["searcher=random"],
    "slerp": ["model.experts=[trees]"],
    "nuslerp": ["model.experts=[trees,metals]"],
    **{name: [f"transform.{name}.steps=2"] for name in ("wudi", "optmerge", "doge")},
}
"""What a choice cannot do without on these models, or would take long with."""
TREES = "weight/*/trees"
OTHER: dict[str, tuple[Any, ...]] = {
    "time_limit": (900,),
    "start": (0.3,),
    "budget_items": (1000,),
    "budget_hours": (2,),
    "transform": ("ties",),
    "svd": ("randomised",),
    "n": (2, 1),
    "granularity": ("module", "layer"),
    "sharing": ("shared",),
    "bounds": ({"weight": [0, 1]},),
    "frozen": ({TREES: 0.4},),
    "tied": ([TREES],),
    "only": (["encoder.layer.0.*"],),
    "space.only": ([TREES],),
    "masks": (["*"],),
    "sum": (1.0,),
    "map": ("tanh",),
    "baselines": (["1/K"],),
    "scope": ("tensor", "model"),
    "by": ("count",),
    "join": ("mean", "sum"),
    "zero": ("majority",),
    "inner": ("dare_ties",),
    "tables": ("projected",),
    "popsize": (7,),
    "points": (30,),
    "first": ("start",),
    "akin": ("weights",),
    "coordinate": ("weight/encoder.layer.0/trees",),
    "betas": ([0.8, 0.99],),
    "schedule": ("linear",),
    "elect": ("count",),
    "over": ("group",),
    "metric": ("accuracy",),
    "report_metric": ("log_probability",),
    "select_items": (50,),
    "report_items": (50,),
    "held_out": (["trees"],),
    "forget": (["trees"],),
    "fewshot": (2,),
    "system": ("Be brief.",),
    "aggregate": ("worst", "mean"),
    "constraints": ({"trees": ">= base"},),
    "sampling": ("uniform",),
    "grow": (0.5,),
    "approximate": ("bfloat16",),
    "estimate": ("p-irt",),
    "weights": ({"trees": 2},),
    "name": ("other",),
    "builder": (None,),
    "experts": (["trees", "animals", "metals"],),
    "vocabulary": ("base",),
    "allow_missing": (["lm_head.*"],),
    "auto_class": ("AutoModelForTextEncoding",),
    "command": ("true {model} {items} {out} more",),
    "metrics": (["score", "length"],),
    "device": ("auto",),
    "device_map": ({"": "cpu"},),
    "compute": ("float64",),
    "place": ("host",),
    "store": ("int8",),
    "buffers": ("average",),
    "template": ("trees",),
    "tracker": ({"_target_": "evomerge.runs.trackers.tensorboard.TensorBoard"},),
    "kind": ("serial", "ray"),
    "address": ("auto",),
    "alpha": (0.1,),
    **dict.fromkeys(("workers", "gpus", "threads", "blocks"), (2,)),
}
"""Valid values of settings by their whole or their last name, of which the first that differs is taken; numbers and
switches need none.
"""


@pytest.fixture(scope="module")
def composed(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Composes a search on the pico suite."""
    sources = sources_of(pico_suite, tmp_path_factory.mktemp("cache"))
    return lambda *overrides: compose(*sources, *overrides)


@pytest.fixture(scope="module")
def places(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Values of settings that name files."""
    path, trees = tmp_path_factory.mktemp("places"), pico_suite.tasks["trees"]
    suite = Path(shutil.copytree(pico_suite.path, path / "suite"))
    manifest = json.loads((suite / "suite.json").read_text())
    del manifest["experts"]["metals"]
    (suite / "suite.json").write_text(json.dumps(manifest))
    (path / "mine.py").write_text("def score(model, items):\n    return [0.0 for _ in items]\n")
    return {
        "suite": str(suite),
        "base": str(pico_suite.experts["trees"]),
        "trained_on": {"trees": str(trees.items / "train.jsonl")},
        "cache": str(path / "cache"),
        "directory": str(path),
        "tasks": {"trees": {"items": str(trees.items), "head": str(trees.head)}},
        "function": f"{path / 'mine.py'}:score",
        "files": [str(path / "mine.py")],
    }


def leaves(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield name and value of each setting; a class is no setting, since it stands for the choice of a group."""
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{name}.")
        elif not name.startswith("_"):
            yield f"{path}{name}", value


def changed(config: Any, path: str, value: Any, places: Mapping[str, Any]) -> Any:
    """The same search with another valid value of one setting."""
    name = path if path in OTHER else path.rpartition(".")[2]
    if name in OTHER or name in places:
        other = next(one for one in OTHER.get(name, (places.get(name),)) if one != value)
    elif isinstance(value, bool):
        other = not value
    else:
        assert isinstance(value, int | float), f"{path} has no other value yet: give it one in OTHER or `places`"
        other = value + 1 if isinstance(value, int) else value / 2 or 0.5
    config = copy.deepcopy(config)
    OmegaConf.update(config, path, other, merge=False, force_add=True)
    return config


def searched(config: Any, problem: Problem, path: str = "") -> tuple[Problem, str]:
    """A search that learns from its search items, and its identity; of these models where no others are needed."""
    settings = plain(config)
    check(settings)
    if path in ("method", "transform", "fitness.tasks", "fitness.held_out") or path.split(".")[0] in ("model", "space"):
        problem = build_problem(settings, Reporter())
    else:
        problem = replace(under(problem, settings), fitness=make_fitness(settings["fitness"]))
    return problem, json.dumps(search_identity(problem, settings, problem.items["search"]), sort_keys=True)


@pytest.fixture(scope="module")
def usual(composed: Callable[..., Any], problem: Problem) -> tuple[dict[str, Any], str]:
    """The settings of a search with the usual choices, and its identity."""
    config = composed()
    return dict(leaves(OmegaConf.to_container(config, resolve=False))), searched(config, problem, "model")[1]


@pytest.mark.parametrize(
    ("group", "choice"),
    [
        ("", ""),
        ("model", "pico"),
        ("evaluator", "ray"),
        ("racing", ""),
        *((group, one) for group, all in CHOICES.items() for one in all),
    ],
)
def test_each_setting_changes_the_identity_or_says_why_not(
    group: str,
    choice: str,
    composed: Callable[..., Any],
    places: dict[str, Any],
    problem: Problem,
    usual: tuple[dict[str, Any], str],
) -> None:
    """Of a choice that is not the usual one, its own settings: those that it has beyond that or sets otherwise."""
    config = composed(*([f"{group}={choice}"] if choice else []), *GIVEN.get(choice, []))
    found = dict(leaves(OmegaConf.to_container(config, resolve=False)))
    (problem, before), other = searched(config, problem, group), choice not in DEFAULTS
    if group in CHOICES:
        assert (before != usual[1]) == other
    free = {path for paths in FREE for path in paths}
    for path, value in found.items():
        if path.rpartition(".")[0].split(".")[0] != group or path in IMPOSSIBLE:
            continue
        if path.endswith(".rest"):  # counts beside `only` (test_transform_settings.py)
            continue
        if other and (usual[0].get(path, ...) == value or path.removeprefix("fitness.") in CHOOSING):
            continue
        same = searched(changed(config, path, value, places), problem, path)[1] == before
        assert same == (path in free or path in ALONE.get(choice, ())), path


def test_settings_that_change_nothing_are_settings(composed: Callable[..., Any]) -> None:
    each = [composed(), composed("fitness=command", *GIVEN["command"])]
    known = {name for one in each for name, _ in leaves(OmegaConf.to_container(one, resolve=False))}
    assert {path for paths in FREE for path in paths} <= known
    assert set(UNNAMED) <= {path for paths in FREE for path in paths}  # they may not even name another run


def test_the_loss_counts_where_something_is_learned(composed: Callable[..., Any], problem: Problem) -> None:
    usual, other = (plain(composed(f"loss={loss}")) for loss in ("cross_entropy", "entropy"))
    assert search_identity(problem, usual) == search_identity(problem, other)


def test_a_recipe_to_start_from_counts_by_what_it_says(
    composed: Callable[..., Any], problem: Problem, tmp_path: Path
) -> None:
    seen = []
    for name, text in {"a": "one", "b": "one", "c": "two"}.items():
        (tmp_path / name).write_text(text)
        seen.append(search_identity(problem, plain(composed(f"start={tmp_path / name}")))["start"])
    assert seen[0] == seen[1] != seen[2]


def test_where_sources_lie_does_not_count(
    composed: Callable[..., Any], pico_suite: Suite, problem: Problem, tmp_path: Path
) -> None:
    moved = shutil.copytree(pico_suite.path, tmp_path / "moved")
    there = changed(composed(), "model.suite", str(pico_suite.path), {"suite": str(moved)})
    assert searched(there, problem, "model.suite")[1] == searched(composed(), problem)[1]
