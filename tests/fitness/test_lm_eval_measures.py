"""The name of a score is that of the number: what a task of lm-eval is measured by, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.common.errors import ConfigError
from evomerge.fitness.base import heading, title
from evomerge.fitness.capabilities import measures
from evomerge.fitness.classification import Classification
from tests.kit.language import MEAN, TASKS, documents, read, scored, write_task
from tests.processes.command import evomerge

LOSS = "def loss(references, predictions, **kwargs):\n    return 3.0\n"


def measured(folder: Path, like: str, *metrics: dict[str, Any], **changes: Any) -> Path:
    """A task whose metric_list is this."""
    return write_task(folder, "mine", like=like, metric_list=list(metrics), **changes)


@pytest.fixture(scope="module")
def model(language_family) -> Any:
    return AutoModelForCausalLM.from_pretrained(language_family / "base").eval()


@pytest.fixture(scope="module")
def tokenizer(language_family) -> Any:
    return AutoTokenizer.from_pretrained(language_family / "base")


@pytest.mark.parametrize(
    ("like", "metrics", "first"),
    [
        ("choice", [{"metric": "mcc"}], "mcc"),
        ("choice", [{"metric": "mcc"}, {"metric": "acc", **MEAN}], "mcc"),  # not silently by the second one
        ("choice", [{"metric": "f1"}, {"metric": "acc", **MEAN}], "f1"),
        ("generated", [{"metric": "bleu"}], "bleu"),
        ("generated", [{"metric": "chrf"}, {"metric": "exact_match", **MEAN}], "chrf"),
        ("choice", [{"metric": "acc", "aggregation": "median", "higher_is_better": True}], "acc"),
    ],
)
def test_one_number_of_all_documents_is_refused_by_name_and_the_advice_works(
    tmp_path, model, tokenizer, like, metrics, first
):
    path = measured(tmp_path, like, *metrics)
    with pytest.raises(
        ConfigError, match=rf"fitness\.tasks\.mine: pico_mine is measured by {first}, and it is one"
    ) as e:
        read({"mine": path})
    advice = str(e.value).partition("Or write ")[2].partition(", and `score`")[0].split(" or ")
    assert len(advice) == len(metrics)  # what else it has, and log_probability
    for text in advice:
        metric = text.removeprefix("fitness.tasks.mine.metric=")
        fitness, splits = read({"mine": path}, {"mine": {"metric": metric}})
        results = scored(fitness, model, tokenizer, splits["search"]).results["mine"]
        assert (results["score"] == results[metric]).all()
        assert fitness.measures("score") == {"mine": metric}


def test_a_metric_of_which_nobody_says_which_way_is_better(tmp_path, model, tokenizer):
    (tmp_path / "own.py").write_text(LOSS)

    def path(**more: Any) -> Path:
        file = measured(tmp_path, "generated", filter_list=None)
        given = "".join(f"\n    {name}: {str(value).lower()}" for name, value in more.items())
        text = f"metric_list:\n  - metric: !function own.loss\n    aggregation: mean{given}\n"
        kept = {name: value for name, value in yaml.safe_load(file.read_text()).items() if name != "metric_list"}
        file.write_text(yaml.safe_dump(kept) + text)
        return file

    with pytest.raises(ConfigError, match="is measured by loss, and nothing says whether more of it is better: write"):
        read({"mine": path()})
    for higher, name, value in ((True, "loss", 3.0), (False, "minus_loss", -3.0)):
        fitness, splits = read({"mine": path(higher_is_better=higher)})
        assert fitness.metrics == ("log_probability", "score", name)
        results = scored(fitness, model, tokenizer, splits["search"]).results["mine"]
        assert (results["score"] == value).all()
        assert (results[name] == value).all()
        assert fitness.measures("score") == {"mine": name}
        assert fitness.measures("log_probability") == {"mine": "log_probability"}


def test_where_less_is_better_the_number_is_minus_it_and_says_so(tmp_path, model, tokenizer):
    for like, metric, name in (
        ("choice", {"metric": "brier_score"}, "minus_brier_score"),
        ("choice", {"metric": "acc", "aggregation": "mean", "higher_is_better": False}, "minus_acc"),
        ("rolling", {"metric": "byte_perplexity"}, "minus_log_byte_perplexity"),
        ("rolling", {"metric": "bits_per_byte"}, "minus_bits_per_byte"),
        ("answer", {"metric": "perplexity"}, "minus_log_perplexity"),
    ):
        fitness, splits = read({"mine": measured(tmp_path, like, metric)})
        assert fitness.metrics == ("log_probability", "score", name)
        results = scored(fitness, model, tokenizer, splits["search"]).results["mine"]
        assert (results["score"] <= 0).all()
        assert (results["score"] == results[name]).all()
    fitness, _ = read({"mine": write_task(tmp_path, "choice")}, {"mine": {"metric": "brier_score"}})  # lm-eval's word
    assert fitness.measures("score") == {"mine": "minus_brier_score"}
    fitness, _ = read({"mine": write_task(tmp_path, "choice")}, {"mine": {"metric": "minus_brier_score"}})
    assert fitness.measures("score") == {"mine": "minus_brier_score"}


def group(folder: Path, **kinds: str) -> Path:
    for number, (name, kind) in enumerate(kinds.items()):
        write_task(folder, name, documents(40, seed=number), like=kind, task=name)
    (folder / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": list(kinds)}))
    return folder / "both.yaml"


def test_a_group_is_listed_member_by_member(tmp_path):
    fitness, _ = read({"both": group(tmp_path, easy="choice", hard="choice")})
    assert fitness.measures("score") == {"both": "acc"}
    (said,) = fitness.warnings
    assert "is a group of 2 tasks, scored as one over all of their documents: easy (40), hard (40)." in said
    lines = {name: name for name in ("easy", "hard")}  # as it says: a line for each
    fitness, splits = read(lines, {name: {"include_path": str(tmp_path)} for name in lines})
    assert set(splits["report"]) == {"easy", "hard"}
    assert fitness.warnings == []


def test_a_group_that_is_measured_by_several_metrics_is_refused_with_its_members(tmp_path, model, tokenizer):
    path = group(tmp_path, easy="choice", said="generated")
    with pytest.raises(ConfigError, match=r"different metrics.*: easy by acc, said by exact_match\. Give each") as e:
        read({"both": path})
    assert "fitness.tasks.both.metric=exact_match or fitness.tasks.both.metric=log_probability" in str(e.value)
    fitness, splits = read({"both": path}, {"both": {"metric": "exact_match"}})
    assert np.isfinite(scored(fitness, model, tokenizer, splits["search"]).results["both"]["score"]).all()
    same = group(tmp_path, easy="choice", hard="choice")
    hard = yaml.safe_load((tmp_path / "hard.yaml").read_text())
    hard["metric_list"] = [{"metric": "acc", "aggregation": "mean", "higher_is_better": False}]
    (tmp_path / "hard.yaml").write_text(yaml.safe_dump(hard))
    with pytest.raises(ConfigError, match="measured by different metrics"):  # one name, and two ways that are better
        read({"both": same})


def test_titles_and_headings():
    assert title("score", {"a": "acc", "b": "acc"}) == "score (acc)"
    assert title("score", {"a": "acc", "b": "exact_match"}) == title("score", {}) == "score"
    assert heading("a", {"a": "acc", "b": "exact_match"}) == "a (acc)"
    assert heading("a", {"a": "acc", "b": "acc"}) == heading("a", {}) == "a"
    assert measures(Classification({}), "accuracy", ["a"]) == {"a": "accuracy"}
    assert title("accuracy", {"a": "accuracy"}) == "accuracy"


def test_evaluate_names_what_it_shows(language_family, tmp_path):
    paths = {name: write_task(tmp_path, name) for name in TASKS}
    given = [f"model.base={language_family}/base", f"model.experts=[{language_family}/left]"]
    given += ["fitness=lm_eval", f"model.cache={tmp_path}/cache", "model.device=cpu"]

    def shown(*names: str, json_too: bool = False) -> str:
        tasks = ", ".join(f"{name}: {{task: {paths[name]}}}" for name in names)
        more = ["--json"] if json_too else []
        done = evomerge("evaluate", "base", *given, f"fitness.tasks={{{tasks}}}", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    out = shown("choice", "rolling")
    assert out.startswith("score on ")
    assert "higher is better" in out.splitlines()[0]
    assert "choice (acc)" in out
    assert "rolling (minus_log_word_perplexity)" in out
    assert shown("choice").startswith("score (acc) on ")
    result = json.loads(shown("choice", "rolling", json_too=True))
    assert result["measures"] == {"choice": "acc", "rolling": "minus_log_word_perplexity"}
