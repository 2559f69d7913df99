"""Floating buffers of a merge, the running statistics of batch norm: the base's, the experts' mean, or taken anew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

import evomerge as em
from evomerge.cli.progress import Reporter
from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.fitness.command import Command
from evomerge.fitness.custom import Custom
from evomerge.fitness.items import read_items
from evomerge.recipes.buffers import keep_buffers
from evomerge.recipes.recipe import Recipe
from evomerge.runs.build import build_problem, recalibrate
from evomerge.runs.config import plain
from evomerge.runs.run import run_search
from evomerge.selection.contenders import of_recipe
from evomerge.selection.evaluation import Model, evaluate
from evomerge.space.named import array_coefficients
from tests.kit.helpers import compose
from tests.kit.language import write_jsonl
from tests.kit.merging import EXPERTS, save_family, write
from tests.kit.models import pico

SIZES: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 4}
CONFIG = ResNetConfig(layer_type="basic", **SIZES)
SCORE = """
import torch

def score(model, items):
    inputs = torch.stack([torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(int(i.text))) for i in items])
    said = model(pixel_values=inputs)
    return said.logits.log_softmax(-1)[range(len(items)), [i.label % 4 for i in items]].tolist()
"""


def with_statistics(path: Path, seed: int) -> None:
    """Give the files of a model statistics of its own."""
    from safetensors.torch import save_file

    tensors, generator = load_file(path / "model.safetensors"), torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if "running_" in name:
            drawn = torch.rand(tensor.shape, generator=generator)
            tensors[name] = drawn + 0.5 if "var" in name else drawn - 0.5
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico ResNet, two experts, and items that a function makes images of."""
    path = tmp_path_factory.mktemp("resnet")
    model = pico(ResNetForImageClassification, CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(0.3).add_(1.0 if "normalization.weight" in name else 0.0)
    save_family(path, model, experts=2, frozen="nothing")
    for seed, name in enumerate(("base", *EXPERTS[:2])):
        with_statistics(path / name, seed)
    write_jsonl(path / "items.jsonl", [{"text": str(i), "label": i % 4} for i in range(60)])
    (path / "mine.py").write_text(SCORE)
    return path


def settings(family: Path, tmp_path: Path, *more: str) -> Any:
    return compose(
        f"model.base={family}/base",
        f"model.experts=[{family}/red,{family}/green]",
        f"model.cache={tmp_path / 'cache'}",
        "model.auto_class=AutoModelForImageClassification",
        "model.device=cpu",
        "fitness=custom",
        f"fitness.function={family}/mine.py:score",
        f"fitness.tasks={{it: {family}/items.jsonl}}",
        "fitness.items=8",
        "space=model",
        "searcher=random",
        "budget=3",
        *more,
    )


def means(model: nn.Module, family: Path) -> float:
    """The score of a model on the report items, by itself."""
    names: dict[str, Any] = {}
    exec(SCORE, names)
    items = read_items(family / "items.jsonl", "report")
    with torch.inference_mode():
        return sum(names["score"](model.eval(), items)) / len(items)


def statistics(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "running_" in name}


@pytest.mark.parametrize("buffers", ["base", "average", "recalibrate"])
def test_the_written_directory_gives_what_was_scored(family, tmp_path, buffers):
    given = settings(family, tmp_path, f"model.buffers={buffers}", "model.buffer_items=6")
    summary = run_search(given, tmp_path / "run", Reporter())
    assert summary is not None
    recipe = Recipe.from_yaml((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe.buffers.get("name", "base") == buffers
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    merged = write(recipe, tmp_path / "run", tmp_path / "merged")
    live = AutoModelForImageClassification.from_pretrained(merged)
    assert means(live, family) == pytest.approx(summary.winner.mean, abs=1e-5)
    theirs = [statistics(load_file(family / name / "model.safetensors")) for name in ("base", "red", "green")]
    ours = statistics(load_file(merged / "model.safetensors"))
    expected = {"base": theirs[0], "average": {name: (theirs[1][name] + theirs[2][name]) / 2 for name in ours}}
    for name, tensor in expected.get(buffers, {}).items():
        torch.testing.assert_close(ours[name], tensor)
    again = write(recipe, merged, tmp_path / "again")  # what was handed over is enough, with the sources
    assert (again / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()
    loaded = em.load(tmp_path / "run").model
    assert means(loaded, family) == pytest.approx(summary.winner.mean, abs=1e-5)
    assert means(live, family) != means(AutoModelForImageClassification.from_pretrained(family / "base"), family)


def test_statistics_are_those_of_one_pass_and_of_each_candidate(family, tmp_path):
    """The mean over batches of their means and unbiased variances; afterwards the layers are as they were."""
    given = plain(settings(family, tmp_path, "model.buffers=recalibrate", "model.buffer_items=6"))
    problem = build_problem(given, Reporter())
    model, norms, hooks = problem.live.model, {}, []
    problem.merger.apply(problem.space.constant(0.4))
    first = statistics({name: buffer.clone() for name, buffer in model.named_buffers()})
    for name, part in model.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            assert (part.momentum, part.training) == (0.1, False)
            hooks.append(part.register_forward_hook(lambda _, args, said, name=name: norms.update({name: args[0]})))
            part.train()
    problem.fitness(model, problem.fitness.prepare(None, problem.items["search"]), problem.calibration)
    for hook in hooks:
        hook.remove()
    for name, seen in norms.items():
        torch.testing.assert_close(first[f"{name}.running_mean"], seen.mean((0, 2, 3)))
        torch.testing.assert_close(first[f"{name}.running_var"], seen.var((0, 2, 3)))
    assert sum(map(len, problem.calibration.values())) == 6
    model.eval()
    problem.merger.apply(problem.space.constant(0.9))
    other = dict(model.named_buffers())
    assert not all(torch.equal(first[name], other[name]) for name in first)
    problem.merger.apply(problem.space.constant(0.4))
    assert all(torch.equal(first[name], other[name]) for name in first)
    problem.merger.restore()
    own = load_file(family / "base" / "model.safetensors")
    assert all(torch.equal(own[name], other[name]) for name in first)
    problem.become("red")
    own = load_file(family / "red" / "model.safetensors")
    assert all(torch.equal(own[name], other[name]) for name in first)


def test_where_the_base_s_are_taken_and_others_differ_it_is_said(family, tmp_path):
    problem = build_problem(plain(settings(family, tmp_path)), Reporter())
    said = [text for text in problem.warnings if "running_mean" in text]
    assert len(said) == 2
    assert all(text.endswith("the base's stay unless you write model.buffers=average") for text in said)


def test_they_are_part_of_what_is_searched(family, tmp_path):
    def contents(*more: str) -> str:
        return json.dumps(build_problem(plain(settings(family, tmp_path, *more)), Reporter()).contents)

    kinds = [(), ("model.buffers=average",), ("model.buffers=recalibrate",)]
    found = [contents(*more) for more in (*kinds, ("model.buffers=recalibrate", "model.buffer_items=5"))]
    assert len(set(found)) == 4
    assert contents("model.buffer_items=5") == found[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model.buffers=mean"], "model.buffers: Unknown choice 'mean'"),
        (["model.buffers=recalibrate", "model.buffer_items=0"], "statistics need at least one item"),
    ],
)
def test_what_is_refused(family, tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        run_search(settings(family, tmp_path, "model.buffers=recalibrate", *more), tmp_path / "run", Reporter())


def test_a_command_cannot_take_statistics(family, tmp_path):
    problem = build_problem(plain(settings(family, tmp_path)), Reporter())
    with pytest.raises(ConfigError, match="runs the live model with the fitness, and a command does not run it"):
        recalibrate(replace(problem, fitness=Command("true {model} {items} {out}")))


def test_a_function_that_sets_the_mode_itself_cannot_take_statistics(family, tmp_path):
    (tmp_path / "mine.py").write_text(SCORE.replace("said =", "model.eval(); said ="))
    more = [f"fitness.function={tmp_path}/mine.py:score", "model.buffers=recalibrate"]
    problem = build_problem(plain(settings(family, tmp_path, *more)), Reporter())
    with pytest.raises(ConfigError, match=r"did not run .* in training mode, so it has no statistics"):
        problem.merger.apply(problem.space.constant(0.4))


def test_a_recipe_without_its_statistics_is_refused(family, tmp_path):
    given = settings(family, tmp_path, "model.buffers=recalibrate")
    run_search(given, tmp_path / "run", Reporter())
    recipe, file = Recipe.from_yaml((tmp_path / "run" / "recipe.yaml").read_text()), tmp_path / "run" / "buffers"
    problem = build_problem(plain(given), Reporter())
    models = {"winner": Model("recipe", tmp_path / "run" / "recipe.yaml"), "base": Model("base")}
    found = evaluate(problem, models, "report", Reporter())
    assert found.models["winner"].mean != found.models["base"].mean
    with pytest.raises(ConfigError, match=r"was made with model.buffers=recalibrate, and candidates here have"):
        evaluate(build_problem(plain(settings(family, tmp_path)), Reporter()), models, "report", Reporter())
    (file / "statistics.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="has changed since the recipe was written"):
        write(recipe, tmp_path / "run", tmp_path / "merged")
    (file / "statistics.safetensors").unlink()
    with pytest.raises(ConfigError, match="statistics that were taken anew for this recipe are not at"):
        write(recipe, tmp_path / "run", tmp_path / "merged")


def test_a_recipe_with_scaled_weights_has_statistics_taken_anew(family, tmp_path):
    given = settings(family, tmp_path, "model.buffers=recalibrate", "model.buffer_items=6")
    run_search(given, tmp_path / "run", Reporter())
    problem, seen = build_problem(plain(given), Reporter()), []
    buffers = dict(problem.live.model.named_buffers())

    def look(ids: Any) -> Any:
        seen.append(statistics({name: buffer.clone() for name, buffer in buffers.items()}))

    for factor in (1.0, 0.5):
        of_recipe(tmp_path / "run" / "recipe.yaml", problem, factor).score(look, {})
    recipe = Recipe.from_yaml((tmp_path / "run" / "recipe.yaml").read_text())
    own = array_coefficients(recipe.coefficients, problem.space.groups, recipe.row_names)
    problem.merger.apply({**own, "weight": 0.5 * own["weight"]})
    assert all(torch.equal(buffers[name], tensor) for name, tensor in seen[1].items())
    assert not all(torch.equal(seen[0][name], tensor) for name, tensor in seen[1].items())


def test_a_recipe_is_scored_with_its_own_statistics(family, tmp_path, monkeypatch):
    """Whatever the settings would take, and whatever was remembered of a recipe with the same coefficients."""
    monkeypatch.setattr(Custom, "pure", True)

    def given(items: int) -> Any:
        more = ["model.buffers=recalibrate", f"model.buffer_items={items}", "fitness.items=4"]
        return settings(family, tmp_path, *more)

    few = run_search(given(4), tmp_path / "few", Reporter())
    assert few is not None
    models = {"few": Model("recipe", tmp_path / "few" / "recipe.yaml")}
    problem = build_problem(plain(given(20)), Reporter())
    assert evaluate(problem, models, "report", Reporter()).models["few"].mean == few.winner.mean
    (tmp_path / "many" / "buffers").mkdir(parents=True)
    recipe = Recipe.from_yaml((tmp_path / "few" / "recipe.yaml").read_text())
    problem.merger.apply(array_coefficients(recipe.coefficients, problem.space.groups, recipe.row_names))
    many = replace(recipe, buffers=keep_buffers(problem, tmp_path / "many"))
    (tmp_path / "many" / "recipe.yaml").write_text(many.to_yaml())
    problem.become(None)
    found = evaluate(
        problem, {**models, "many": Model("recipe", tmp_path / "many" / "recipe.yaml")}, "report", Reporter()
    )
    live = AutoModelForImageClassification.from_pretrained(write(many, tmp_path / "many", tmp_path / "merged"))
    assert found.models["many"].mean == pytest.approx(means(live, family), abs=1e-5)
    assert abs(found.models["many"].mean - found.models["few"].mean) > 1e-3


def test_a_recipe_of_fewer_experts_is_scored_with_the_mean_of_its_own(family, tmp_path):
    given = settings(family, tmp_path, "model.buffers=average")
    alone = settings(family, tmp_path, "model.buffers=average", f"model.experts=[{family}/red]")
    summary = run_search(alone, tmp_path / "run", Reporter())
    assert summary is not None
    found = evaluate(
        build_problem(plain(given), Reporter()),
        {"red": Model("recipe", tmp_path / "run" / "recipe.yaml")},
        "report",
        Reporter(),
    )
    assert found.models["red"].mean == summary.winner.mean


def test_a_module_of_ones_own(tmp_path):
    """Through the front door, where models are in memory."""

    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
            model(torch.randn(64, 4) * 3)
        return model

    def score(model, items):
        inputs = torch.stack([torch.full((4,), float(item.label)) + torch.arange(4) for item in items])
        return model(inputs)[:, 0].tolist()

    base = make(0)
    tuned = {name: tensor * 1.1 if tensor.is_floating_point() else tensor for name, tensor in base.state_dict().items()}
    items = em.items([{"text": str(i), "label": i} for i in range(40)])
    scores = {}
    for buffers in ("base", "average", "recalibrate"):
        candidate = em.Candidate(em.Family(base, tuned=tuned, buffers=buffers), space="model")
        result = em.search(candidate, score, {"it": items}, budget=3, run=tmp_path / buffers)
        out = load_file(result.save(tmp_path / f"{buffers}-merged") / "model.safetensors")
        again = make(0).eval()
        again.load_state_dict(out)
        torch.testing.assert_close(again(torch.ones(3, 4)), result.model(torch.ones(3, 4)), atol=1e-5, rtol=0)
        scores[buffers] = result.summary.winner.mean
    assert len(set(scores.values())) == 3
