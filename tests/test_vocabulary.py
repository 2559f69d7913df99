"""Experts with another number of tokens than the base: what is refused, merged, left out, said and written down."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from evomerge.assembly import Assembly, assemble
from evomerge.catalog import make_method
from evomerge.checkpoint import Checkpoint, open_checkpoint
from evomerge.commands.evaluate import main as evaluate
from evomerge.commands.inspect import main as inspect
from evomerge.config import check, plain
from evomerge.contenders import of_recipe
from evomerge.errors import CheckpointError, ConfigError
from evomerge.export.handover import make_recipe, mergekit_yaml
from evomerge.export.materialise import materialise
from evomerge.identity import contents
from evomerge.live import load_model, load_skeleton
from evomerge.merger import Merger
from evomerge.progress import Reporter
from evomerge.recipe import Recipe
from evomerge.run import run_search
from evomerge.task_vectors import check_family, describe, task_vectors
from evomerge.vocabulary import compare_tokens, read_vocabulary, row_notes, token_notes
from tests.helpers import compose
from tests.language import documents, save_tokenizer, write_jsonl
from tests.merging import loaded, make_recipe as drawn_recipe, same, tensors_of, write
from tests.models import BERT, TINY, opened, pico, to_bin

V = TINY["vocab_size"]
SIZES = {"longer": V + 3, "shorter": V - 5, "equal": V}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CAUSAL = "AutoModelForCausalLM"


def llama(size: int, tied: bool) -> Any:
    return pico(
        LlamaForCausalLM, LlamaConfig(**TINY | {"vocab_size": size}, num_key_value_heads=2, tie_word_embeddings=tied)
    )


def save_family(path: Path, tied: bool, dtype: torch.dtype = torch.float32) -> Path:
    """A base, and experts tuned from it that have more, fewer, and as many tokens."""
    base = llama(V, tied)
    base.save_pretrained(path / "base")
    start = dict(base.named_parameters())
    for seed, (name, size) in enumerate(SIZES.items()):
        model, generator = llama(size, tied), torch.Generator().manual_seed(seed)
        for key, parameter in model.named_parameters():
            both = min(len(parameter), len(start[key]))
            parameter.data[:both] = start[key].data[:both]
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.to(dtype).save_pretrained(path / name)
    for name in ("base", *SIZES):
        save_tokenizer(path / name)
    return path


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabularies")
    save_family(path / "tied", tied=True)
    save_family(path / "untied", tied=False)
    write_jsonl(path / "texts.jsonl", [{"text": row["text"]} for row in documents(40)])
    return path


@pytest.fixture(params=["tied", "untied"])
def family(request: pytest.FixtureRequest, families: Path) -> Path:
    return families / request.param


def opened_all(path: Path, choice: str, *names: str) -> tuple[Any, Checkpoint, dict[str, Checkpoint]]:
    """The live model's skeleton, the base, and experts by name."""
    live = load_skeleton(path / "base", CAUSAL)
    base = opened(path / "base", live.model)
    experts = {name: opened(path / name, live.model, vocabulary=choice, base=base) for name in names or SIZES}
    return live, base, experts


def settings(path: Path, choice: str, *more: str, experts: str = "longer,shorter,equal") -> list[str]:
    return [
        "fitness=perplexity",
        f"model.base={path}/base",
        f"model.experts=[{','.join(f'{path}/{name}' for name in experts.split(','))}]",
        f"model.cache={path}/cache",
        f"model.auto_class={CAUSAL}",
        "model.device=cpu",
        f"model.vocabulary={choice}",
        f"fitness.tasks={{mine: {{task: {path.parent}/texts.jsonl}}}}",
        "space=layer",
        *more,
    ]


def assembled(path: Path, choice: str, *more: str, **experts: str) -> tuple[Assembly, dict[str, Any]]:
    given = plain(compose(*settings(path, choice, *more, **experts)))
    check(given)
    return assemble(given, Reporter()), given


# one expert at a time


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
            delta = vectors.delta(name, parameter)
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
def test_rows_beyond_stay_the_bases_whatever_the_dtypes(tmp_path: Path, dtype, base_dtype) -> None:
    path = save_family(tmp_path, tied=True, dtype=dtype)
    llama(V, True).to(base_dtype).save_pretrained(path / "base")
    live, base, experts = opened_all(path, "shared", "shorter", "longer")
    vectors = task_vectors(base, experts, live.parameters, tmp_path / "cache")
    for name, both in {"shorter": V - 5, "longer": V}.items():
        delta = vectors.delta(name, EMBEDDING)
        assert delta is not None
        theirs, ours = tensors_of(path / name)[EMBEDDING], base.tensor(EMBEDDING)
        assert torch.equal(delta[:both], theirs[:both].float() - ours[:both].float())
        assert not torch.any(delta[both:])
        assert experts[name].dtype(EMBEDDING) == dtype


def test_an_expert_that_lists_both_names_of_a_tied_parameter(families: Path, tmp_path: Path) -> None:
    path = shutil.copytree(families / "tied", tmp_path / "family")
    for name in ("longer", "shorter"):
        to_bin(path / name)
        file = path / name / "pytorch_model.bin"
        tensors = torch.load(file, weights_only=True)
        torch.save(tensors | {HEAD: tensors[EMBEDDING].clone()}, file)
    _, _, experts = opened_all(path, "shared", "longer", "shorter")
    assert [list(expert.rows) for expert in experts.values()] == [[EMBEDDING]] * 2
    assert [expert.extra for expert in experts.values()] == [()] * 2


def test_only_rows_that_stand_for_tokens(families: Path, tmp_path: Path) -> None:
    live, base, _ = opened_all(families / "untied", "shared", "equal")
    path = shutil.copytree(families / "untied" / "longer", tmp_path / "longer")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"vocab_size": V}))
    with pytest.raises(CheckpointError, match="must be of one architecture and size"):
        opened(path, live.model, vocabulary="shared", base=base)
    wide = LlamaConfig(**TINY | {"intermediate_size": 48}, num_key_value_heads=2)
    pico(LlamaForCausalLM, wide).save_pretrained(tmp_path / "wide")
    with pytest.raises(CheckpointError, match="must be of one architecture and size"):
        opened(tmp_path / "wide", live.model, vocabulary="shared", base=base)


def test_names_of_cached_task_vectors(families: Path) -> None:
    named = {}
    for choice in ("base", "shared"):
        live, base, experts = opened_all(families / "tied", choice)
        named[choice] = {name: describe(base, expert, live.parameters) for name, expert in experts.items()}
    live, base, experts = opened_all(families / "tied", "refuse", "equal")
    plainly = describe(base, experts["equal"], live.parameters)
    assert named["base"]["equal"] == named["shared"]["equal"] == plainly
    assert len(plainly) == 4  # as it was before there was a choice
    assert named["base"]["longer"] != named["shared"]["longer"]
    assert json.loads(json.dumps(named)) == named


# from settings to files


@pytest.mark.parametrize("choice", ["base", "shared", "refuse"])
@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "ties_frozen"])
def test_merged_is_what_was_searched(family: Path, tmp_path: Path, choice: str, method: str) -> None:
    names = ["equal"] if choice == "refuse" else list(SIZES)
    paths = {name: family / name for name in names}
    recipe = drawn_recipe_of(family, paths, method, choice)
    expected = live_merge(recipe, family / "base", tmp_path / "cache")
    out = write(Recipe.from_yaml(recipe.to_yaml()), tmp_path, tmp_path / "out")
    model, missing, unexpected = loaded(out, CAUSAL)
    assert same(model, expected)
    assert (missing, unexpected) == (set(), set())
    embedding = model.get_input_embeddings().weight
    assert embedding.shape == (V, 32)
    ours = tensors_of(family / "base")[EMBEDDING]
    assert torch.equal(embedding, ours) == (False)  # `equal` has changed it
    assert tensors_of(family / "base")[EMBEDDING].equal(ours)


def drawn_recipe_of(family: Path, paths: dict[str, Path], method: str, choice: str) -> Recipe:
    """A recipe of experts with other vocabularies; `make_recipe` opens them as they are, which is refused."""
    fitting = drawn_recipe(family / "base", {"equal": family / "equal"}, method, "tensor", CAUSAL)
    _, _, experts = opened_all(family, choice, *paths)
    rng = np.random.default_rng(1)
    return replace(
        fitting,
        experts={
            name: replace(fitting.base, path=str(path), sha256=experts[name].sha256) for name, path in paths.items()
        },
        coefficients={
            variable: {group: {name: float(rng.uniform(0.2, 0.9)) for name in paths} for group in rows}
            for variable, rows in fitting.coefficients.items()
        },
        vocabulary=choice,
    )


def live_merge(recipe: Recipe, base: Path, cache: Path) -> dict[str, torch.Tensor]:
    from evomerge.transforms.store import transformed

    model, _ = load_model(base, recipe.auto_class)
    _, ours, experts = opened_all(base.parent, recipe.vocabulary, *recipe.experts)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    vectors, method = task_vectors(ours, experts, shapes, cache), make_method(recipe)
    vectors = transformed(vectors, method.transform, cache) if method.transform else vectors
    groups = recipe.groups(shapes)
    Merger(model, vectors, groups, method).apply(
        {
            variable: np.array([[rows[group.name][name] for name in recipe.experts] for group in groups])
            for variable, rows in recipe.coefficients.items()
        }
    )
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def run(families: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run with shared rows."""
    directory = tmp_path_factory.mktemp("run") / "shared"
    small = ("budget=4", "searcher=random")
    assert run_search(compose(*settings(families / "tied", "shared", *small)), directory, Reporter()) is not None
    return directory


def test_a_search_says_and_writes_what_it_did(run: Path, families: Path, tmp_path: Path, capsys) -> None:
    recipe = Recipe.from_yaml((run / "recipe.yaml").read_text())
    assert recipe.vocabulary == "shared"
    assert "vocabulary: shared\n" in (run / "recipe.yaml").read_text()
    warnings = json.loads((run / "summary.json").read_text())["warnings"]
    assert any("expert longer has 53 rows" in text and "last 3 are left out" in text for text in warnings)
    assert any("expert shorter has 45 rows" in text for text in warnings)
    assert not (run / "mergekit.yaml").exists()  # mergekit could not run it
    out = write(recipe, run, tmp_path / "merged")
    assert same(loaded(out, CAUSAL)[0], live_merge(recipe, families / "tied" / "base", tmp_path / "cache"))
    assert PreTrainedTokenizerFast.from_pretrained(out).get_vocab() == read_vocabulary(families / "tied" / "base")


def test_evaluate_scores_what_was_searched(run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    summary = json.loads((run / "summary.json").read_text())
    merged = write(Recipe.from_yaml((run / "recipe.yaml").read_text()), run, tmp_path / "merged")
    monkeypatch.chdir(tmp_path)
    for model in (run, run / "recipe.yaml", merged):
        given = [] if model != merged else [str(run)]
        evaluate([str(model), *given, "--split", "report", "--json"])
        result = json.loads(capsys.readouterr().out)
        assert result["models"][str(model)]["mean"] == summary["report"]["winner"]["mean"]


def test_a_recipe_of_another_choice_is_refused(families: Path, run: Path, tmp_path: Path) -> None:
    assembly, given = assembled(families / "tied", "base")
    with pytest.raises(ConfigError, match=r"made with model\.vocabulary=shared.*write model\.vocabulary=shared"):
        of_recipe(run / "recipe.yaml", assembly, given)
    alone = drawn_recipe_of(families / "tied", {"equal": families / "tied" / "equal"}, "linear", "shared")
    (tmp_path / "recipe.yaml").write_text(alone.to_yaml())
    of_recipe(tmp_path / "recipe.yaml", assembly, given)  # of no expert to whom it makes a difference


def test_the_identity_depends_on_it_where_it_matters(families: Path) -> None:
    seen = {}
    for choice in ("base", "shared"):
        for experts in ("longer,equal", "equal"):
            assembly, given = assembled(families / "tied", choice, experts=experts)
            seen[choice, experts] = contents(assembly, given)
    assert seen["base", "longer,equal"]["vocabulary"] == "base"
    assert seen["shared", "longer,equal"]["vocabulary"] == "shared"
    assembly, given = assembled(families / "tied", "refuse", experts="equal")
    assert seen["base", "equal"] == seen["shared", "equal"] == contents(assembly, given)
    old = {**given, "model": {name: value for name, value in given["model"].items() if name != "vocabulary"}}
    assert contents(assemble(old, Reporter()), old) == contents(assembly, given)  # settings of an earlier version


@pytest.mark.parametrize("choice", ["base", "shared"])
def test_mergekit_gets_experts_of_one_size(families: Path, tmp_path: Path, choice: str) -> None:
    path = families / "untied"
    assembly, given = assembled(path, choice)
    weights = np.random.default_rng(0).uniform(0.2, 0.9, (len(assembly.space.groups), 3))
    recipe = make_recipe(assembly, given, {"weight": weights}, {}, {})
    with pytest.raises(
        ConfigError, match=r"expert longer has 53 rows in model\.embed_tokens\.weight.*--materialise DIR"
    ):
        mergekit_yaml(assembly, recipe)
    text = materialise(assembly, recipe, tmp_path / "out", Reporter()).read_text()
    document = yaml.safe_load(text)
    base, models = tensors_of(path / "base"), [tensors_of(Path(row["model"])) for row in document["models"]]
    assert all(model[key].shape == tensor.shape for model in models for key, tensor in base.items())
    expected = live_merge(recipe, path / "base", tmp_path / "cache")
    for key, tensor in base.items():
        rows = [
            next(one["value"] for one in row["parameters"]["weight"] if one.get("filter", "") in key)
            for row in document["models"]
        ]
        merged = tensor + sum(rows[k] * (model[key] - tensor) for k, model in enumerate(models))
        assert torch.allclose(merged, expected[key], atol=1e-5), key


def test_inspect_takes_the_choice(families: Path, tmp_path: Path, capsys) -> None:
    path = families / "tied"
    named = [str(path / name) for name in ("base", *SIZES)]
    common = ["--json", f"model.cache={tmp_path}", f"model.auto_class={CAUSAL}"]
    with pytest.raises(SystemExit):
        inspect([*named, *common])
    result = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in result["errors"]] == ["longer", "shorter"]
    assert all("model.vocabulary=shared" in one["error"] for one in result["errors"])
    inspect([*named, *common, "model.vocabulary=shared"])
    result = json.loads(capsys.readouterr().out)
    assert result["compared"] == list(SIZES)
    assert result["experts"]["longer"]["rows"] == {EMBEDDING: {"held": 53, "base": 50, "merged": 50}}
    assert any("expert longer has 53 rows" in text for text in result["warnings"])
    inspect([*named, *common, "model.vocabulary=base"])
    result = json.loads(capsys.readouterr().out)
    assert result["experts"]["shorter"]["task_vector"]["ratios"][EMBEDDING] == 0
    assert result["experts"]["equal"]["task_vector"]["ratios"][EMBEDDING] > 0
    assert result["experts"]["shorter"]["missing"] == []


def test_another_word_for_it() -> None:
    with pytest.raises(ConfigError, match=r"model\.vocabulary: .*'share': did you mean 'shared'.*refuse, base, shared"):
        check(plain(compose("model.vocabulary=share", "model.base=x", "model.experts=[y]")))
    text = (Path(__file__).parent / "data" / "recipe.yaml").read_text()
    with pytest.raises(ConfigError, match="Unknown vocabulary 'share'"):
        Recipe.from_yaml(text + "vocabulary: share\n")
    assert Recipe.from_yaml(text + "vocabulary: refuse\n").to_yaml() == text


def test_a_classifiers_own_head_runs_on_the_bases_tokens(tmp_path: Path) -> None:
    """Its embedding has rows for tokens that the base does not know."""
    from evomerge.fitness.heads import OwnHead

    base = pico(BertModel, BERT).eval()
    longer = BertConfig(**TINY | {"vocab_size": V + 3}, max_position_embeddings=16)
    pico(BertForSequenceClassification, longer, seed=1).save_pretrained(tmp_path / "longer")
    shapes = {name: tuple(p.shape) for name, p in base.named_parameters()}
    base.save_pretrained(tmp_path / "base")
    ours = open_checkpoint(tmp_path / "base", shapes, "bert")
    open_checkpoint(tmp_path / "longer", shapes, "bert", vocabulary="shared", base=ours)
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


def test_added_tokens_are_said_before_a_search(families: Path, tmp_path: Path, capsys) -> None:
    path = shutil.copytree(families / "tied", tmp_path / "family")
    shutil.copyfile(families / "texts.jsonl", tmp_path / "texts.jsonl")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path / "longer")
    tokenizer.add_tokens(["<call>", "<answer>"])
    tokenizer.save_pretrained(path / "longer")
    expected = "expert longer has 2 tokens that the base's tokenizer lacks (<call>, <answer>): the merged model keeps"
    assembly, _ = assembled(path, "shared")
    assert sum(expected in text for text in assembly.warnings) == 1
    named = [str(path / name) for name in ("base", "longer")]
    inspect([*named, "--json", f"model.cache={tmp_path}", f"model.auto_class={CAUSAL}", "model.vocabulary=shared"])
    result = json.loads(capsys.readouterr().out)
    assert sum(expected in text for text in result["warnings"]) == 1
    assert result["experts"]["longer"]["added"] == ["<call>", "<answer>"]
