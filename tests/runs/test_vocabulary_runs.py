"""Experts with other numbers of tokens than the base, from settings to files: what is merged, said and written down."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from evomerge.cli.evaluate import main as evaluate
from evomerge.cli.inspect import main as inspect
from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError
from evomerge.models.vocabulary import read_vocabulary
from evomerge.recipes.handover import make_recipe as recipe_of
from evomerge.recipes.handover import mergekit_yaml
from evomerge.recipes.materialise import materialise
from evomerge.recipes.recipe import Recipe
from evomerge.runs.build import build_problem
from evomerge.runs.config import check, plain
from evomerge.runs.run import run_search
from evomerge.selection.contenders import of_recipe
from tests.kit.helpers import compose
from tests.kit.language import documents, write_jsonl
from tests.kit.merging import live_merge, loaded, make_recipe, same, tensors_of, write
from tests.kit.vocabularies import CAUSAL, EMBEDDING, SIZES, V, assembled, save_family, settings


@pytest.fixture(params=["tied", "untied"])
def family(request: pytest.FixtureRequest, vocabularies: Path) -> Path:
    return vocabularies / request.param


CELLS = [
    (("tied", "untied")[(i + j) % 2], choice, method)
    for i, choice in enumerate(("base", "shared", "refuse"))
    for j, method in enumerate(("linear", "ties", "dare_ties", "ties_frozen"))
]
"""Every choice with every method, and with either family."""


@pytest.mark.parametrize(("family", "choice", "method"), CELLS, indirect=["family"])
def test_merged_is_what_was_searched(family: Path, tmp_path: Path, choice: str, method: str) -> None:
    names = ["equal"] if choice == "refuse" else list(SIZES)
    paths = {name: family / name for name in names}
    recipe = make_recipe(family / "base", paths, method, auto_class=CAUSAL, vocabulary=choice)
    before = tensors_of(family / "base")
    expected = live_merge(recipe, family / "base", paths, tmp_path / "cache")
    out = write(Recipe.from_yaml(recipe.to_yaml()), tmp_path, tmp_path / "out")
    model, missing, unexpected = loaded(out, CAUSAL)
    assert same(model, expected)
    assert (missing, unexpected) == (set(), set())
    merged = model.get_input_embeddings().weight
    assert merged.shape == (V, 32)
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors_of(family / "base").items())


@pytest.mark.parametrize("choice", ["base", "shared"])
def test_experts_of_16_bits(tmp_path: Path, choice: str) -> None:
    """They are merged from their own files, where rows are cut off, and from memory, where the base's are added."""
    path = save_family(tmp_path / "family", tied=True, dtype=torch.bfloat16)
    AutoModelForCausalLM.from_pretrained(path / "base", dtype=torch.bfloat16).save_pretrained(path / "base")
    write_jsonl(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in documents(40)])
    problem, _ = assembled(path, choice)
    weights = np.random.default_rng(0).uniform(0.2, 0.9, (len(problem.space.groups), 3))
    problem.merger.apply({"weight": weights})
    live = {name: parameter.clone() for name, parameter in problem.live.model.named_parameters()}
    out = write(recipe_of(problem, {"weight": weights}, {}, {}), tmp_path, tmp_path / "out")
    assert same(loaded(out, CAUSAL)[0], live)
    problem.become("shorter")
    become = dict(problem.live.model.named_parameters())[EMBEDDING]
    rows = 0 if choice == "base" else V - 5
    assert torch.equal(become[rows:], tensors_of(path / "base")[EMBEDDING][rows:])
    assert torch.equal(become[:rows], tensors_of(path / "shorter")[EMBEDDING][:rows])


@pytest.fixture(scope="module")
def run(vocabularies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run with shared rows."""
    directory = tmp_path_factory.mktemp("run") / "shared"
    small = ("budget=4", "searcher=random")
    assert run_search(compose(*settings(vocabularies / "tied", "shared", *small)), directory, Reporter()) is not None
    return directory


def test_a_search_says_and_writes_what_it_did(run: Path, vocabularies: Path, tmp_path: Path, capsys) -> None:
    recipe = Recipe.from_yaml((run / "recipe.yaml").read_text())
    assert recipe.vocabulary == "shared"
    assert "vocabulary: shared\n" in (run / "recipe.yaml").read_text()
    warnings = json.loads((run / "summary.json").read_text())["warnings"]
    assert any("expert longer has 53 rows" in text and "last 3 are left out" in text for text in warnings)
    assert any("expert shorter has 45 rows" in text for text in warnings)
    assert not (run / "mergekit.yaml").exists()  # mergekit could not run it
    out = write(recipe, run, tmp_path / "merged")
    paths = {name: vocabularies / "tied" / name for name in SIZES}
    assert same(loaded(out, CAUSAL)[0], live_merge(recipe, vocabularies / "tied" / "base", paths, tmp_path / "cache"))
    assert PreTrainedTokenizerFast.from_pretrained(out).get_vocab() == read_vocabulary(vocabularies / "tied" / "base")


def test_evaluate_scores_what_was_searched(run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    summary = json.loads((run / "summary.json").read_text())
    merged = write(Recipe.from_yaml((run / "recipe.yaml").read_text()), run, tmp_path / "merged")
    monkeypatch.chdir(tmp_path)
    for model in (run, run / "recipe.yaml", merged):
        given = [] if model != merged else [str(run)]
        evaluate([str(model), *given, "--split", "report", "--json"])
        result = json.loads(capsys.readouterr().out)
        assert result["models"][str(model)]["mean"] == summary["report"]["winner"]["mean"]


def test_a_recipe_of_another_choice_is_refused(vocabularies: Path, run: Path, tmp_path: Path) -> None:
    problem, _ = assembled(vocabularies / "tied", "base")
    with pytest.raises(ConfigError, match=r"made with model\.vocabulary=shared.*write model\.vocabulary=shared"):
        of_recipe(run / "recipe.yaml", problem)
    base, experts = vocabularies / "tied" / "base", {"equal": vocabularies / "tied" / "equal"}
    alone = make_recipe(base, experts, auto_class=CAUSAL, vocabulary="shared")
    (tmp_path / "recipe.yaml").write_text(alone.to_yaml())
    of_recipe(tmp_path / "recipe.yaml", problem)  # of no expert to whom it makes a difference


def test_the_identity_depends_on_it_where_it_matters(vocabularies: Path) -> None:
    seen = {}
    for choice in ("base", "shared"):
        for experts in ("longer,equal", "equal"):
            problem, given = assembled(vocabularies / "tied", choice, experts=experts)
            seen[choice, experts] = problem.contents
    assert seen["base", "longer,equal"]["vocabulary"] == "base"
    assert seen["shared", "longer,equal"]["vocabulary"] == "shared"
    problem, given = assembled(vocabularies / "tied", "refuse", experts="equal")
    assert seen["base", "equal"] == seen["shared", "equal"] == problem.contents
    old = {**given, "model": {name: value for name, value in given["model"].items() if name != "vocabulary"}}
    assert build_problem(old, Reporter()).contents == problem.contents  # settings of an earlier version


@pytest.mark.parametrize("choice", ["base", "shared"])
def test_mergekit_gets_experts_of_one_size(vocabularies: Path, tmp_path: Path, choice: str) -> None:
    path = vocabularies / "untied"
    problem, _ = assembled(path, choice)
    weights = np.random.default_rng(0).uniform(0.2, 0.9, (len(problem.space.groups), 3))
    recipe = recipe_of(problem, {"weight": weights}, {}, {})
    with pytest.raises(
        ConfigError, match=r"expert longer has 53 rows in model\.embed_tokens\.weight.*--materialise DIR"
    ):
        mergekit_yaml(problem, recipe)
    text = materialise(problem, recipe, tmp_path / "out", Reporter()).read_text()
    document = yaml.safe_load(text)
    base, models = tensors_of(path / "base"), [tensors_of(Path(row["model"])) for row in document["models"]]
    assert all(model[key].shape == tensor.shape for model in models for key, tensor in base.items())
    expected = live_merge(recipe, path / "base", {name: path / name for name in SIZES}, tmp_path / "cache")
    for key, tensor in base.items():
        rows = [
            next(one["value"] for one in row["parameters"]["weight"] if one.get("filter", "") in key)
            for row in document["models"]
        ]
        merged = tensor + sum(rows[k] * (model[key] - tensor) for k, model in enumerate(models))
        assert torch.allclose(merged, expected[key], atol=1e-5), key


def test_inspect_takes_the_choice(vocabularies: Path, tmp_path: Path, capsys) -> None:
    path = vocabularies / "tied"
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
    text = (Path(__file__).parents[1] / "data" / "recipe.yaml").read_text()
    with pytest.raises(ConfigError, match="Unknown vocabulary 'share'"):
        Recipe.from_yaml(text + "vocabulary: share\n")
    assert Recipe.from_yaml(text + "vocabulary: refuse\n").to_yaml() == text


def test_added_tokens_are_said_before_a_search(vocabularies: Path, tmp_path: Path, capsys) -> None:
    path = shutil.copytree(vocabularies / "tied", tmp_path / "family")
    shutil.copyfile(vocabularies / "texts.jsonl", tmp_path / "texts.jsonl")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path / "longer")
    tokenizer.add_tokens(["<call>", "<answer>"])
    tokenizer.save_pretrained(path / "longer")
    expected = "expert longer has 2 tokens that the base's tokenizer lacks (<call>, <answer>): the merged model keeps"
    problem, _ = assembled(path, "shared")
    assert sum(expected in text for text in problem.warnings) == 1
    named = [str(path / name) for name in ("base", "longer")]
    inspect([*named, "--json", f"model.cache={tmp_path}", f"model.auto_class={CAUSAL}", "model.vocabulary=shared"])
    result = json.loads(capsys.readouterr().out)
    assert sum(expected in text for text in result["warnings"]) == 1
    assert result["experts"]["longer"]["added"] == ["<call>", "<answer>"]
