"""Advice works: whoever does what an error says gets further, and never meets the same error again.

Each row: what somebody writes, what the message tells them to write (word for word), and the settings that are then
theirs. What is advised beside settings (commands, files) stands below the table.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from evomerge.cli import evaluate, export, inspect, merge, report
from evomerge.cli.progress import Reporter
from evomerge.cli.settings import compose_settings
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.runs.budget import make_budget
from evomerge.runs.build import build_problem, find_start, make_searcher
from evomerge.runs.checks import make_fitness
from evomerge.runs.config import check, plain
from evomerge.runs.learning import check_learning, find_learning
from evomerge.runs.run import run_search
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.search.stopping import Interrupt, fixed
from evomerge.searchers.base import parts_of
from tests.kit.helpers import compose

OWN = {"model.base": "base", "model.experts": "[mood,topic]", "fitness.tasks": "{mood: mood.jsonl, topic: topic.jsonl}"}
FUNCTION = {"fitness": "custom", "fitness.function": "mine.py:score"}
GRADIENT = {"searcher": "gradient", "space": "tensor"}
ROWS: dict[str, tuple[Mapping[str, str], str, Mapping[str, str]]] = {
    # names and values
    "a misspelt setting": ({"budgte": "3"}, "Did you mean budget", {"budgte": "", "budget": "3"}),
    "a misspelt choice": ({"searcher": "cmase"}, "Did you mean cmaes", {"searcher": "cmaes"}),
    "a group without a choice": ({"method": "null"}, "ties", {"method": "ties"}),
    "no whole number": ({"budget": "ten"}, "such as budget=200", {"budget": "200"}),
    "no truth value": (
        {"objective.normalised": "maybe"},
        "such as objective.normalised=true",
        {"objective.normalised": "true"},
    ),
    "a negative seed": ({"seed": "-1"}, "any number from 0", {"seed": "0"}),
    "no time": ({"time_limit": "soon"}, "time_limit=900", {"time_limit": "900"}),
    "no time, second advice": ({"time_limit": "0"}, "null for no limit", {"time_limit": "null"}),
    "no loss": ({"loss": "null"}, "cross_entropy", {"loss": "cross_entropy"}),
    "no inputs": ({"loss.inputs": "0"}, "at least one input", {"loss.inputs": "1"}),
    "a class that is not there": (
        {"searcher._target_": "no.Such"},
        "Write searcher= and one of cmaes",
        {"searcher._target_": "", "searcher": "cmaes"},
    ),
    "another vocabulary": ({"model.vocabulary": "bse"}, "did you mean 'base'?", {"model.vocabulary": "base"}),
    # spaces
    "bounds that are no pair": (
        {"space.bounds": "{weight: 2}"},
        "'space.bounds={weight: [0, 1.5]}'",
        {"space.bounds": "{weight: [0, 1.5]}"},
    ),
    "bounds that are no mapping": (
        {"space.bounds": "[0,1]"},
        "'space.bounds={weight: [0, 1.5]}'",
        {"space.bounds": "{weight: [0, 1.5]}"},
    ),
    "tied that is no list": (
        {"space.tied": "weight/*/mood"},
        "write a list of name patterns",
        {"space.tied": "[weight/*/mood]"},
    ),
    "frozen at no number": (
        {"space.frozen": "{weight/*: a}"},
        "'space.frozen={name pattern: 0.4}'",
        {"space.frozen": "{weight/head/*: 0.4}"},
    ),
    "a pattern that matches nothing": (
        {"space.frozen": "{weight/hed/*: 0}"},
        "weight/head/mood",
        {"space.frozen": "{weight/head/mood: 0}"},
    ),
    "blocks without a number": (
        {"space": "blocks", "space.n": "0"},
        "needs a number, 1 or more",
        {"space": "blocks:1", "space.n": ""},
    ),
    "more blocks than there are": ({"space": "blocks:9"}, "Write blocks:2 or fewer, or layer", {"space": "blocks:2"}),
    "more blocks, second advice": ({"space": "blocks:9"}, "or layer for a group per block", {"space": "layer"}),
    "a start outside the bounds": (
        {"start": "3"},
        "'space.bounds={weight: [0.0, 3.0]}'",
        {"space.bounds": "{weight: [0.0, 3.0]}"},
    ),
    "a start that is nothing": ({"start": "nonsense"}, "start=1/K", {"start": "1/K"}),
    "a start that is nothing, a number": ({"start": "nonsense"}, "start=0.4", {"start": "0.4"}),
    "a start that is nothing, constants": ({"start": "nonsense"}, "start=constants", {"start": "constants"}),
    "a start that is nothing, a closed form": ({"start": "nonsense"}, "start=metagpt", {"start": "metagpt"}),
    # one coefficient
    "CMA-ES over one coefficient, grid": (
        {"model.experts": "[mood]", "fitness.tasks": "{mood: mood.jsonl}", "space": "model"},
        "searcher=grid",
        {"searcher": "grid"},
    ),
    "CMA-ES over one coefficient, more groups": (
        {"model.experts": "[mood]", "fitness.tasks": "{mood: mood.jsonl}", "space": "model"},
        "space=tensor",
        {"space": "tensor"},
    ),
    "CMA-ES where an expert equals the base": (
        {"model.experts": "{mood: mood, same: base}", "fitness.tasks": "{mood: mood.jsonl}", "space": "model"},
        "weight/model/same stay 0, since there is no task vector, or you froze them. Write searcher=grid or searcher="
        "tpe",
        {"searcher": "tpe"},
    ),
    # models and tasks
    "nothing to merge": ({"model.base": "", "model.experts": "", "fitness.tasks": ""}, "model.base=path/to/base", OWN),
    "no tasks": (
        {"fitness.tasks": ""},
        "'fitness.tasks={a: {items: a.jsonl",
        {"fitness.tasks": "{mood: {items: mood.jsonl}}"},
    ),
    "two experts of one name": (
        {"model.experts": "[mood,other/mood]"},
        "'model.experts={first: path/a, second: other/a}'",
        {"model.experts": "{mood: mood, topic: other/mood}"},
    ),
    "a task without a head": (
        {"fitness.tasks": "{x: mood.jsonl}"},
        "fitness.tasks.x.expert=one of mood, topic",
        {"fitness.tasks": "{x: mood.jsonl}", "fitness.tasks.x": "{items: mood.jsonl, expert: mood}"},
    ),
    "an expert that is not there": (
        {"fitness.tasks": "{a: {items: mood.jsonl, expert: mod}}"},
        "Did you mean 'mood'?",
        {"fitness.tasks": "{a: {items: mood.jsonl, expert: mood}}"},
    ),
    "a task setting that is none": (
        {"fitness.tasks": "{mood: {itms: mood.jsonl}}"},
        "Did you mean 'items'?",
        {"fitness.tasks": "{mood: {items: mood.jsonl}}"},
    ),
    "a task without items": (
        {"fitness.tasks": "{mood: {expert: mood}}"},
        "fitness.tasks.mood.items=path/to/items.jsonl",
        {"fitness.tasks": "{mood: {items: mood.jsonl}}"},
    ),
    "items twice": (
        {"fitness.tasks": "{mood: {items: mood.jsonl, task: mood.jsonl}}"},
        "leave one of them out",
        {"fitness.tasks": "{mood: {items: mood.jsonl}}"},
    ),
    "classes that are no list": (
        {"fitness.tasks": "{mood: {items: mood.jsonl, classes: no}}"},
        "'fitness.tasks.mood.classes=[no,yes]'",
        {"fitness.tasks": "{mood: {items: mood.jsonl, classes: [no,yes]}}"},
    ),
    "labels that are names": (
        {"fitness.tasks": "{mood: named.jsonl}"},
        "name the classes: fitness.tasks.<task>.classes=",
        {"fitness.tasks": "{mood: {items: named.jsonl, classes: [no,yes]}}"},
    ),
    "a setting of another fitness": (
        {"fitness.tasks": "{mood: {items: mood.jsonl, fewshot: 2}}"},
        "leave it out",
        {"fitness.tasks": "{mood: {items: mood.jsonl}}"},
    ),
    "a metric that is none": ({"fitness.metric": "acuracy"}, "accuracy", {"fitness.metric": "accuracy"}),
    "fewer items than tasks": ({"fitness.items": "1"}, "fitness.items", {"fitness.items": "2"}),
    "no device": ({"model.device": "cuda:77"}, "model.device=cpu", {"model.device": "cpu"}),
    "no AutoModel class": (
        {"model.auto_class": "BertModel"},
        "model.auto_class=AutoModel",
        {"model.auto_class": "AutoModel"},
    ),
    # a function of one's own
    "a function without a name": ({**FUNCTION, "fitness.function": "score"}, "path/to/file.py:function", FUNCTION),
    "a function that is not there": ({**FUNCTION, "fitness.function": "mine.py:scores"}, "it has score", FUNCTION),
    "a module that is not there": (
        {**FUNCTION, "fitness.function": "no_such_module:score"},
        "path/to/file.py:score",
        FUNCTION,
    ),
    # budgets and gradients
    "no budget": ({"budget": "0"}, "budget=200", {"budget": "200"}),
    "a budget below one candidate": (
        {"budget_items": "3"},
        "or lower fitness.items",
        {"budget_items": "3", "fitness.items": "2"},
    ),
    "a gradient of a function": ({**FUNCTION, **GRADIENT}, "searcher=cmaes", {"searcher": "cmaes"}),
    "a gradient of a function, second advice": (
        {**FUNCTION, **GRADIENT},
        "fitness=classification",
        {"fitness": "classification", "fitness.function": ""},
    ),
    "marginal of one input": (
        {**GRADIENT, "loss": "entropy_marginal", "loss.inputs": "1"},
        "write loss.inputs=16",
        {"loss.inputs": "16"},
    ),
    "a loss that is taught": (
        {
            **GRADIENT,
            "loss": "jensen_shannon",
            "fitness.tasks": "{mood: {items: mood.jsonl, head: head.safetensors, expert: null}}",
        },
        "loss=entropy",
        {"loss": "entropy"},
    ),
}


@pytest.fixture(scope="module")
def place(own_classifiers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's directory."""
    import torch

    from evomerge.runs.suite import write_head

    path = tmp_path_factory.mktemp("advice")
    for name in ("base", "mood", "topic", "mood.jsonl", "topic.jsonl"):
        (path / name).symlink_to(own_classifiers / name)
    (path / "other").mkdir()
    (path / "other" / "mood").symlink_to(own_classifiers / "topic")
    rows = [{"text": f"text {i}", "label": ("no", "yes")[i % 2]} for i in range(60)]
    (path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "mine.py").write_text(
        "def score(model, processor, items):\n    return {t: [0.0] * len(c) for t, c in items.items()}\n"
    )
    width = json.loads((path / "base" / "config.json").read_text())["hidden_size"]
    write_head(path / "head.safetensors", torch.eye(2, width))
    return path


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def refusal(given: Mapping[str, str]) -> str | None:
    """What a search with these settings is refused with, before anything is scored; None if it would begin."""
    return _refusal(tuple(f"{name}={value}" for name, value in given.items() if value))


@cache  # one mistake has several pieces of advice
def _refusal(given: tuple[str, ...]) -> str | None:
    try:
        settings = plain(compose_settings([*given]))
        check(settings)
        fitness = make_fitness(settings["fitness"])
        check_learning(settings, fitness)
        problem = build_problem(settings, Reporter(), fitness)
        searcher = make_searcher(settings, problem.space, find_start(settings, problem, Reporter()))
        for items in problem.items.values():
            live_fitness(problem, items)
        subsets = make_subsets(problem)
        if searcher.needs.gradient:
            find_learning(problem, settings, Reporter())
        make_budget(settings, parts_of(searcher, settings["budget"]), fixed(subsets["search"].size), Interrupt())
    except EvomergeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ROWS)
def test_whoever_does_what_a_message_says_gets_further(name: str) -> None:
    wrong, advice, right = ROWS[name]
    given = {**OWN, "searcher": "cmaes", **wrong}
    said = refusal(given)
    assert said is not None, "nothing is refused"
    assert advice in said
    assert refusal({**given, **right}) is None


@pytest.mark.slow
def test_names_that_hydra_cannot_read_work_in_the_file_that_is_advised(place: Path) -> None:
    said = refusal({**OWN, "model.experts": "{modèle: mood}"})
    assert said is not None
    (header,) = re.findall(r"'(# @package _global_)'", said)
    command = re.search(r"evomerge (search .*)$", said)
    assert command is not None
    (place / "experiment").mkdir(exist_ok=True)
    (place / "experiment" / "mine.yaml").write_text(
        f"{header}\nmodel: {{base: base, experts: {{modèle: mood}}}}\n"
        "fitness: {tasks: {modèle: mood.jsonl}, items: 6}\n"
        "budget: 2\nsearcher: {batch: 1}\ndefaults: [{override /searcher: random}]\n",
        encoding="utf-8",
    )
    from tests.processes.command import evomerge

    done = evomerge(*command[1].split(), cwd=place)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A complete run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        settings = {**OWN, "searcher": "random", "budget": "2", "fitness.items": "10"}
        run_search(
            compose(*(f"{name}={value}" for name, value in settings.items())), place / "runs" / "one", Reporter()
        )
    return place / "runs" / "one"


def told(verb, *arguments: str) -> str:
    """What a verb is refused with."""
    with pytest.raises(EvomergeError) as caught:
        verb.main(list(arguments))
    return str(caught.value)


@pytest.mark.parametrize(
    ("verb", "wrong", "advice", "right"),
    [
        (merge, ["runs/one", "m1"], r"write (runs/one/recipe\.yaml)", ["{}", "m1"]),
        (
            merge,
            ["runs/one/recipe.yaml", "m2", "--expert", "mood"],
            r"write (--expert) NAME=DIR",
            ["runs/one/recipe.yaml", "m2", "{}", "mood=mood"],
        ),
        (export, ["runs/one", "-o", "other"], r"name a file in it, such as (\S+)\.$", ["runs/one", "-o", "{}"]),
        (export, ["runs"], r"There is .*(runs/one)\.", ["{}"]),
        (report, ["runs"], r"There is .*(runs/one)\.", ["{}"]),
        (report, ["runs/one", "-o", "page"], r"write (page\.html)", ["runs/one", "-o", "{}"]),
        (evaluate, ["runs/on"], r"Did you mean (runs/one)\?", ["{}"]),
        (evaluate, ["base"], r"name a (run directory)", ["runs/one"]),
        (evaluate, ["runs/one", "constant:much"], r"such as (constant:0\.4)\.", ["runs/one", "{}"]),
        (
            evaluate,
            ["runs/one", "--metric", "acuracy"],
            r"this fitness gives (accuracy)",
            ["runs/one", "--metric", "{}"],
        ),
        (evaluate, ["runs/one/mergekit.yaml", "runs/one"], r"name a (recipe\.yaml) instead", ["runs/one/{}"]),
        (inspect, ["model.cache=.cache"], r"evomerge inspect (BASE EXPERT)", ["base", "mood"]),
        (inspect, ["base"], r"evomerge inspect (BASE EXPERT)", ["base", "mood"]),
        (inspect, ["base", "mood", "model.base=base"], r"leave one of them (out)", ["base", "mood"]),
        (inspect, ["base", "mood", "--density", "0"], r"such as (0\.2) for", ["base", "mood", "--density", "{}"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_so_does_whoever_follows_another_verb(run: Path, capsys, monkeypatch, verb, wrong, advice, right) -> None:
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    if wrong[0].endswith("mergekit.yaml"):
        (run / "mergekit.yaml").write_text("merge_method: task_arithmetic\nbase_model: base\nmodels: []\n")
    said = told(verb, *wrong)
    found = re.search(advice, said)
    assert found is not None, said
    verb.main([argument.replace("{}", found[1]) for argument in right])


def test_a_mergekit_yaml_as_a_start_of_other_models_is_told_so(place: Path) -> None:
    (place / "merge.yaml").write_text("merge_method: linear\nmodels: [{model: a}]\n")
    said = refusal({**OWN, "start": "merge.yaml"})
    assert said is not None
    assert "start=merge.yaml: line 2: a is none of the experts of this search" in said


def test_a_head_that_is_missing_may_be_taken_out_of_the_recipe(run: Path, tmp_path: Path) -> None:
    """Both things that the message says."""
    text = (run / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match="copy the recipe with the heads/ beside it, or take the task out of `heads`"):
        merge.main([str(tmp_path / "recipe.yaml"), str(tmp_path / "merged")])
    (tmp_path / "recipe.yaml").write_text(re.sub(r"heads: .*\n(  .*\n)*", "heads: {}\n", text))
    merge.main([str(tmp_path / "recipe.yaml"), str(tmp_path / "merged")])
    (tmp_path / "recipe.yaml").write_text(text)
    shutil.copytree(run / "heads", tmp_path / "heads")
    merge.main([str(tmp_path / "recipe.yaml"), str(tmp_path / "again")])
