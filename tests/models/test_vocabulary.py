"""One expert with another number of tokens than the base: refused, left out, fitted; and tokens compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, LlamaConfig, LlamaForCausalLM

from evomerge.common.errors import CheckpointError
from evomerge.fitness.heads import OwnHead
from evomerge.models.checkpoint import open_checkpoint
from evomerge.models.live import load_skeleton
from evomerge.models.matching import Layout
from evomerge.models.vocabulary import compare_tokens, row_notes, token_notes
from evomerge.task_vectors.store import check_family, describe, task_vectors
from evomerge.task_vectors.stores import AUTO, FLOAT32
from tests.kit.merging import tensors_of
from tests.kit.models import BERT, TINY, opened, pico, to_bin
from tests.kit.vocabularies import CAUSAL, EMBEDDING, HEAD, SIZES, V, llama, opened_all, save_family


@pytest.fixture(params=["tied", "untied"])
def family(request: pytest.FixtureRequest, vocabularies: Path) -> Path:
    return vocabularies / request.param


def test_refused_unless_one_has_chosen(family: Path) -> None:
    for choice in ("longer", "shorter"):
        with pytest.raises(
            CheckpointError,
            match=r"the vocabularies differ.*model\.vocabulary=shared.*model\.vocabulary=base keeps.*tokenizer",
        ):
            opened_all(family, "refuse", choice)
    _, base, experts = opened_all(family, "refuse", "equal")
    assert (dict(experts["equal"].rows), dict(base.rows)) == ({}, {})
    with pytest.raises(CheckpointError, match="the vocabularies differ"):  # there is nothing that it could be fitted to
        opened(family / "longer", load_skeleton(family / "base", CAUSAL).model, vocabulary="shared")


def test_the_base_keeps_all_rows(family: Path, tmp_path: Path) -> None:
    live, base, experts = opened_all(family, "base")
    names = [EMBEDDING] if family.name == "tied" else [EMBEDDING, HEAD]
    for name in ("longer", "shorter"):
        found = experts[name]
        assert list(found.rows) == names
        assert not found.keys.keys() & set(names)
        assert not set(names) & {*found.missing, *found.extra}
        assert not found.fitted
    vectors = task_vectors(base, experts, live.parameters, tmp_path)
    assert vectors.zero == {(name, parameter) for name in ("longer", "shorter") for parameter in names}
    assert check_family(base, experts, live.parameters) == [
        f"expert {name} has {SIZES[name]} rows in {', '.join(names)} where the base has 50: all rows there stay the "
        f"base's, its task vector is zero (model.vocabulary=base)"
        for name in ("longer", "shorter")
    ]


def test_shared_rows_are_merged(family: Path, tmp_path: Path) -> None:
    live, base, experts = opened_all(family, "shared")
    vectors = task_vectors(base, experts, live.parameters, tmp_path)
    assert vectors.zero == frozenset()
    ours = tensors_of(family / "base")
    for name, both in {"longer": V, "shorter": V - 5}.items():
        theirs = tensors_of(family / name)
        for parameter in [EMBEDDING] if family.name == "tied" else [EMBEDDING, HEAD]:
            delta = vectors.dense(name, parameter)
            assert delta is not None
            assert torch.equal(delta[:both], theirs[parameter][:both] - ours[parameter][:both])
            assert torch.count_nonzero(delta[:both]) == delta[:both].numel()
            assert not torch.any(delta[both:])
            assert torch.equal(base.tensor(parameter), ours[parameter])
    assert check_family(base, experts, live.parameters) == [
        text
        for name, what in {
            "longer": "the first 50 are merged, its last 3 are left out",
            "shorter": "the first 45 are merged, the base's last 5 stay as they are",
        }.items()
        for text in [f"expert {name} {note}" for note in row_notes(experts[name].rows)]
        if what in text and text.endswith("(model.vocabulary=shared)")
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [False, True], ids=["cached", "kept"])
def test_rows_beyond_stay_the_bases_whatever_the_dtypes(tmp_path: Path, dtype, base_dtype, keep) -> None:
    path = save_family(tmp_path, tied=True, dtype=dtype)
    llama(V, True).to(base_dtype).save_pretrained(path / "base")
    live, base, experts = opened_all(path, "shared", "shorter", "longer")
    vectors = task_vectors(base, experts, live.parameters, tmp_path / "cache", store=AUTO if keep else FLOAT32)
    for name, both in {"shorter": V - 5, "longer": V}.items():
        delta = vectors.dense(name, EMBEDDING)
        assert delta is not None
        theirs, ours = tensors_of(path / name)[EMBEDDING], base.tensor(EMBEDDING)
        assert torch.equal(delta[:both], theirs[:both].float() - ours[:both].float())
        assert not torch.any(delta[both:])
        assert experts[name].dtype(EMBEDDING) == dtype


def test_an_expert_that_lists_both_names_of_a_tied_parameter(vocabularies: Path, tmp_path: Path) -> None:
    path = shutil.copytree(vocabularies / "tied", tmp_path / "family")
    for name in ("longer", "shorter"):
        to_bin(path / name)
        file = path / name / "pytorch_model.bin"
        tensors = torch.load(file, weights_only=True)
        torch.save(tensors | {HEAD: tensors[EMBEDDING].clone()}, file)
    _, _, experts = opened_all(path, "shared", "longer", "shorter")
    assert [list(expert.rows) for expert in experts.values()] == [[EMBEDDING]] * 2
    assert [expert.extra for expert in experts.values()] == [()] * 2


def test_only_rows_that_stand_for_tokens(vocabularies: Path, tmp_path: Path) -> None:
    live, base, _ = opened_all(vocabularies / "untied", "shared", "equal")
    path = shutil.copytree(vocabularies / "untied" / "longer", tmp_path / "longer")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"vocab_size": V}))
    with pytest.raises(CheckpointError, match="must be of one architecture and size"):
        opened(path, live.model, vocabulary="shared", base=base)
    wide = LlamaConfig(**TINY | {"intermediate_size": 48}, num_key_value_heads=2)
    pico(LlamaForCausalLM, wide).save_pretrained(tmp_path / "wide")
    with pytest.raises(CheckpointError, match="must be of one architecture and size"):
        opened(tmp_path / "wide", live.model, vocabulary="shared", base=base)


def test_names_of_cached_task_vectors(vocabularies: Path) -> None:
    named = {}
    for choice in ("base", "shared"):
        live, base, experts = opened_all(vocabularies / "tied", choice)
        named[choice] = {name: describe(base, expert, live.parameters) for name, expert in experts.items()}
    live, base, experts = opened_all(vocabularies / "tied", "refuse", "equal")
    plainly = describe(base, experts["equal"], live.parameters)
    assert named["base"]["equal"] == named["shared"]["equal"] == plainly
    assert len(plainly) == 4  # as it was before there was a choice
    assert named["base"]["longer"] != named["shared"]["longer"]
    assert json.loads(json.dumps(named)) == named


def test_a_classifiers_own_head_runs_on_the_bases_tokens(tmp_path: Path) -> None:
    """Its embedding has rows for tokens that the base does not know."""
    base = pico(BertModel, BERT).eval()
    longer = BertConfig(**TINY | {"vocab_size": V + 3}, max_position_embeddings=16)
    pico(BertForSequenceClassification, longer, seed=1).save_pretrained(tmp_path / "longer")
    shapes = {name: tuple(p.shape) for name, p in base.named_parameters()}
    base.save_pretrained(tmp_path / "base")
    ours = open_checkpoint(tmp_path / "base", shapes, Layout(prefix="bert"))
    open_checkpoint(tmp_path / "longer", shapes, Layout(prefix="bert"), vocabulary="shared", base=ours)
    view = OwnHead(tmp_path / "longer", shapes).module(base)
    ids = torch.tensor([[2, V - 1, 3]])
    with torch.no_grad():
        hidden = view.bert(ids).last_hidden_state
        assert torch.equal(hidden, base(ids).last_hidden_state)
    other = BertConfig(**TINY | {"intermediate_size": 48}, max_position_embeddings=16)
    pico(BertForSequenceClassification, other).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="does not run on a BertModel"):
        OwnHead(tmp_path / "other", shapes).module(base)


# tokens


def test_tokens_compared() -> None:
    base, expert = {"a": 0, "b": 1, "c": 2}, {"b": 0, "a": 1, "<z>": 3, "<y>": 2}
    assert compare_tokens(base, expert) == {"added": ["<y>", "<z>"], "lost": ["c"], "moved": ["a", "b"]}
    added, moved, lost = token_notes(base, expert)
    assert added.startswith(
        "has 2 tokens that the base's tokenizer lacks (<y>, <z>): the merged model keeps the base's"
    )
    assert moved.startswith("gives 2 tokens another id than the base (a, b)")
    assert lost.startswith("lacks 1 token of the base (c)")
    many = token_notes(base, base | {f"<{i}>": 3 + i for i in range(9)})
    assert "has 9 tokens that the base's tokenizer lacks (<0>, <1>, <2> and 6 more)" in many[0]
    assert token_notes(base, dict(base)) == token_notes(None, base) == token_notes(base, None) == []
