"""Recipes and model directories: whatever form a model has, it gets the scores that its own search would give it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import BertConfig, BertForSequenceClassification, BertModel

from evomerge.cli.progress import Reporter
from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.problem import Problem
from evomerge.recipes.recipe import Recipe, Source
from evomerge.runs.build import build_problem
from evomerge.runs.suite import Suite
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.search.stopping import Interrupt
from evomerge.selection.contenders import of_directory, of_recipe
from evomerge.selection.evaluation import Model, evaluate
from evomerge.selection.judge import Judge
from tests.kit.evaluations import elsewhere, is_base, recipe_of, remembered, settings_of, sources_of, under
from tests.kit.models import pico


@pytest.fixture(scope="module")
def sources(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return sources_of(pico_suite, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    "chosen",
    [
        ["method=linear", "space=tensor"],
        ["method=ties", "space=module"],
        ["method=dare_ties", "space=model"],
        ["method=ties_frozen", "space=chunk", "space.n=2"],
    ],
    ids=" ".join,
)
def test_recipes_of_other_groups_and_methods(
    chosen: list[str], sources: list[str], problem: Problem, tmp_path: Path
) -> None:
    """A recipe scores as in a search over its own space, and under the same name in the cache."""
    other_settings = settings_of(*sources, *chosen, f"model.cache={tmp_path / 'cache'}")
    other = build_problem(other_settings, Reporter())
    x = np.random.default_rng(1).uniform(other.space.low, other.space.high)
    fitnesses = {split: live_fitness(other, items) for split, items in other.items.items()}
    judge = Judge(other, SerialScorer(other, fitnesses), make_subsets(other), Interrupt())
    expected = judge.merged(other.space.decode(x), "report").scores()
    (tmp_path / "recipe.yaml").write_text(recipe_of(under(other, other_settings), other.space.decode(x)).to_yaml())
    models = {"it": Model("recipe", tmp_path / "recipe.yaml")}
    for cache in (tmp_path, tmp_path / "fresh"):
        settings = elsewhere(settings_of(*sources), cache)
        result = evaluate(under(problem, settings), models, "report", Reporter())
        assert result.models["it"].tasks == {task: scores["accuracy"] for task, scores in expected.items()}
        assert len(remembered(settings)) == 1
        assert is_base(problem)


def test_a_recipe_of_models_themselves_is_the_same_bits_under_any_method(
    sources: list[str], problem: Problem, tmp_path: Path
) -> None:
    """An average is of the experts as they are, also where a search adds task vectors."""
    settings = settings_of(*sources, "method=average", f"model.cache={tmp_path / 'cache'}")
    other = build_problem(settings, Reporter())

    def seen(of: Problem) -> dict[str, torch.Tensor]:
        return {name: of.live.model.get_parameter(name).detach().clone() for name in of.vectors.parameters}

    weights = other.space.constant(np.array([0.3, 0.9, 0.5]))
    other.merger.apply(weights)
    (tmp_path / "recipe.yaml").write_text(recipe_of(under(other, settings), weights).to_yaml())
    found = dict[str, torch.Tensor]()
    contender = of_recipe(tmp_path / "recipe.yaml", under(problem, settings_of(*sources)))
    contender.score(lambda ids: found.update(seen(problem)), {})
    assert all(torch.equal(found[name], tensor) for name, tensor in seen(other).items())
    assert is_base(problem)


def test_a_recipe_that_was_scored_in_another_dtype(sources: list[str], problem: Problem, tmp_path: Path) -> None:
    recipe = recipe_of(under(problem, settings_of(*sources)), problem.space.constant(np.array([0.7, 0.0, 0.4])))
    assert recipe.dtype == "float32"
    (tmp_path / "it.yaml").write_text(replace(recipe, dtype="bfloat16").to_yaml())
    message = r"was scored in bfloat16, and transformers loads the base in float32: .*\"dtype\": \"bfloat16\" in .*"
    with pytest.raises(ConfigError, match=message + r"base/config\.json"):
        evaluate(
            under(problem, settings_of(*sources)), {"it": Model("recipe", tmp_path / "it.yaml")}, "report", Reporter()
        )


def test_a_recipe_of_fewer_experts_under_other_names(sources: list[str], problem: Problem, tmp_path: Path) -> None:
    coefficients = problem.space.constant(np.array([0.7, 0.0, 0.4]))
    whole = recipe_of(under(problem, settings_of(*sources)), coefficients)
    names = {"first": "animals", "second": "metals"}
    part = replace(
        whole,
        experts={new: whole.experts[old] for new, old in names.items()},
        coefficients={
            "weight": {
                g: {new: row[old] for new, old in names.items()} for g, row in whole.coefficients["weight"].items()
            }
        },
    )
    for name, recipe in {"whole": whole, "part": part}.items():
        (tmp_path / f"{name}.yaml").write_text(recipe.to_yaml())
    models = {name: Model("recipe", tmp_path / f"{name}.yaml") for name in ("whole", "part")}
    result = evaluate(under(problem, settings_of(*sources)), models, "report", Reporter())
    assert result.models["part"] == result.models["whole"]
    assert result.paired["part"].diff == 0


OTHER = Source("their/model", "00" * 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: replace(r, base=OTHER),
            r"recipe\.yaml belongs to other models: .* hash of its base \(their/model\)",
        ),
        (
            lambda r: replace(r, experts={**r.experts, "trees": OTHER}),
            r"hash of its expert trees \(their/model\); here",
        ),
        (lambda r: replace(r, auto_class="AutoModelForCausalLM"), r"write model\.auto_class=AutoModelForCausalLM"),
        (lambda r: replace(r, granularity="tensor"), r"recipe\.yaml: recipe in coefficients\.weight"),
        (lambda r: replace(r, method={"name": "liner"}), r"recipe\.yaml: recipe: Unknown method 'liner'.*'linear'"),
        (lambda r: replace(r, method={"name": "ties"}), "needs weight and density"),
    ],
    ids=["base", "expert", "class", "groups", "method", "variables"],
)
def test_a_recipe_that_does_not_fit_is_refused_before_anything_is_scored(
    change: Callable[[Recipe], Recipe], message: str, sources: list[str], problem: Problem, tmp_path: Path
) -> None:
    settings = elsewhere(settings_of(*sources), tmp_path)
    recipe = change(recipe_of(under(problem, settings), problem.space.constant(np.full(3, 0.5))))
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    models = {"base": Model("base"), "it": Model("recipe", tmp_path / "recipe.yaml")}
    with pytest.raises(ConfigError, match=message):
        evaluate(under(problem, settings), models, "report", Reporter())
    assert not remembered(settings)


def test_a_model_directory_scores_as_what_it_was_made_of(
    sources: list[str], problem: Problem, pico_suite: Suite, tmp_path: Path
) -> None:
    coefficients = problem.space.constant(np.array([0.3, 0.9, 0.6]))
    settings = settings_of(*sources)
    (tmp_path / "recipe.yaml").write_text(recipe_of(under(problem, settings), coefficients).to_yaml())
    problem.merger.apply(coefficients)
    problem.live.model.save_pretrained(tmp_path / "merged")
    problem.become(None)
    models = {
        "recipe": Model("recipe", tmp_path / "recipe.yaml"),
        "merged": Model("directory", tmp_path / "merged"),
        "trees": Model("expert", "trees"),
        "its directory": Model("directory", pico_suite.experts["trees"]),
        "experts": Model("experts"),
    }
    stream = Console(record=True, width=300)
    result = evaluate(under(problem, settings), models, "report", Reporter(stream)).models
    assert result["merged"] == result["recipe"]
    assert result["its directory"] == result["trees"] != result["merged"]
    assert result["trees"].tasks["trees"] == result["experts"].tasks["trees"]
    assert result["trees"].tasks["metals"] != result["experts"].tasks["metals"]
    (warning,) = [line for line in stream.export_text().splitlines() if "warning" in line]
    assert "merged holds no tokenizer, so it could not be compared with the base's" in warning
    assert is_base(problem)


def config(pico_suite: Suite, **changes: Any) -> BertConfig:
    return BertConfig.from_pretrained(pico_suite.base, **changes)


@pytest.mark.parametrize(
    ("changes", "message"), [({"intermediate_size": 24}, "has shape"), ({"num_hidden_layers": 1}, r"lacks encoder\.")]
)
def test_a_model_of_another_architecture_is_refused(
    changes: dict, message: str, sources: list[str], problem: Problem, pico_suite: Suite, tmp_path: Path
) -> None:
    pico(BertModel, config(pico_suite, **changes)).save_pretrained(tmp_path / "other")
    models = {"other": Model("directory", tmp_path / "other")}
    with pytest.raises(CheckpointError, match=message):
        evaluate(under(problem, settings_of(*sources)), models, "report", Reporter())


def test_what_is_odd_about_a_model_directory_is_said(
    sources: list[str], problem: Problem, pico_suite: Suite, tmp_path: Path
) -> None:
    pico(BertModel, config(pico_suite)).double().save_pretrained(tmp_path / "other")
    stream = Console(record=True, width=300)
    evaluate(
        under(problem, settings_of(*sources)),
        {"it": Model("directory", tmp_path / "other")},
        "report",
        Reporter(stream),
    )
    said = stream.export_text()
    assert "other was not tuned from this base: the cosine" in said
    assert "other is scored in float32, as the base is; loaded by itself it is in float64 (its dtype)" in said


@pytest.mark.parametrize(
    ("stored", "stated", "noted"),
    [
        (torch.bfloat16, "float32", None),
        (torch.float32, "bfloat16", "bfloat16"),
        (torch.bfloat16, None, "bfloat16"),
        (torch.float32, None, None),
    ],
)
def test_a_directory_is_told_apart_by_the_dtype_that_people_load(
    stored: torch.dtype,
    stated: str | None,
    noted: str | None,
    sources: list[str],
    problem: Problem,
    pico_suite: Suite,
    tmp_path: Path,
) -> None:
    """Its config decides, and not its files, as transformers has it."""
    pico(BertModel, config(pico_suite)).to(stored).save_pretrained(tmp_path / "it")
    written = json.loads((tmp_path / "it" / "config.json").read_text())
    (tmp_path / "it" / "config.json").write_text(json.dumps({**written, "dtype": stated}))
    assert BertModel.from_pretrained(tmp_path / "it").dtype == (getattr(torch, noted) if noted else torch.float32)
    stream = Console(record=True, width=300)
    of_directory(tmp_path / "it", under(problem, settings_of(*sources)), Reporter(stream))
    said = [line for line in stream.export_text().splitlines() if "is scored in" in line]
    assert len(said) == bool(noted)
    assert all(f"float32, as the base is; loaded by itself it is in {noted}" in line for line in said)


def test_experts_with_heads_of_their_own(own_classifiers: Path, tmp_path: Path) -> None:
    """A task is scored with the head of its own expert, whichever backbone runs; the directory of a whole classifier
    is that backbone."""
    tasks = ", ".join(f"{name}: {own_classifiers / name}.jsonl" for name in ("mood", "topic"))
    settings = settings_of(
        f"model.base={own_classifiers / 'base'}",
        f"model.experts=[{own_classifiers / 'mood'},{own_classifiers / 'topic'}]",
        f"fitness.tasks={{{tasks}}}",
        f"model.cache={tmp_path}",
        "model.device=cpu",
        "fitness.report_metric=log_probability",
    )
    problem = build_problem(settings, Reporter())
    models = {
        "mood": Model("expert", "mood"),
        "directory": Model("directory", own_classifiers / "mood"),
        "experts": Model("experts"),
        "base": Model("base"),
    }
    result = evaluate(under(problem, settings), models, "report", Reporter()).models
    assert result["directory"] == result["mood"]
    assert result["mood"].tasks["mood"] == result["experts"].tasks["mood"] != result["base"].tasks["mood"]
    assert result["mood"].tasks["topic"] not in (
        result["experts"].tasks["topic"],
        result["base"].tasks["topic"],
    )
    classifier = BertForSequenceClassification.from_pretrained(own_classifiers / "mood").eval()
    logs = []
    for item in problem.items["report"]["mood"]:
        with torch.inference_mode():
            logits = classifier(**problem.live.processor(item.text, return_tensors="pt")).logits
        logs.append(float(torch.log_softmax(logits, -1)[0, item.label]))
    assert result["mood"].tasks["mood"] == pytest.approx(np.mean(logs), abs=1e-6)
