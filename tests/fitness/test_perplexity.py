"""The likelihood of the user's own text."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.common.errors import ConfigError, SuiteError
from evomerge.fitness.items import Task, check_disjoint, make_item
from evomerge.fitness.perplexity import Perplexity
from tests.kit.language import documents, read, scored, write_jsonl, write_task

TEXTS = [row["text"] for row in documents(40)]


@pytest.fixture(scope="module")
def tokenizer(language_family):
    return AutoTokenizer.from_pretrained(language_family / "base")


@pytest.fixture
def model(language_family):
    return AutoModelForCausalLM.from_pretrained(language_family / "base").eval().requires_grad_(False)


def texts_of(path: Path | str, further=None, **settings):
    fitness = Perplexity(**settings)
    return fitness, fitness.read(
        {"mine": Task("mine", Path(path), None, None, ())}, {"mine": further} if further else {}
    )


@pytest.mark.parametrize("kind", ["txt", "jsonl", "directory"])
def test_texts_come_from_files(tmp_path, kind):
    if kind == "txt":
        (path := tmp_path / "mine.txt").write_text("\n\n".join(TEXTS) + "\n \n\n")
    elif kind == "jsonl":
        path = write_jsonl(tmp_path / "mine.jsonl", [{"text": text} for text in TEXTS])
    else:
        path = tmp_path
        for i, split in enumerate(("search", "select", "report")):
            write_jsonl(path / f"{split}.jsonl", [{"text": text} for text in TEXTS[10 * i : 10 * i + 10]])
    _, splits = texts_of(path)
    check_disjoint(splits)
    found = [item.text for items in splits.values() for item in items["mine"]]
    assert sorted(found) == sorted(TEXTS[:30] if kind == "directory" else TEXTS)


def test_it_is_the_mean_log_likelihood_of_a_byte(tmp_path, tokenizer, model):
    fitness, splits = texts_of(write_jsonl(tmp_path / "mine.jsonl", [{"text": text} for text in TEXTS]))
    outcome = scored(fitness, model, tokenizer, splits["search"])
    for item, value in zip(splits["search"]["mine"], outcome.results["mine"]["log_probability"], strict=True):
        tokens = [tokenizer.bos_token_id, *tokenizer(item.text)["input_ids"]]
        log_p = torch.log_softmax(model(torch.tensor([tokens])).logits[0, :-1], -1)
        wanted = log_p.gather(1, torch.tensor(tokens[1:])[:, None]).sum().item() / len(item.text.encode())
        assert value == pytest.approx(wanted, abs=1e-4)
    assert outcome.forward_seconds > 0


def test_it_agrees_with_the_rolling_likelihood_of_lm_eval(tmp_path, tokenizer, model):
    fitness, splits = texts_of(write_jsonl(tmp_path / "mine.jsonl", [{"text": text} for text in TEXTS]), window=2048)
    ours = scored(fitness, model, tokenizer, splits["search"])
    theirs_fitness, others = read(
        {"mine": write_task(tmp_path / "yaml", "rolling", [{"text": text} for text in TEXTS])}
    )
    theirs = scored(theirs_fitness, model, tokenizer, {"mine": [i for s in others.values() for i in s["mine"]]})
    by_text = {
        item.text: value
        for item, value in zip(splits["search"]["mine"], ours.results["mine"]["log_probability"], strict=True)
    }
    names = {
        item.id: theirs_fitness._benchmarks["mine"].documents[item.id].doc["text"]
        for s in others.values()
        for item in s["mine"]
    }
    matched = 0
    for item, value in zip(theirs.items["mine"], theirs.results["mine"]["log_probability"], strict=True):
        if names[item] in by_text:
            assert value == pytest.approx(by_text[names[item]], abs=1e-5)
            matched += 1
    assert matched == len(by_text)


def test_windows_and_batches(tmp_path, tokenizer, model):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"text": text} for text in TEXTS])
    values = {}
    for window, batch in ((512, 8), (512, 1), (7, 8), (7, 3)):
        fitness, splits = texts_of(path, window=window, batch_size=batch)
        values[window, batch] = scored(fitness, model, tokenizer, splits["search"]).results["mine"]["log_probability"]
    np.testing.assert_allclose(values[512, 8], values[512, 1], atol=1e-5)
    np.testing.assert_allclose(values[7, 8], values[7, 3], atol=1e-5)
    assert (values[7, 8] != values[512, 8]).any()  # less is seen before a token


def test_another_model_scores_otherwise_and_the_order_is_that_of_the_ids(tmp_path, tokenizer, model):
    fitness, splits = texts_of(write_jsonl(tmp_path / "mine.jsonl", [{"text": text} for text in TEXTS]))
    prepared = fitness.prepare(tokenizer, splits["search"])
    ids = [item.id for item in splits["search"]["mine"]]
    first = fitness(model, prepared, {"mine": ids}).results["mine"]["log_probability"]
    turned = fitness(model, prepared, {"mine": ids[::-1]}).results["mine"]["log_probability"]
    np.testing.assert_allclose(first, turned[::-1], atol=1e-5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.5
    assert (fitness(model, prepared, {"mine": ids}).results["mine"]["log_probability"] != first).all()


def test_what_is_refused(tmp_path, tokenizer, model, monkeypatch):
    with pytest.raises(ConfigError, match="must both be at least 1"):
        Perplexity(window=0)
    with pytest.raises(SuiteError, match=r"nowhere\.txt does not exist"):
        texts_of(tmp_path / "nowhere.txt")
    with pytest.raises(ConfigError, match=r"org/data is no file\..*or, for a data set of a hub, its split as well"):
        texts_of("org/data")
    with pytest.raises(ConfigError, match=r"split=test is a test split.*public_test=true, and the report will say so"):
        texts_of("org/data", {"split": "test"})
    with pytest.raises(SuiteError, match=r"the data set org/data cannot be read .*Without a network"):
        texts_of("org/data", {"split": "train"})
    fitness, splits = texts_of(
        write_jsonl(tmp_path / "mine.jsonl", [{"text": "w1 " * 3000 + t} for t in TEXTS]), window=4096
    )
    with pytest.raises(ConfigError, match=r"fitness\.window=4096, but the model takes 2048 tokens"):
        scored(fitness, model, tokenizer, splits["search"])
    with pytest.raises(ConfigError, match="needs a base with a tokenizer"):
        fitness.prepare(object(), splits["search"])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"`datasets`, which is not installed: pip install 'evomerge\[lm\]'"):
        texts_of("org/data", {"split": "train"})


def test_a_data_set_is_divided_and_a_public_test_split_is_said(tmp_path, monkeypatch):
    import datasets

    rows = {"body": [*TEXTS, " ", TEXTS[0]]}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, subset, split: rows)
    fitness, splits = texts_of("org/data", {"split": "train", "subset": "small", "field": "body"})
    check_disjoint(splits)
    assert sum(len(items["mine"]) for items in splits.values()) == 40
    assert fitness.warnings == ["1 of 42 texts of org/data are blank and left out"]
    rows["body"] = TEXTS
    fitness, _ = texts_of("org/data", {"split": "test", "field": "body"}, public_test=True)
    assert fitness.warnings == [
        "coefficients were chosen by 'test' of org/data, a test split: scores on it are no results"
    ]
    with pytest.raises(ConfigError, match=r"split=all is a test split"):  # all of its splits together
        texts_of("org/data", {"split": "all", "field": "body"})
    rows["body"] = [*TEXTS, None]
    fitness, splits = texts_of("org/data", {"split": "train", "field": "body"})
    assert "None" not in [item.text for items in splits.values() for item in items["mine"]]
    assert fitness.warnings == ["1 of 41 texts of org/data are blank and left out"]


def test_a_field_of_a_file_of_ones_own(tmp_path):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"id": i, "body": text} for i, text in enumerate(TEXTS)])
    _, splits = texts_of(path, {"field": "body"})
    assert sorted(item.text for items in splits.values() for item in items["mine"]) == sorted(TEXTS)
    for split in ("search", "select", "report"):
        write_jsonl(tmp_path / "splits" / f"{split}.jsonl", [{"body": f"{split} {TEXTS[0]}"}], parents=True)
    _, splits = texts_of(tmp_path / "splits", {"field": "body"})
    assert [item.text for item in splits["select"]["mine"]] == [f"select {TEXTS[0]}"]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("mine.jsonl", {"field": "boby"}, r"mine\.jsonl, line 1: there is no string `boby`; there is body"),
        ("mine.jsonl", {"field": "body", "split": "train"}, r"mine\.split is of data sets of a hub, and .* leave it"),
        ("mine.jsonl", {"subset": "small"}, r"mine\.subset is of data sets of a hub"),
        ("mine.txt", {"field": "body"}, r"mine\.field: .*mine\.txt is plain text, which has no fields: leave it out"),
        ("mine.csv", {"field": "body"}, r"mine\.csv is neither a \.txt nor a \.jsonl: write its texts into"),
    ],
)
def test_settings_that_a_file_of_ones_own_does_not_have(tmp_path, name, given, message):
    write_jsonl(tmp_path / name, [{"body": text} for text in TEXTS])
    with pytest.raises((ConfigError, SuiteError), match=message):
        texts_of(tmp_path / name, given)


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u2003\u00a0"])
def test_a_text_of_blanks_is_not_perfect(tmp_path, tokenizer, blank):
    rows = [{"text": text} for text in TEXTS]
    path = write_jsonl(tmp_path / "mine.jsonl", [*rows[:3], {"text": blank}, *rows[3:]])
    with pytest.raises(SuiteError, match=r"mine\.jsonl, line 4: the text is blank, and says nothing of a model"):
        texts_of(path)
    write_jsonl(path, rows)
    texts_of(path)  # as it says
    write_jsonl(path, [{"text": blank}, *rows, {"text": blank}])
    with pytest.raises(SuiteError, match=r"line 1: the text is blank, and 1 more lines are, and says"):
        texts_of(path)


def test_a_text_that_the_tokenizer_drops_is_refused_before_anything_is_scored(tmp_path, tokenizer):
    with pytest.raises(SuiteError, match=r"The text '\\t' of the task mine has no tokens, so it has no likelihood"):
        Perplexity().prepare(tokenizer, {"mine": [make_item("w1"), make_item("\t")]})


def test_a_folder_of_ones_own_is_no_public_test_split(tmp_path, monkeypatch):
    for name in ("data/mine", "allenai/ai2_arc"):
        write_jsonl(tmp_path / name / "test.jsonl", [{"body": text} for text in TEXTS], parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    fitness, splits = texts_of("data/mine", {"split": "test", "field": "body"})
    assert sum(len(items["mine"]) for items in splits.values()) == 40
    assert fitness.warnings == ["data/mine is taken from the folder of that name here, and not from a hub"]
    with pytest.raises(ConfigError, match=r"split=test is a test split"):  # a copy of a benchmark
        texts_of("allenai/ai2_arc", {"split": "test", "field": "body"})


def test_bits_of_a_byte_are_minus_it_over_log_two(tmp_path, tokenizer, model):
    """A model that knows nothing gives every token of the fifty the same probability."""
    with torch.no_grad():
        model.lm_head.weight.zero_()
    fitness, splits = texts_of(write_jsonl(tmp_path / "mine.jsonl", [{"text": text} for text in TEXTS]))
    outcome = scored(fitness, model, tokenizer, splits["search"])
    item, value = splits["search"]["mine"][0], outcome.results["mine"]["log_probability"][0]
    tokens = len(tokenizer(item.text)["input_ids"])
    assert -value / math.log(2) == pytest.approx(tokens * math.log2(50) / len(item.text.encode()), rel=1e-5)
