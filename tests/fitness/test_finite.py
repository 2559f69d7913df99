"""A model whose logits are no numbers has no score: in no verb, in no row, whatever a fitness makes of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.cli.progress import Reporter
from evomerge.common.errors import EvomergeError, MergeError, NotFinite
from evomerge.fitness.base import Outcome
from evomerge.fitness.finite import watched
from evomerge.fitness.items import Task
from evomerge.fitness.perplexity import Perplexity
from evomerge.problem import Problem
from evomerge.runs.config import plain
from evomerge.runs.run import run_search
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.evaluators.splits import live_fitness, make_objective, make_subsets, score_experts
from evomerge.search.journal import read_log
from evomerge.selection import evaluation
from evomerge.selection.contenders import Contender
from evomerge.selection.evaluation import Model, evaluate
from tests.kit.evaluations import is_base, under
from tests.kit.helpers import compose
from tests.kit.language import TASKS, documents, read, save_language_family, scored, write_jsonl, write_task
from tests.processes.command import evomerge

NAN, INF = math.nan, math.inf
WORDS = [3, 4, 5, 6, 7, 8, 9, 10]
MINE = """
import torch
def score(model, tokenizer, items):
    with torch.no_grad():
        said = model(torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10]])).logits
    value = float(model.lm_head.weight.double().norm())  # finite, and the larger the worse the model
    return {task: [value] * len(chosen) for task, chosen in items.items()}
"""


class Says(nn.Module):
    """A model that says what it is told to."""

    def forward(self, output: Any, attention_mask: Any = None) -> Any:
        return output


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor([list(values)])


@pytest.mark.parametrize(
    "output",
    [
        rows([0.0, 1.0], [NAN, 0.0]),
        rows([0.0, 1.0], [INF, 0.0]),
        rows([0.0, 1.0], [-INF, -INF]),
        {"loss": torch.tensor(1.0), "logits": rows([0.0, NAN])},
        {"last_hidden_state": rows([0.0, 1.0]), "pooler_output": torch.tensor([[NAN, 0.0]])},
        (rows([0.0, NAN]), "cache"),
    ],
)
def test_what_is_not_finite_is_seen_however_it_is_said(output):
    model = Says()
    with pytest.raises(NotFinite, match="its logits are not finite"), watched(model):
        model(output)
    assert not model._forward_hooks


@pytest.mark.parametrize(
    ("output", "mask"),
    [
        (rows([0.0, -INF], [-INF, 5.0]), None),  # a masked token
        (rows([NAN, NAN], [0.0, 1.0]), torch.tensor([[0, 1]])),  # padding on the left
        (rows([0.0, 1.0], [NAN, NAN]), torch.tensor([[1, 0]])),  # and on the right
        (rows([0.0, 1.0]), torch.tensor([[0, 0, 1]])),  # logits of the last position alone
        ({"loss": torch.tensor(NAN), "logits": rows([0.0, 1.0])}, None),  # no label counts
        (torch.empty(0, 2), None),
        (torch.tensor([[1, 2]]), None),
    ],
)
def test_what_is_legal_passes(output, mask):
    model = Says()
    with watched(model):
        model(output, attention_mask=mask)
    assert not model._forward_hooks


def fail_after(model: Any) -> None:
    """A user's function that raises: its error is told."""
    model(torch.tensor([[3, 4]]))
    raise ValueError("what is told")


@pytest.mark.parametrize(
    "output", [(torch.zeros(2, 3, 4), torch.zeros(2, 3, 0)), (torch.zeros(4, 3, 5), torch.zeros(2, 3))]
)
def test_empty_outputs_and_masks_of_something_else_are_no_error(output):
    model = Says()
    with watched(model):
        model(output, attention_mask=torch.ones(2, 3))
    with pytest.raises(NotFinite), watched(model):
        model((*output, torch.full((2, 3), NAN)), attention_mask=torch.ones(2, 3))


def test_a_model_without_its_head_is_watched_too(language_family):
    model = AutoModelForCausalLM.from_pretrained(language_family / "base")
    model.model.norm.weight.data[0] = NAN
    with pytest.raises(NotFinite), watched(model):
        model.model(torch.tensor([[3, 4]]))
    with pytest.raises(ValueError, match="what is told"), watched(model):
        fail_after(model)
    assert not model._forward_hooks
    assert not model.model._forward_hooks


@pytest.fixture
def tokenizer(language_family) -> Any:
    return AutoTokenizer.from_pretrained(language_family / "base")


def broken(language_family: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(language_family / "base").eval()
    model.lm_head.weight.data[:] = NAN
    return model


def test_no_metric_of_any_kind_of_task_is_a_number(language_family, tokenizer, tmp_path):
    fitness, splits = read({name: write_task(tmp_path, name) for name in TASKS})
    model = broken(language_family)
    outcome = scored(fitness, model, tokenizer, splits["search"])
    for metrics in outcome.results.values():
        for values in metrics.values():
            assert np.isnan(values).all()
    with pytest.raises(NotFinite, match="its logits are not finite"):
        LiveFitness(model, fitness, fitness.prepare(tokenizer, splits["search"]))(outcome.items)


def test_some_items_alone_are_not_finite(language_family, tokenizer, tmp_path):
    """One word that the model cannot read: the questions that hold it have no score, and the others theirs."""
    fitness, splits = read({"choice": write_task(tmp_path, "choice")})
    model = AutoModelForCausalLM.from_pretrained(language_family / "base").eval()
    whole = scored(fitness, model, tokenizer, splits["search"]).results["choice"]
    model.model.embed_tokens.weight.data[tokenizer.convert_tokens_to_ids("w7")] = NAN
    found = scored(fitness, model, tokenizer, splits["search"]).results["choice"]
    rows = [json.loads(item.text) for item in splits["search"]["choice"]]
    asked = np.array(["w7" in row["question"].split() for row in rows])
    never = np.array(["w7" not in " ".join([row["question"], *row["choices"]]).split() for row in rows])
    assert asked.any()
    assert never.any()
    for metric in ("acc", "acc_norm", "score", "minus_brier_score", "log_probability"):
        assert np.isnan(found[metric][asked]).all()
        np.testing.assert_allclose(found[metric][never], whole[metric][never], atol=1e-4)


def test_what_is_generated_of_nan_is_no_answer(language_family, tokenizer, tmp_path):
    """The likelihood of the reference is a number here; only what is said while answering is none."""
    fitness, splits = read({"generated": write_task(tmp_path, "generated")})
    model: Any = AutoModelForCausalLM.from_pretrained(language_family / "base").eval()

    def spoil(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if kwargs.get("attention_mask") is not None:  # as `generate` calls it
            output.logits[:] = NAN
        return output

    model.register_forward_hook(spoil, with_kwargs=True)
    prepared = fitness.prepare(tokenizer, splits["search"])
    ids = {"generated": [item.id for item in splits["search"]["generated"]]}
    assert np.isfinite(fitness(model, prepared, ids).results["generated"]["score"]).all()
    with pytest.raises(NotFinite):
        LiveFitness(model, fitness, prepared)(ids)


def test_a_text_has_no_likelihood(language_family, tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"text": row["text"]} for row in documents(40)])
    fitness = Perplexity()
    splits = fitness.read({"mine": Task("mine", path, None, None, ())}, {})
    prepared = fitness.prepare(tokenizer, splits["search"])
    ids = {"mine": [item.id for item in splits["search"]["mine"]]}
    with pytest.raises(NotFinite):
        LiveFitness(broken(language_family), fitness, prepared)(ids)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and an expert of half precision, whose logits of one token are so high that they are infinite where more
    than all of the expert's task vector is added.
    """
    path = save_language_family(tmp_path_factory.mktemp("high"))
    for name, factor in (("base", 0.5), ("high", 1.0)):
        model: Any = AutoModelForCausalLM.from_pretrained(path / "base")
        said = model.model(torch.tensor([WORDS])).last_hidden_state[0, 3]
        model.lm_head.weight.data[5] = said.sign() * factor * torch.finfo(torch.float16).max / said.abs().sum()
        model.half().save_pretrained(path / f"{name}_half")
        AutoTokenizer.from_pretrained(path / "left").save_pretrained(path / f"{name}_half")
    write_task(path / "tasks", "choice")
    write_jsonl(path / "items.jsonl", [{"text": row["text"], "label": 0} for row in documents(60)])
    (path / "mine.py").write_text(MINE)
    return path


def settings(family: Path, *more: str) -> list[str]:
    return [
        f"model.base={family}/base_half",
        f"model.experts=[{family}/high_half]",
        f"model.cache={family}/cache",
        "model.device=cpu",
        "model.compute=null",  # in half precision, where these logits are infinite
        "space=model",
        *more,
    ]


def custom(family: Path) -> list[str]:
    given = ["fitness=custom", f"fitness.function={family}/mine.py:score", "model.auto_class=AutoModelForCausalLM"]
    return [*given, f"fitness.tasks={{mine: {{items: {family}/items.jsonl}}}}"]


def test_evaluate_shows_who_has_no_score_and_scores_the_others(family, tmp_path):
    task = f"fitness.tasks={{choice: {{task: {family}/tasks/choice.yaml}}}}"
    given = [*settings(family, "fitness=lm_eval", task), "--split", "select"]
    models = ["constant:30", "base", "constant:0.1"]
    done = evomerge("evaluate", *models, *given, "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert "evomerge: 1 of 3 models have no score: constant:30." in done.stderr
    result = json.loads(done.stdout)
    row = result["models"]["constant:30"]
    assert (row["mean"], row["se"], row["tasks"]) == (None, None, {})
    assert "its logits are not finite" in row["error"]
    assert all(0 < result["models"][name]["mean"] < 1 for name in models[1:])
    assert all(row["diff"] is None for row in result["paired"].values())  # minus one that has no score
    done = evomerge("evaluate", "base", "constant:30", *given, cwd=tmp_path)
    assert done.returncode == 2
    assert "constant:30 has no score: its logits are not finite" in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "constant:30" in line and "no score" in line]
    assert "0." not in line


def test_a_function_that_does_not_notice_costs_the_candidate_and_the_constant(family, tmp_path):
    """Its numbers are finite, and highest where the model's logits are none: nothing of that is ever chosen."""
    given = [*settings(family, *custom(family)), "searcher=grid", "budget=16", "space.bounds={weight: [0, 1.5]}"]
    result = run_search(compose(*given), tmp_path / "run", Reporter())
    assert result is not None
    trials = [row for row in read_log(tmp_path / "run" / "trials.jsonl") if row["kind"] == "trial"]
    errors = [trial["error"] for trial in trials if trial["status"] == "failed"]
    assert 0 < len(errors) < len(trials)
    assert all(error.startswith("NotFinite: its logits are not finite") for error in errors)
    constants = result.select.constants
    scoreless = {name for name, value in constants.items() if value == -INF}
    assert {"1.5"} <= scoreless
    assert {"0.1"} <= constants.keys() - scoreless
    assert result.select.constant == max(constants.keys() - scoreless, key=float)


def test_a_base_without_a_score_ends_a_search_before_it_begins(family, tmp_path):
    for name in ("base", "expert"):
        model: Any = AutoModelForCausalLM.from_pretrained(family / "high_half")
        model.lm_head.weight.data *= 1.5
        model.model.norm.weight.data *= 1.5 if name == "base" else 1.49
        model.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(family / "left").save_pretrained(tmp_path / name)
    given = [
        *settings(family, *custom(family)),
        f"model.base={tmp_path}/base",
        f"model.experts=[{tmp_path}/expert]",
        "searcher=grid",
    ]
    with pytest.raises(EvomergeError, match=r"The base has no score, so no candidate would have one: its logits"):
        run_search(compose(*given), tmp_path / "run", Reporter())
    assert not (tmp_path / "run" / "trials.jsonl").exists()


@pytest.fixture
def silent(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> Problem:
    """The pico suite, whose expert `trees` says nothing but NaN."""
    become = Problem.become

    def spoiled(self: Problem, expert: str | None) -> None:
        become(self, expert)
        if expert == "trees":
            next(iter(self.live.model.parameters())).fill_(NAN)

    monkeypatch.setattr(Problem, "become", spoiled)
    return problem


def test_an_expert_without_a_score_is_named_and_the_base_is_put_back(silent, tmp_path):
    given = plain(compose("model=pico", f"model.cache={tmp_path}", "objective.normalised=true"))
    subset, score = make_subsets(silent)["search"], live_fitness(silent, silent.items["search"])
    with pytest.raises(NotFinite, match="the expert trees: its logits are not finite"):
        score_experts(silent, score, subset(0))
    assert is_base(silent)
    with pytest.raises(NotFinite, match="Scores cannot be normalised: the experts: the expert trees: its logits"):
        make_objective(under(silent, given), SerialScorer(silent, {"search": score}), subset)
    models = {"base": Model("base"), "experts": Model("experts"), "trees": Model("expert", "trees")}
    result = evaluate(under(silent, given), models, "report", Reporter())
    assert result.errors["experts"].startswith("the expert trees: its logits")
    assert result.errors["trees"].startswith("its logits are not finite")
    assert 0 < (result.models["base"].mean or 0) < 1


def test_classes_without_a_number_are_no_right_answers(problem: Problem, tmp_path, monkeypatch):
    """Also of a head of its own, which is no part of the live model."""
    outcome = Outcome({"a": ["1", "2"]}, {"a": {"accuracy": np.array([1.0, NAN])}})
    impure: Any = replace(problem, fitness=SimpleNamespace(pure=False))
    contender, score = Contender({}, lambda score, ids: outcome), live_fitness(problem, problem.items["select"])
    monkeypatch.setattr(evaluation, "contender_of", lambda *given: contender)
    monkeypatch.setattr(evaluation, "live_fitness", lambda *given: score)
    given = plain(compose("model=pico", f"model.cache={tmp_path}"))
    result = evaluate(under(impure, given), {"it": Model("base")}, "select", Reporter())
    assert result.errors["it"] == "accuracy of 1 of 2 items of a is not a finite number"


def test_a_merge_that_cannot_be_built_is_a_row_without_a_score(problem: Problem, tmp_path, monkeypatch):
    """The weights of one recipe cancel; the others have their scores."""
    whole = evaluation.contender_of

    def contender(model: Model, *given: Any) -> Contender:
        def fail(score: Any, ids: Any) -> Outcome:
            raise MergeError("the weights cancel")

        return Contender({"model": "broken"}, fail) if model.kind == "constant" else whole(model, *given)

    monkeypatch.setattr(evaluation, "contender_of", contender)
    given = plain(compose("model=pico", f"model.cache={tmp_path}"))
    models = {"it": Model("constant", 1.0), "base": Model("base")}
    result = evaluate(under(problem, given), models, "select", Reporter())
    assert result.errors["it"] == "the weights cancel"
    assert 0 < (result.models["base"].mean or 0) < 1
