"""Weights of 16 bits, scored in float32: on a processor that is slow in 16 bits, or where the user says so."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import evomerge as em
from evomerge.cli.borrowed import settings_of
from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError
from evomerge.common.progress import Silent
from evomerge.models.computing import computed_in
from evomerge.models.live import live_module
from evomerge.problem import Problem
from evomerge.recipes.model import write_model
from evomerge.recipes.recipe import Recipe
from evomerge.runs.build import build_problem
from evomerge.runs.config import plain
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.runs.table import rescored_of
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.search.journal import read_log
from evomerge.selection.evaluation import Model, evaluate
from evomerge.selection.summary import Summary
from tests.kit.helpers import compose
from tests.kit.models import LLAMA, pico
from tests.kit.narrow import narrowed, processor
from tests.processes import api_search
from tests.processes.api_search import Net, tuned
from tests.processes.waiting import exit_code, forked

SLOW, FAST = 4.0, 0.4
SMALL = ("fitness.items=24", "fitness.select_items=30", "fitness.report_items=60", "searcher=random", "space=model")


@pytest.fixture(scope="module")
def suite(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return narrowed(pico_suite, tmp_path_factory.mktemp("narrow") / "suite")


@pytest.fixture(scope="module")
def settings(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    cache = tmp_path_factory.mktemp("cache")
    return ["model=pico", f"model.suite={suite}", f"model.cache={cache}", "model.device=cpu", "budget=6", *SMALL]


@pytest.fixture
def built(settings: list[str]) -> Callable[..., Problem]:
    return lambda *more: build_problem(plain(compose(*settings, *more)), Silent())


@pytest.fixture(scope="module")
def slow_run(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that began where 16 bits are slow."""
    path = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        processor(patch, SLOW)
        assert run_search(compose(*settings), path, Silent()) is not None
    return path


def header(path: Path) -> dict[str, Any]:
    return next(read_log(path / "trials.jsonl"))["identity"]


def values(problem: Problem) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in problem.live.model.named_parameters()}


def test_candidates_base_and_experts_hold_the_weights_of_a_search_in_bfloat16(built) -> None:
    wide, narrow = built("model.compute=float32"), built("model.compute=bfloat16")
    coefficients = narrow.space.decode(np.full(narrow.space.dim, 0.37))
    for act in (
        lambda problem: problem.merger.apply(coefficients),
        lambda problem: problem.become("trees"),
        lambda problem: problem.become(None),
    ):
        for problem in (wide, narrow):
            act(problem)
        ours, theirs = values(wide), values(narrow)
        assert {p.dtype for p in ours.values()} == {torch.float32}
        assert {p.dtype for p in theirs.values()} == {torch.bfloat16}
        assert all(torch.equal(ours[name], p.float()) for name, p in theirs.items())


def test_a_copy_in_the_checkpoints_dtype_scores_as_a_search_in_it(built) -> None:
    wide, narrow = built("model.compute=float32"), built("model.compute=bfloat16")
    ids = make_subsets(wide)["report"](0)
    coefficients = wide.space.decode(np.full(wide.space.dim, 0.6))
    scores = {}
    for name, problem in {"wide": wide, "narrow": narrow}.items():
        problem.merger.apply(coefficients)
        scores[name] = live_fitness(problem, problem.items["report"])(ids)
    copied = wide.live.as_written()
    theirs = dict(narrow.live.model.named_parameters())
    assert all(p.dtype == torch.bfloat16 and torch.equal(p, theirs[name]) for name, p in copied.named_parameters())
    assert {name: b.dtype for name, b in copied.named_buffers()} == {
        name: b.dtype for name, b in narrow.live.model.named_buffers()
    }
    metric = "log_probability"
    far = [np.abs(scores["wide"].results[t][metric] - scores["narrow"].results[t][metric]).max() for t in ids]
    assert 0 < max(far) < 0.2  # another arithmetic, the same weights


def test_auto_is_what_is_fast_here(built, monkeypatch) -> None:
    for ratio, dtype in ((SLOW, torch.float32), (FAST, torch.bfloat16), (1.1, torch.bfloat16)):
        processor(monkeypatch, ratio)
        live = built().live
        assert next(live.model.parameters()).dtype == dtype
        assert live.dtype == torch.bfloat16
        assert f"{ratio:.1f} times as long as in float32" in live.why


def test_a_float32_checkpoint_is_computed_in_float32(problem: Problem) -> None:
    assert problem.live.compute is None
    assert problem.live.why == ""
    assert "compute" not in problem.contents


@pytest.mark.parametrize("compute", ["float16", "bfloat16"])
def test_a_dtype_that_does_not_hold_the_weights_is_refused(pico_suite, tmp_path, compute) -> None:
    config = compose("model=pico", f"model.suite={pico_suite.path}", f"model.compute={compute}")
    with pytest.raises(ConfigError, match=f"{compute} cannot hold the weights of this base, which are float32"):
        run_search(config, tmp_path, Silent())


def test_a_dtype_that_there_is_not(settings, tmp_path) -> None:
    with pytest.raises(ConfigError, match="Unknown choice 'bfloat': did you mean 'bfloat16'"):
        run_search(compose(*settings, "model.compute=bfloat"), tmp_path, Silent())
    net = Net()
    with pytest.raises(ConfigError, match="Unknown choice 'half'"):
        em.Family(net, red=tuned(net, 1), compute="half")


def test_the_header_the_settings_and_the_recipe_say_it(slow_run, settings, tmp_path, monkeypatch, capsys) -> None:
    assert header(slow_run)["compute"] == "float32"
    assert "  compute: float32\n" in (slow_run / "config.yaml").read_text()
    recipe = Recipe.from_yaml((slow_run / "recipe.yaml").read_text())
    assert (recipe.dtype, recipe.compute) == ("bfloat16", "float32")
    processor(monkeypatch, SLOW)
    run_search(compose(*settings, "budget=3"), tmp_path / "slow", Reporter())
    said = capsys.readouterr()
    text = "weights rounded to bfloat16, scored in float32"
    assert f"compute  {text}: here a product in bfloat16 takes 4.0 times as long as in float32" in said.err + said.out
    processor(monkeypatch, FAST)
    run_search(compose(*settings, "budget=3"), tmp_path / "fast", Reporter())
    said = capsys.readouterr()
    assert "compute  bfloat16: here a product in bfloat16 takes 0.4 times" in said.err + said.out
    assert "compute" not in header(tmp_path / "fast")
    assert "compute:" not in (tmp_path / "fast" / "recipe.yaml").read_text()


def test_the_merge_that_is_written_is_the_one_that_was_scored(slow_run, built, tmp_path) -> None:
    recipe = Recipe.from_yaml((slow_run / "recipe.yaml").read_text())
    out = write_model(recipe, slow_run, tmp_path / "out", reporter=Silent())
    wide = built("model.compute=float32")
    wide.merger.apply(
        {v: np.array([list(row.values()) for row in rows.values()]) for v, rows in recipe.coefficients.items()}
    )
    live = values(wide)
    written = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert all(torch.equal(live[wide.vectors.base.names[key]], tensor.float()) for key, tensor in written.items())
    card = (out / "README.md").read_text()
    assert "weights rounded to bfloat16, scored in float32" in card
    assert "winner in bfloat16 − winner: " in card


def test_the_winner_is_scored_in_the_checkpoints_dtype_as_well(slow_run, settings, tmp_path, monkeypatch) -> None:
    summary = Summary.from_json((slow_run / "summary.json").read_text())
    again = summary.rescored
    assert again is not None
    assert again.score is not None
    assert again.paired is not None
    assert (again.dtype, again.compute, again.error) == ("bfloat16", "float32", "")
    assert again.paired.diff == pytest.approx(again.score.mean - summary.winner.mean)
    assert again.paired.se is not None
    (said,) = rescored_of(summary)
    assert said.startswith("Weights rounded to bfloat16, scored in float32. In bfloat16 the winner has ")
    assert em.load(slow_run).report(tmp_path / "page.html").read_text().count(said.replace("+", "+")) == 1
    assert Summary.from_json(summary.to_json()) == summary
    assert json.loads(summary.to_json())["rescored"]["paired"]["diff"] == again.paired.diff

    def fails(self):
        raise RuntimeError("no room")

    monkeypatch.setattr("evomerge.models.live.LiveModel.as_written", fails)
    processor(monkeypatch, SLOW)
    other = run_search(compose(*settings, f"model.cache={tmp_path / 'cache'}"), tmp_path / "run", Silent())
    assert other is not None
    assert other.rescored is not None
    assert other.rescored.error == "RuntimeError: no room"
    assert other.report == summary.report
    assert "has no score in bfloat16" in rescored_of(other)[0]


def test_what_is_remembered_is_that_of_a_search_in_bfloat16(slow_run, settings) -> None:
    """The winner in the dtype of the checkpoint has the number that a search in it finds, and finds it remembered."""
    again = Summary.from_json((slow_run / "summary.json").read_text()).rescored
    assert again is not None
    result = em.load(slow_run)
    found = em.evaluate(result, "base", split="report")
    name = f"{next(iter(found.models))} in bfloat16"
    assert list(found.models) == ["winner", "base", name]
    assert found.models[name] == again.score
    assert found.paired[name] == again.paired


def test_what_is_kept_is_said_in_the_checkpoints_dtype_as_well(built) -> None:
    problem = built("model.compute=float32", "objective.forget=[trees]", "space.bounds={weight: [-1, 0]}")
    found = evaluate(problem, {"base": Model("base")}, "select", Silent())
    assert found.forgetting is not None
    assert set(found.forgetting.models) == set(found.models) == {"base", "base in bfloat16"}


def test_the_gradient_is_that_of_the_same_weights(built) -> None:
    gradients = {}
    for compute in ("float32", "bfloat16"):
        problem = built(f"model.compute={compute}")
        problem.merger.apply(problem.space.constant(0.5))
        tokens = torch.tensor([[2, 7, 9, 3]])
        output = lambda: problem.live.model(input_ids=tokens).last_hidden_state.float().square().sum()  # noqa: B023, E731
        gradients[compute] = problem.merger.gradient(output() for _ in range(1))["weight"]
    assert np.abs(gradients["float32"]).max() > 0
    far = np.abs(gradients["float32"] - gradients["bfloat16"]).max()
    assert far < 0.1 * np.abs(gradients["float32"]).max()


def test_a_fitness_that_needs_the_checkpoints_dtype_is_told(settings, tmp_path, monkeypatch) -> None:
    def fails(self, *args):
        if next(self.model.parameters()).dtype == torch.float32:
            raise RuntimeError("expected BFloat16 but found Float")

    monkeypatch.setattr(LiveFitness, "__call__", fails)
    text = r"fails on the base in float32 \(model.compute=bfloat16 computes as its files are\)"
    with pytest.raises(ConfigError, match=text):
        run_search(compose(*settings, "model.compute=float32"), tmp_path, Silent())


def test_the_recipe_alone_says_it_to_evaluate(slow_run, tmp_path) -> None:
    recipe = tmp_path / "winner.yaml"
    text = (slow_run / "recipe.yaml").read_text()
    recipe.write_text(text)
    assert settings_of([], [str(recipe)], Reporter())["model"]["compute"] == "float32"
    assert settings_of(["model.compute=auto"], [str(recipe)], Reporter())["model"]["compute"] == "auto"
    recipe.write_text(text.replace("compute: float32\n", ""))
    assert settings_of([], [str(recipe)], Reporter())["model"]["compute"] == "bfloat16"


def test_a_config_that_says_another_dtype_than_the_model_has() -> None:
    module: Any = pico(LlamaForCausalLM, LLAMA).float()
    module.config.dtype = torch.bfloat16
    live = computed_in(live_module(module), "float32")
    assert live.compute is None
    assert not live.narrow


def test_what_is_finer_already_and_what_is_shared_stays_so() -> None:
    """Parameters in float64, buffers that two modules share, whole numbers."""
    module = Net().to(torch.bfloat16)
    module.layers[0].weight.data = module.layers[0].weight.data.double()
    module.register_buffer("scale", torch.ones(3, dtype=torch.bfloat16))
    module.head.register_buffer("scale", module.scale)
    module.register_buffer("seen", torch.tensor(3))
    live = computed_in(live_module(module), "float32")
    found = {name: tensor.dtype for name, tensor in live.tensors().items()}
    assert found.pop("layers.0.weight") == torch.float64
    assert found.pop("seen") == torch.int64
    assert set(found.values()) == {torch.float32}
    assert live.model.scale is live.model.head.scale
    assert live.dtypes == {name: p.dtype for name, p in module.named_parameters()}
    copied = live.as_written()
    assert copied.scale is copied.head.scale
    assert {n: t.dtype for n, t in copied.state_dict().items()} == {n: t.dtype for n, t in module.state_dict().items()}
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in copied.state_dict().items())
    assert next(live.model.parameters()).dtype == torch.float32  # the copy is a copy


def test_a_run_goes_on_in_what_it_began_with(slow_run, settings, monkeypatch, capsys) -> None:
    processor(monkeypatch, FAST)
    before = (slow_run / "trials.jsonl").read_bytes()
    assert run_search(compose(*settings, "budget=9"), slow_run, Reporter()) is not None
    said = capsys.readouterr()
    assert "scored in float32, as this run began, although bfloat16 is faster on this machine" in said.err + said.out
    after = (slow_run / "trials.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(after) > len(before)
    with pytest.raises(ConfigError, match="computes in float32, and here it would go on in bfloat16"):
        run_search(compose(*settings, "budget=12", "model.compute=bfloat16"), slow_run, Silent())


def test_a_log_that_says_nothing_is_of_the_checkpoints_dtype(settings, tmp_path, monkeypatch) -> None:
    processor(monkeypatch, FAST)
    logs = {}
    for name in ("whole", "old"):
        run_search(compose(*settings, "budget=6" if name == "whole" else "budget=3"), tmp_path / name, Silent())
    config = tmp_path / "old" / "config.yaml"
    config.write_text(config.read_text().replace("  compute: bfloat16\n", ""))
    processor(monkeypatch, SLOW)
    run_search(compose(*settings, "budget=6"), tmp_path / "old", Silent())
    for name in ("whole", "old"):
        logs[name] = (tmp_path / name / "trials.jsonl").read_bytes()
    assert logs["old"] == logs["whole"]
    assert em.load(tmp_path / "old").problem.live.compute is None


def test_a_killed_search_goes_on_and_its_log_is_the_same(tmp_path) -> None:
    weights = (torch.bfloat16, "float32")
    with forked(api_search.run_and_die, tmp_path / "killed", 14, *weights) as process:
        assert exit_code(process) == -signal.SIGKILL
    before = (tmp_path / "killed" / "trials.jsonl").read_bytes()
    results = [api_search.run(tmp_path / name, *weights) for name in ("killed", "whole")]
    logs = [(tmp_path / name / "trials.jsonl").read_bytes() for name in ("killed", "whole")]
    assert logs[0] == logs[1]
    assert logs[0].startswith(before)
    assert 2 < before.count(b"\n") < logs[0].count(b"\n")
    assert header(tmp_path / "whole")["compute"] == "float32"
    assert "Weights rounded to bfloat16, scored in float32." in str(results[0])
    saved = results[0].save(tmp_path / "merged")
    assert {tensor.dtype for tensor in load_file(saved / "model.safetensors").values()} == {torch.bfloat16}
    with pytest.raises(ConfigError, match=r"Family\(..., compute='float32'\)"):
        api_search.run(tmp_path / "whole", torch.bfloat16, "bfloat16")
