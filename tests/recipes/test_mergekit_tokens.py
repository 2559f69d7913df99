"""Tokens and chat templates of a merge YAML: rows go where mergekit puts them, and what cannot is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from evomerge.cli.main import main
from evomerge.common.errors import ConfigError
from evomerge.common.progress import Silent
from evomerge.models.weight_files import weight_files
from evomerge.models.weights import read_tensors
from evomerge.recipes.mergekit.read import Told, read_mergekit
from tests.kit.language import CHAT, VOCABULARY, save_tokenizer
from tests.kit.vocabularies import EMBEDDING, HEAD, llama

OTHER = "{% for m in messages %}< {{ m['content'] }} > {% endfor %}"
WEIGHTS = {"one": 0.7, "two": -0.4}
TURNED = [*VOCABULARY[:3], *reversed(VOCABULARY[3:])]
LOST = "w7"
YAML = """\
merge_method: task_arithmetic
base_model: base
dtype: float32
models:
- {model: one, parameters: {weight: 0.7}}
- {model: two, parameters: {weight: -0.4}}
"""


def save(path: Path, rows: int = 0, **words: Sequence[str]) -> Path:
    """A base, of some more rows than tokens, and experts tuned from it with a row for each of their words."""
    base = llama(len(VOCABULARY) + rows, False)
    start = {key: parameter.data.clone() for key, parameter in base.named_parameters()}
    for number, (name, own) in enumerate({"base": VOCABULARY, **words}.items()):
        model, generator = llama(len(own), False) if number else base, torch.Generator().manual_seed(number)
        places = [VOCABULARY.index(word) if word in VOCABULARY else 0 for word in own]
        for key, parameter in model.named_parameters() if number else ():
            before = start[key][places] if key in (EMBEDDING, HEAD) else start[key]
            parameter.data = before + 0.1 * torch.randn(before.shape, generator=generator)
        model.save_pretrained(path / name)
        save_tokenizer(path / name, own)
    return path


def read(text: str, path: Path) -> Told:
    return read_mergekit(text, path, Silent())


def rows_of(path: Path, key: str) -> dict[str, Tensor]:
    """The row of each token of a model."""
    known = AutoTokenizer.from_pretrained(path).get_vocab()
    tensor = read_tensors(weight_files(path))[key]
    return {token: tensor[at] for token, at in known.items()}


def merged(text: str, path: Path, out: Path) -> None:
    (path / "their.yml").write_text(text)
    main(["merge", str(path / "their.yml"), str(out)])


def by_tokens(path: Path, key: str) -> dict[str, Tensor]:
    """mergekit's union by hand: a row that a model lacks is the base's, or else the one or the mean of those that are
    there."""
    held = {name: rows_of(path / name, key) for name in ("base", *WEIGHTS)}
    found = {}
    for token in dict.fromkeys(token for rows in held.values() for token in rows):
        donors = [held[name][token] for name in WEIGHTS if token in held[name]]
        base = held["base"][token] if token in held["base"] else sum(donors[1:], donors[0]) / len(donors)
        found[token] = base + sum(w * (held[name].get(token, base) - base) for name, w in WEIGHTS.items())
    return found


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tokens are new, one of them to both experts; the second has the others in another order, and lacks one."""
    two = [word for word in TURNED if word != LOST]
    return save(tmp_path_factory.mktemp("added"), one=[*VOCABULARY, "nou", "also"], two=[*two, "also"])


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No token is new; the second expert has them in another order. The base has two rows without a token."""
    return save(tmp_path_factory.mktemp("turned"), 2, one=VOCABULARY, two=TURNED)


def test_a_union_has_a_row_for_every_token(added: Path, tmp_path: Path) -> None:
    merged("tokenizer_source: union\n" + YAML, added, tmp_path / "out")
    for key in (EMBEDDING, HEAD):
        ours, wanted = rows_of(tmp_path / "out", key), by_tokens(added, key)
        assert set(ours) == set(wanted) == {*VOCABULARY, "nou", "also"}
        for token, row in wanted.items():
            torch.testing.assert_close(ours[token], row, rtol=0, atol=1e-6)


def test_the_tokens_of_the_base_are_kept_where_an_expert_has_them_elsewhere(turned: Path, tmp_path: Path) -> None:
    text = "tokenizer_source: base\n" + YAML
    assert read(text, turned).notes == [
        f"line 1: the merge has {len(VOCABULARY) + 2} rows for tokens, and mergekit {len(VOCABULARY)}: it leaves out "
        f"rows without a token"
    ]
    merged(text, turned, tmp_path / "out")
    ours, wanted = rows_of(tmp_path / "out", EMBEDDING), by_tokens(turned, EMBEDDING)
    assert ours.keys() == wanted.keys() == {*VOCABULARY}
    for token, row in wanted.items():
        torch.testing.assert_close(ours[token], row, rtol=0, atol=1e-6)


def test_what_changes_nothing_may_be_asked_for(added: Path) -> None:
    rows = len(VOCABULARY) + 2
    text = f"""tokenizer:
  source: union
  pad_to_multiple_of: {rows}
  tokens:
    nou: {{source: {{kind: model_token, model: one, token: nou}}}}
    {LOST}: {{source: base}}
    w1: {{source: two, force: false}}
"""
    told = read(text + YAML, added)
    assert told.notes == []
    assert told.recipe.vocabulary == "union"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "tokenizer_source: base\n",
            r"two has tokens in other places than the base, and one tokens that the base lacks \(nou",
        ),
        ("tokenizer_source: one\n", r"line 1: one has other tokens than the base, .* write base or union"),
        ("tokenizer: {pad_to_multiple_of: 64}\n", r"line 1: there would be 64 rows for 49 tokens, .* has 49 in evom"),
        ("tokenizer: {pad_to_multiple_of: few}\n", r"line 1: there must be a number from 1, not 'few'"),
        ("tokenizer: {tokens: {nou: {source: base}}}\n", r"lack nou would get another row for it than that of one,"),
        ("tokenizer: {tokens: {also: {source: one}}}\n", r"another row for it than the mean of one, two,"),
        ("tokenizer: {tokens: {w7: {source: {kind: zero}}}}\n", r"another row for it than that of base,"),
        ("tokenizer: {tokens: {w1: {source: one, force: true}}}\n", r"w1 would .* a row of every model would be repl"),
        (
            "tokenizer: {tokens: {fresh: {source: base}}}\n",
            r"row of fresh would be chosen by hand, and no model has it",
        ),
        ("chat_template: chatml\n", r"line 1: chatml names a template of mergekit's own, and the merged model"),
        ("chat_template: '{{ nobody }}, a text that is long'\n", r"line 1: no model has this chat template"),
    ],
)
def test_rows_and_templates_that_evomerge_does_not_make_are_refused(text: str, message: str, added: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read(text + YAML, added)


def test_a_union_without_a_base_is_refused(added: Path) -> None:
    text = YAML.replace("base_model: base\n", "").replace("task_arithmetic", "linear").replace("-0.4", "0.4")
    with pytest.raises(ConfigError, match=r"line 1: without base_model, mergekit gives a model the mean"):
        read("tokenizer_source: union\n" + text, added)


def test_a_chat_template_is_that_of_the_model_which_has_it(tmp_path: Path) -> None:
    path = save(tmp_path / "family", one=VOCABULARY, two=VOCABULARY)
    save_tokenizer(path / "one", VOCABULARY, OTHER)
    auto, ours, other = (f"chat_template: {json.dumps(text)}\n{YAML}" for text in ("auto", CHAT, OTHER))
    for text, name in ((auto, None), (ours, None), (other, "one")):
        assert (told := read(text, path)).notes == []
        assert told.recipe.template == name
    merged(other, path, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == OTHER


def test_most_templates_win_and_an_end_token_comes_along(tmp_path: Path) -> None:
    path = save(tmp_path, one=VOCABULARY, two=VOCABULARY)
    for name in ("one", "two"):
        tokenizer = AutoTokenizer.from_pretrained(path / name)
        tokenizer.chat_template, tokenizer.eos_token = OTHER, "|"
        tokenizer.save_pretrained(path / name)
    told = read("chat_template: auto\n" + YAML, path)
    assert told.recipe.template == "one"
    assert told.notes == [
        "line 1: with the template of one come its end token and generation config; mergekit leaves the base's"
    ]
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(path / "one")
    with pytest.raises(
        ConfigError, match=r"line 1: the template is that of one, whose end token <end> is not the same"
    ):
        read("chat_template: auto\n" + YAML, path)
