"""One vocabulary for a base and its experts (`model.vocabulary=union`): rows go where their tokens are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from evomerge.cli.progress import Reporter
from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.live import load_live, load_skeleton
from evomerge.problem import Problem
from evomerge.recipes.handover import make_recipe, mergekit_yaml
from evomerge.recipes.model import write_model
from evomerge.runs.build import build_problem
from evomerge.task_vectors.store import task_vectors
from tests.kit.adapters import folded_by_peft, save_adapter
from tests.kit.evaluations import settings_of
from tests.kit.language import VOCABULARY, documents, save_tokenizer, write_jsonl
from tests.kit.vocabularies import CAUSAL, EMBEDDING, HEAD, llama

V, LAMBDAS = len(VOCABULARY), {"one": 0.7, "two": -0.4}
NEW = {"one": ["nou", "also"], "two": ["also", "zwei", "drei"]}
"""`also` is new in both; `two` has its tokens in another order than the base, and lacks one of the base's."""


def vocabulary(name: str) -> list[str]:
    if name == "two":
        return [*VOCABULARY[:3], *reversed(VOCABULARY[4:]), *NEW["two"]]
    return [*VOCABULARY, *NEW.get(name, [])]


def save_family(path: Path, tied: bool = False) -> None:
    """Three models whose rows, and whose weights elsewhere, are drawn anew for each token and name."""
    base = llama(V + 2, tied)  # two rows of padding
    for number, name in enumerate(("base", "one", "two")):
        words = vocabulary(name)
        model, generator = llama(V + 2 if name == "base" else len(words), tied), torch.Generator().manual_seed(number)
        start = dict(base.named_parameters())
        for key, parameter in model.named_parameters():
            before = start[key].data
            if key in (EMBEDDING, HEAD):
                rows = [VOCABULARY.index(word) if word in VOCABULARY else V for word in words]
                before = before[rows] if name != "base" else before
            parameter.data = before + bool(number) * 0.1 * torch.randn(before.shape, generator=generator)
        model.save_pretrained(path / name)
        save_tokenizer(path / name, words)
    write_jsonl(path / "texts.jsonl", [{"text": f"{row['text']} also zwei"} for row in documents(40)])


@pytest.fixture
def problem_of(tmp_path: Path) -> Callable[..., Problem]:
    def build(*more: str) -> Problem:
        own = [f"model.base={tmp_path}/base", f"model.experts=[{tmp_path}/one,{tmp_path}/two]", "model.device=cpu"]
        task = f"fitness.tasks={{mine: {{task: {tmp_path}/texts.jsonl}}}}"
        rest = [f"model.cache={tmp_path}/cache", f"model.auto_class={CAUSAL}", "model.vocabulary=union"]
        return build_problem(settings_of("fitness=perplexity", *own, task, *rest, *more), Reporter())

    return build


def by_hand(path: Path, parameter: str, tied: bool) -> dict[str, torch.Tensor]:
    """The merged row of each token, as mergekit's union has it: a row that a model lacks is the base's, or else the one
    of the model that has it, or the mean of those that do.
    """
    held = {name: load_file(path / name / "model.safetensors") for name in ("base", *LAMBDAS)}
    key = EMBEDDING if tied else parameter
    rows = {name: dict(zip(vocabulary(name), tensors[key], strict=False)) for name, tensors in held.items()}
    merged = {}
    for token in dict.fromkeys([*VOCABULARY, *NEW["one"], *NEW["two"]]):
        donors = [rows[name][token] for name in LAMBDAS if token in rows[name]]
        before = rows["base"][token] if token in rows["base"] else torch.stack(donors).mean(0)
        merged[token] = before + sum(w * (rows[name].get(token, before) - before) for name, w in LAMBDAS.items())
    return merged


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_each_token_has_a_row_of_its_own(tmp_path, problem_of, tied):
    save_family(tmp_path, tied)
    problem = problem_of()
    known = problem.live.processor.get_vocab()
    assert {token: known[token] for token in VOCABULARY} == {token: at for at, token in enumerate(VOCABULARY)}
    assert [known[token] for token in ("nou", "also", "zwei", "drei")] == [V, V + 1, V + 2, V + 3]
    coefficients = problem.space.constant(list(LAMBDAS.values()))
    problem.merger.apply(coefficients)
    live = dict(problem.live.model.named_parameters())
    for parameter in [EMBEDDING] if tied else [EMBEDDING, HEAD]:
        assert len(live[parameter]) == V + 4
        for token, row in by_hand(tmp_path, parameter, tied).items():
            torch.testing.assert_close(live[parameter][known[token]], row, rtol=0, atol=1e-6)
    recipe = make_recipe(problem, coefficients, {}, {})
    out = write_model(recipe, tmp_path, tmp_path / "merged", reporter=Reporter())
    again, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert again.config.vocab_size == V + 4
    assert tokenizer.get_vocab() == known
    inputs = tokenizer("w1 also zwei nou w2", return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[known[word] for word in ("w1", "also", "zwei", "nou", "w2")]]
    with torch.no_grad():
        theirs, ours = (model(**inputs).logits for model in (again, problem.live.model))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    problem.merger.restore()
    torch.testing.assert_close(live[EMBEDDING], problem.vectors.base.tensor(EMBEDDING), rtol=0, atol=0)


def test_a_tokenizer_that_has_changed_is_no_source_of_the_recipe(tmp_path, problem_of):
    save_family(tmp_path)
    problem = problem_of()
    recipe = make_recipe(problem, problem.space.constant(0.5), {}, {})
    with pytest.raises(ConfigError, match=r"mergekit export: .*model\.vocabulary=union"):
        mergekit_yaml(problem, recipe)
    save_tokenizer(tmp_path / "one", [*VOCABULARY, "other", "also"])
    assert problem_of().contents["union"] != problem.contents["union"]
    with pytest.raises(CheckpointError, match=r"tokenizers of base and experts are not those"):
        write_model(recipe, tmp_path, tmp_path / "merged", reporter=Reporter())


def another_kind(path: Path) -> None:
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    vocab = [[token, -1.0] for token in tokenizer["model"]["vocab"]]
    tokenizer["model"] = {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": False}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))


def without(path: Path) -> None:
    for file in path.glob("*token*"):
        file.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_kind, r"two has a tokenizer of another kind \(Unigram\) than the base \(WordLevel\)"),
        (without, r"model\.vocabulary=union compares tokenizers: .*two has no tokenizer"),
    ],
)
def test_tokenizers_that_cannot_be_compared_are_refused(tmp_path, problem_of, change: Any, message: str):
    save_family(tmp_path)
    change(tmp_path / "two")
    with pytest.raises(CheckpointError, match=message):
        problem_of()


@pytest.mark.parametrize("added", [True, False])
def test_pieces_of_another_tokenizer_are_no_tokens_of_the_base(tmp_path, added):
    """An added token is one as it stands; a piece comes of merges, and would cut words of the base elsewhere."""
    for name in ("base", "one"):
        merges = [("h", "e"), *([("s", "he")] if name == "one" and not added else [])]
        words = [*"!she<>", *(left + right for left, right in merges)]
        pieces = BPE({word: i for i, word in enumerate(words)}, merges)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(pieces), eos_token="!")
        if added and name == "one":
            tokenizer.add_tokens(["<she>"])
        tokenizer.save_pretrained(tmp_path / name)
        llama(len(tokenizer), False).save_pretrained(tmp_path / name)
    live = load_live(tmp_path / "base", CAUSAL, "cpu")
    if added:
        assert live.united(tmp_path / "base", [tmp_path / "one"]).processor.tokenize("she<she>") == ["s", "he", "<she>"]
    else:
        with pytest.raises(
            CheckpointError, match=r"one has 1 tokens that the base lacks \(she\) and that nobody added"
        ):
            live.united(tmp_path / "base", [tmp_path / "one"])


def test_a_head_that_is_not_merged_gets_no_rows_and_is_refused(tmp_path, problem_of):
    save_family(tmp_path)
    with pytest.raises(ConfigError, match=r"holds lm_head\.weight, a row for each token, and AutoModel has no such"):
        problem_of("model.auto_class=AutoModel", "fitness=custom", f"fitness.function={__file__}:by_hand")


CHANGES: dict[str, dict[str, Any]] = {
    "factors": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "DoRA": {"target_modules": ["embed_tokens"], "use_dora": True},
}


@pytest.mark.parametrize("kind", CHANGES)
def test_an_adapter_has_the_tokens_of_the_base(tmp_path, kind):
    """Its rows are the base's tokens'; those of new tokens stay, as do the rows of padding that became theirs."""
    save_family(tmp_path)
    adapter = save_adapter(tmp_path / "low", llama(V + 2, False), **CHANGES[kind])
    theirs = folded_by_peft(tmp_path / "base", adapter)
    live = load_skeleton(tmp_path / "base", CAUSAL).united(tmp_path / "base", [tmp_path / "two", adapter])
    base = live.open(tmp_path / "base")
    expert = live.open(adapter, base=base)
    deltas = task_vectors(base, {"low": expert}, live.parameters, tmp_path / "cache").deltas["low"]
    assert (
        {*expert.keys} == {*deltas} == {name for name, one in theirs.items() if bool((one != known(base, name)).any())}
    )
    for name in deltas:
        before, after = base.tensor(name), expert.tensor(name)
        rows = V if name in (EMBEDDING, HEAD) else len(after)
        torch.testing.assert_close(after[:rows], theirs[name][:rows], rtol=1e-6, atol=1e-6)
        assert torch.equal(after[rows:], before[rows:])
        torch.testing.assert_close(deltas[name].dense().view(after.shape), after - before, rtol=0, atol=1e-5)


def known(base: Checkpoint, name: str) -> torch.Tensor:
    """A parameter of the base as its file has it."""
    return base.tensors[base.keys[name]]


def test_an_adapter_with_tokens_of_its_own_is_refused(tmp_path):
    save_family(tmp_path)
    adapter = save_adapter(tmp_path / "low", llama(V + 4, False), modules_to_save=["embed_tokens"])
    live = load_skeleton(tmp_path / "base", CAUSAL).united(tmp_path / "base", [tmp_path / "two", adapter])
    with pytest.raises(CheckpointError, match=r"under model\.vocabulary=union an adapter has the tokens of the base"):
        live.open(adapter, base=live.open(tmp_path / "base"))


def test_an_adapter_is_searched_and_written_in_a_union(tmp_path, problem_of):
    save_family(tmp_path)
    adapter = save_adapter(tmp_path / "low", llama(V + 2, False), **CHANGES["factors"])
    problem = problem_of(f"model.experts=[{tmp_path}/two,{adapter}]")
    problem.merger.apply(problem.space.constant(0.5))
    recipe = make_recipe(problem, problem.space.constant(0.5), {}, {})
    out = write_model(recipe, tmp_path, tmp_path / "merged", reporter=Reporter())
    again, ours = AutoModelForCausalLM.from_pretrained(out), dict(problem.live.model.named_parameters())
    assert all(torch.equal(one, ours[name]) for name, one in again.named_parameters())
    assert len(ours[HEAD]) == V + 3
