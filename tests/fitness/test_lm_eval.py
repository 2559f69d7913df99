"""lm-eval on the live model: its own scores, item by item, and none of what it does when it is used carelessly."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.common.errors import ConfigError, SuiteError
from evomerge.fitness.lm_eval.harness import LmEval
from evomerge.fitness.sampling import Subset
from tests.kit.language import TASKS, documents, read, scored, simple_evaluate, together, write_jsonl, write_task
from tests.processes.command import write_loaded
from tests.processes.waiting import exit_code, forked

FEW = {"fewshot_config": {"samples": documents(6, seed=9)}}
BEST = {
    "choice": ("acc", "acc_norm", "exact_match"),
    "answer": ("acc", "minus_log_perplexity"),
    "generated": ("exact_match",),
}


@pytest.fixture(scope="module")
def tokenizer(language_family: Path) -> Any:
    return AutoTokenizer.from_pretrained(language_family / "base")


@pytest.fixture
def model(language_family: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(language_family / "base").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    return {name: write_task(folder, name, **({} if name == "rolling" else FEW)) for name in TASKS}


@pytest.mark.parametrize(
    ("fewshot", "chat"), [(None, False), (2, False), (2, True)], ids=["as it is", "few shots", "few shots as a chat"]
)
def test_scores_are_those_of_simple_evaluate_on_the_exported_model(
    language_family, tokenizer, model, paths, tmp_path, fewshot, chat
):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.1  # a model that no directory holds but the one it is exported to
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if fewshot:
        paths = {name: path for name, path in paths.items() if name != "rolling"}
    theirs = simple_evaluate(tmp_path, paths, num_fewshot=fewshot, apply_chat_template=chat)
    fitness, splits = read(paths, fewshot=fewshot, chat_template=chat)
    items = together(splits)
    prepared = fitness.prepare(tokenizer, items)
    outcome = fitness(model, prepared, {task: [item.id for item in chosen] for task, chosen in items.items()})
    for task in paths:
        ours = outcome.results[task]
        for position, item in enumerate(outcome.items[task]):
            query = prepared.queries[task, item]
            sample = theirs[task][query.document.number, "whole" if task == "generated" else "none"]
            assert [each.args for each in query.instances] == sample["arguments"]
            for metric in BEST.get(task, ()):
                if metric in ours:
                    assert ours[metric][position] == pytest.approx(sample[metric.removeprefix("minus_log_")], abs=1e-4)
            smooth = ours["log_probability"][position]
            if task == "choice":
                lls = np.array([response[0][0] for response in sample["resps"]])
                assert smooth == pytest.approx(lls[sample["target"]] - np.logaddexp.reduce(lls), abs=1e-4)
                assert ours["score"][position] == sample["acc"]
            if task == "answer":
                assert smooth == pytest.approx(sample["perplexity"] / len(sample["arguments"][0][1]), abs=1e-4)
            if task == "rolling":
                (ll, size) = sample["byte_perplexity"]
                assert smooth == pytest.approx(ll / size, abs=1e-4)
                assert ours["score"][position] == pytest.approx(ll / sample["word_perplexity"][1], abs=1e-3)
            if task == "generated":
                assert [each.resps[0] for each in query.instances] == sample["resps"][0]
    assert set(theirs) == set(outcome.results)


def test_the_metrics_of_single_documents_are_there_under_the_names_of_lm_eval(paths, tokenizer, model):
    fitness, splits = read(paths)
    assert fitness.metrics == ("log_probability", "score")  # what all four tasks have
    fitness, splits = read({"rolling": paths["rolling"]})
    assert fitness.metrics == (
        "log_probability",
        "score",
        "minus_log_word_perplexity",
        "minus_log_byte_perplexity",
        "minus_bits_per_byte",
    )
    results = scored(fitness, model, tokenizer, splits["search"]).results["rolling"]
    np.testing.assert_allclose(results["minus_bits_per_byte"], results["log_probability"] / math.log(2))
    np.testing.assert_allclose(results["minus_log_byte_perplexity"], results["log_probability"])
    assert (results["score"] == results["minus_log_word_perplexity"]).all()
    fitness, splits = read({"choice": paths["choice"]}, {"choice": {"metric": "brier_score"}})
    assert fitness.metrics == (
        "log_probability",
        "score",
        "acc",
        "acc_norm",
        "exact_match",
        "minus_brier_score",
    )  # no mcc
    results = scored(fitness, model, tokenizer, splits["search"]).results["choice"]
    assert ((results["score"] >= -2) & (results["score"] <= 0)).all()
    fitness, _ = read({"generated": paths["generated"]})
    assert fitness.metrics == ("log_probability", "score", "exact_match", "exact_match,word")  # no bleu


def test_the_length_of_what_is_generated_is_given_where_it_is_asked_for(paths, tokenizer, model):
    usual, splits = read({"choice": paths["choice"], "generated": paths["generated"]})
    assert usual.offers == {"generated": ("length",)}
    fitness = usual.offering(["length", "score"])
    assert "length" not in fitness.metrics  # which are those of all tasks
    assert fitness.identity() != usual.identity() == usual.offering(["score"]).identity()
    before, outcome = (scored(each, model, tokenizer, splits["search"]).results for each in (usual, fitness))
    assert outcome["generated"].keys() - before["generated"].keys() == {"length"}
    assert outcome["choice"].keys() == before["choice"].keys()
    prepared = fitness.prepare(tokenizer, splits["search"])
    ids = {"generated": [item.id for item in splits["search"]["generated"]]}
    lengths = fitness(model, prepared, ids).results["generated"]["length"]
    texts = [query.instances[0].resps[0] for query in fitness._ask(model, prepared, ids)["generated"]]
    assert lengths.tolist() == [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    assert 0 < lengths.max() <= 4  # its max_gen_toks
    alone, _ = read({"generated": paths["generated"]})
    assert alone.offering({"length"}).metrics == (*alone.metrics, "length")


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "acc_bytes"])
def test_the_most_probable_choice_is_the_one_that_the_tasks_own_measure_takes(tmp_path, tokenizer, model, metric):
    rows = [row | {"label": label} for row in documents(20) for label in range(4)]  # every choice is right once
    path = write_task(tmp_path, "choice", rows, metric_list=[{"metric": metric, "aggregation": "mean"}])
    fitness, splits = read({"choice": path})
    outcome = scored(fitness, model, tokenizer, items := together(splits))
    questions = [json.loads(item.text)["question"] for item in items["choice"]]
    smooth, score = (outcome.results["choice"][name] for name in ("log_probability", "score"))
    for question in set(questions):
        mine = [i for i, other in enumerate(questions) if other == question]
        assert np.logaddexp.reduce(smooth[mine]) == pytest.approx(0, abs=1e-6)
        assert score[mine].sum() == 1
        assert score[mine][np.argmax(smooth[mine])] == 1


def test_lm_evals_perplexity_of_a_whole_set_weighs_long_texts_more(paths, tokenizer, model):
    fitness, splits = read({"rolling": paths["rolling"]})
    outcome = scored(fitness, model, tokenizer, items := together(splits))
    words = np.array([len(json.loads(item.text)["text"].split()) for item in items["rolling"]])
    ours = outcome.results["rolling"]["minus_log_word_perplexity"]
    assert np.average(ours, weights=words) != pytest.approx(ours.mean(), abs=1e-3)


def test_an_item_scores_the_same_in_any_company(paths, tokenizer, model):
    fitness, splits = read(paths, batch_size=5)
    whole = scored(fitness, model, tokenizer, splits["search"])
    prepared = fitness.prepare(tokenizer, splits["search"])
    ids = Subset(splits["search"], 12, seed=3)(0)
    for chosen in (ids, {task: list(reversed(some)) for task, some in ids.items()}, {"choice": ids["choice"][:1]}):
        outcome = fitness(model, prepared, chosen)
        assert outcome.items == chosen
        for task, some in chosen.items():
            places = [whole.items[task].index(item) for item in some]
            for metric, values in outcome.results[task].items():
                np.testing.assert_allclose(values, whole.results[task][metric][places], atol=1e-4)


def test_the_same_model_scores_the_same_and_another_one_does_not(paths, tokenizer, model):
    fitness, splits = read(paths)
    prepared = fitness.prepare(tokenizer, splits["search"])
    ids = {task: [item.id for item in chosen] for task, chosen in splits["search"].items()}
    first = fitness(model, prepared, ids)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.5
    other = fitness(model, prepared, ids)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter /= 1.5
    again = fitness(model, prepared, ids)
    for task in ids:
        np.testing.assert_allclose(first.results[task]["log_probability"], again.results[task]["log_probability"], 1e-4)
        assert (first.results[task]["log_probability"] != other.results[task]["log_probability"]).all()
    assert first.forward_seconds is not None
    assert first.forward_seconds > 0


def test_requests_are_tokenised_and_batched_once(paths, tokenizer, model, monkeypatch):
    fitness, splits = read(paths)
    prepared = fitness.prepare(tokenizer, splits["search"])
    ids = Subset(splits["search"], 12, seed=3)(0)
    fitness(model, prepared, ids)
    plan, asked = prepared.plan, dict(prepared.queries)
    assert len(asked) == 12  # what is not scored is not built
    fitness(model, prepared, ids)
    assert prepared.plan is plan
    fitness(model, prepared, {"choice": ids["choice"]})
    assert all(prepared.queries[key] is query for key, query in asked.items())


def test_nothing_of_the_process_is_changed(paths, tokenizer, model):
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    before = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), dict(os.environ)]  # noqa: NPY002
    level = logging.getLogger("lm_eval").level
    fitness, splits = read(paths, fewshot=None)
    scored(fitness, model, tokenizer, splits["search"])
    after = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), dict(os.environ)]  # noqa: NPY002
    assert after == before
    assert logging.getLogger("lm_eval").level == level
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert tokenizer.pad_token is None


def test_a_head_that_its_config_calls_tied_but_is_not_stays_untied(paths, tokenizer, model):
    model.config.tie_word_embeddings = True  # HFLM would tie it when it is made of a live model
    head = model.lm_head.weight
    fitness, splits = read({"choice": paths["choice"], "generated": paths["generated"]})
    scored(fitness, model, tokenizer, splits["search"])
    assert model.lm_head.weight is head
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_importing_the_whole_package_does_not_import_lm_eval(tmp_path):
    with forked(write_loaded, tmp_path / "modules") as process:
        assert exit_code(process) == 0
    loaded = set((tmp_path / "modules").read_text().splitlines())
    assert "evomerge.fitness.lm_eval.harness" in loaded
    assert not {"lm_eval", "datasets"} & loaded


def test_without_lm_eval_it_says_what_to_install(paths, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.tasks", raising=False)
    with pytest.raises(ConfigError, match=r"lm_eval.* is not installed: pip install 'evomerge\[lm\]'"):
        read(paths)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "must be at least 1"),
        ({"fewshot": -1}, r"fitness\.fewshot=-1"),
        ({"max_gen_toks": 0}, r"fitness\.max_gen_toks=0: an answer has at least one token"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        LmEval(**settings)


def test_a_metric_that_no_document_has_is_refused(paths):
    with pytest.raises(ConfigError, match=r"metric is 'mcc'.*Did you mean 'acc'\?"):
        read({"choice": paths["choice"]}, {"choice": {"metric": "mcc"}})


def test_a_chat_template_that_is_not_there_is_refused(paths, tokenizer, model, language_family, tmp_path):
    bare = AutoTokenizer.from_pretrained(language_family / "base")
    bare.chat_template = None
    fitness, splits = read({"choice": paths["choice"]}, chat_template=True)
    with pytest.raises(ConfigError, match="has no chat template"):
        scored(fitness, model, bare, splits["search"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 4}, "the reference answer 4 is none of the 4 choices"),
        ({"choices": ["w1", "", "w2", "w3"]}, "has no tokens of its own|is empty"),
        ({"choices": ["w1 " * 2100, "w1", "w2", "w3"]}, "longer than the 2048 that the model takes"),
    ],
)
def test_a_document_that_cannot_be_asked_is_named(tmp_path, tokenizer, model, change, message):
    first, *rows = documents(30)  # lm-eval itself looks at the first document
    fitness, splits = read({"choice": write_task(tmp_path, "choice", [first, *(row | change for row in rows)])})
    splits["search"]["choice"] = [item for item in splits["search"]["choice"] if first["question"] not in item.text]
    with pytest.raises(SuiteError, match=rf"document \d+ of pico_choice: .*({message})"):
        scored(fitness, model, tokenizer, splits["search"])


def test_other_forms_of_choices_are_scored_as_lm_eval_scores_them(tmp_path, tokenizer, model, language_family):
    rows = [row | {"labels": [row["label"], (row["label"] + 1) % 4]} for row in documents(30)]
    within = {"doc_to_text": "label", "doc_to_target": " {{answer}}"}  # the choices are in the prompt
    means = {"aggregation": "mean", "higher_is_better": True}
    paths = {
        "alone": write_task(tmp_path, "alone", rows, like="choice", metric_list=[{"metric": "acc", **means}]),
        "several": write_task(tmp_path, "several", rows, like="choice", doc_to_target="{{labels}}", metric_list=None),
        "within": write_task(tmp_path, "within", rows, like="choice", **within, metric_list=None),
        "less": write_task(tmp_path, "less", rows, like="choice", metric_list=[{"metric": "acc_mutual_info", **means}]),
    }
    theirs = simple_evaluate(language_family / "base", paths)
    fitness, splits = read(paths)
    items = together(splits)
    prepared = fitness.prepare(tokenizer, items)
    outcome = fitness(model, prepared, {task: [item.id for item in chosen] for task, chosen in items.items()})
    for task, metric in (("alone", "acc"), ("several", "acc"), ("within", "acc"), ("less", "acc_mutual_info")):
        for item, score in zip(outcome.items[task], outcome.results[task]["score"], strict=True):
            query = prepared.queries[task, item]
            sample = theirs[task][query.document.number, "none"]
            assert [each.args for each in query.instances] == sample["arguments"]
            assert score == sample[metric]
    smooth = {
        task: dict(zip(outcome.items[task], outcome.results[task]["log_probability"], strict=True)) for task in paths
    }
    assert np.mean(list(smooth["several"].values())) > np.mean(list(smooth["alone"].values()))
    assert np.mean(list(smooth["less"].values())) == pytest.approx(np.mean(list(smooth["alone"].values())), abs=1e-4)


def test_rows_can_be_json_of_the_users_own(tmp_path, tokenizer, model):
    """Files are looked for beside the YAML as well as where the command runs."""
    path = write_task(tmp_path / "my", "choice")
    write_jsonl(tmp_path / "my" / "rows.jsonl", documents(30))
    text = path.read_text().replace(str(tmp_path / "my" / "choice.jsonl"), "rows.jsonl")
    path.write_text(text)
    _, splits = read({"choice": path})
    assert sum(len(items["choice"]) for items in splits.values()) == 30
