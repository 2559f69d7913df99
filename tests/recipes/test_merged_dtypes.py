"""A merged directory is what was scored, bit for bit, whatever dtypes files and config of base and experts have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
import torch
import yaml
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetModel,
    T5EncoderModel,
)

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError
from evomerge.models.live import load_live, load_skeleton
from evomerge.models.pretrained import load_model
from evomerge.recipes.handover import as_mergekit
from evomerge.recipes.recipe import Recipe
from evomerge.runs.run import run_search
from tests.kit.helpers import compose
from tests.kit.language import documents, save_tokenizer, write_jsonl
from tests.kit.merging import CAUSAL, live_merge, make_recipe, same, save_family, tensors_of, write
from tests.kit.models import LLAMA, T5, pico, rewritten

if TYPE_CHECKING:
    from evomerge.problem import Problem

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
NORM, MLP = "norm.weight", "mlp"

FAMILIES = {
    # name: dtype of the base's files, those of some tensors in them, dtype of the experts' files, keys of the config
    "bfloat16": (BF16, {}, BF16, {"dtype": "bfloat16"}),
    "float16": (F16, {}, F16, {"dtype": "float16"}),
    "float64": (F64, {}, F64, {"dtype": "float64"}),
    "float64 files": (F64, {}, F64, {}),
    "float64 files in float32": (F64, {}, F64, {"dtype": "float32"}),
    "mixed": (BF16, {NORM: F32}, BF16, {}),
    "mixed, the first one float32": (BF16, {"lm_head": F32}, BF16, {}),
    "mixed, said": (BF16, {NORM: F32}, BF16, {"dtype": "bfloat16"}),
    "mixed, said float32": (BF16, {MLP: F32}, BF16, {"dtype": "float32"}),
    "mixed, said by its old name": (BF16, {MLP: F32, NORM: F16}, F32, {"torch_dtype": "float16"}),
    "both names, which differ": (F32, {}, F32, {"torch_dtype": "float16", "dtype": "bfloat16"}),
    "bfloat16 experts of a float32 base": (F32, {}, BF16, {}),
    "float32 experts of a bfloat16 base": (BF16, {}, F32, {}),
    "float32 files in bfloat16": (F32, {}, F32, {"dtype": "bfloat16"}),
    "null": (BF16, {MLP: F32}, BF16, {"dtype": None}),
}


def recast(path: Path, dtype: torch.dtype, some: dict[str, torch.dtype], said: dict[str, str | None]) -> None:
    """Give the files of a model other dtypes, and its config what it shall say of them."""

    def kind(key: str) -> torch.dtype:
        return next((other for part, other in some.items() if part in key), dtype)

    rewritten(path, lambda tensors: {key: tensor.to(kind(key)) for key, tensor in tensors.items()})
    config = json.loads((path / "config.json").read_text())
    config.pop("dtype")
    (path / "config.json").write_text(json.dumps(config | said))


def with_dtype(recipe: Recipe, base: Path) -> Recipe:
    """The recipe as a search writes it; without, it is one of version 0.2."""
    model, _ = load_model(base, recipe.auto_class)
    return replace(recipe, dtype=str(model.config.dtype).removeprefix("torch."))


@pytest.mark.parametrize(
    ("family", "method"), [*((family, "linear") for family in FAMILIES), ("mixed", "ties_frozen"), ("float64", "ties")]
)
def test_the_merged_directory_is_the_live_model(tmp_path, family, method):
    dtype, some, others, said = FAMILIES[family]
    experts = save_family(tmp_path, pico(LlamaForCausalLM, LLAMA))
    recast(tmp_path / "base", dtype, some, said)
    for path in experts.values():
        recast(path, others, some if others == dtype else {}, said)
    recipe = make_recipe(tmp_path / "base", experts, method, auto_class=CAUSAL)
    expected = live_merge(recipe, tmp_path / "base", experts, tmp_path / "cache")
    live, _ = load_model(tmp_path / "base", CAUSAL)
    live.load_state_dict(expected, strict=True)
    for name, one in {"old": recipe, "new": with_dtype(recipe, tmp_path / "base")}.items():
        out = write(one, tmp_path, tmp_path / name)
        model = AutoModelForCausalLM.from_pretrained(out)
        assert same(model, expected)
        assert torch.equal(model(IDS).logits, live(IDS).logits)
        config = json.loads((out / "config.json").read_text())
        kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors_of(out).values()}
        assert {config[key] for key in ("dtype", "torch_dtype") if key in config} == kinds
        assert not set(config) - set(json.loads((tmp_path / "base" / "config.json").read_text())) - {"dtype"}
    assert (tmp_path / "old" / "model.safetensors").read_bytes() == (
        tmp_path / "new" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
def test_parameters_that_transformers_keeps_in_float32(tmp_path, dtype):
    """`wo` of a T5 in float16: in the file it has the bits that were scored, and not those of the base's file."""
    experts = save_family(tmp_path, pico(T5EncoderModel, T5))
    said = str(dtype).removeprefix("torch.")
    for name in ("base", *experts):
        recast(tmp_path / name, dtype, {}, {"dtype": said})
    recipe = make_recipe(tmp_path / "base", experts, auto_class="AutoModelForTextEncoding")
    expected = live_merge(recipe, tmp_path / "base", experts, tmp_path / "cache")
    assert {tensor.dtype for name, tensor in expected.items() if ".wo." in name} == {BF16 if dtype == BF16 else F32}
    for name, one in {"old": recipe, "new": with_dtype(recipe, tmp_path / "base")}.items():
        assert same(T5EncoderModel.from_pretrained(write(one, tmp_path, tmp_path / name)), expected)
    given = tensors_of(write(recipe, tmp_path, tmp_path / "given", dtype="float16"))
    assert given["encoder.block.0.layer.1.DenseReluDense.wo.weight"].dtype == F32  # else a second rounding at load


def test_mergekit_writes_one_dtype_and_that_is_said(tmp_path):
    experts = save_family(tmp_path, pico(T5EncoderModel, T5))
    for dtype, said in ((F16, True), (F32, False)):
        for name in ("base", *experts):
            recast(tmp_path / name, dtype, {}, {"dtype": str(dtype).removeprefix("torch.")})
        live = load_live(tmp_path / "base", "AutoModelForTextEncoding", "cpu", needs_processor=False)
        vectors = SimpleNamespace(base=live.open(tmp_path / "base"), parameters=live.parameters, experts={})
        recipe = make_recipe(tmp_path / "base", experts, auto_class="AutoModelForTextEncoding")
        text = as_mergekit(cast("Problem", SimpleNamespace(live=live, vectors=vectors)), recipe)
        assert ("# Not bit-equal to the model that evomerge scored: transformers keeps encoder" in text) == said
        assert yaml.safe_load(text)["out_dtype"] == str(dtype).removeprefix("torch.")


def test_buffers_are_loaded_as_the_live_model_had_them(tmp_path):
    """Statistics of batch norm are finer in the file than in the model."""
    config = ResNetConfig(num_channels=3, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    model = pico(ResNetModel, config)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(len(name))) + 0.1)
    experts = save_family(tmp_path, model)
    for name in ("base", *experts):
        recast(tmp_path / name, BF16, {"running": F32}, {"dtype": "bfloat16"})
    recipe = with_dtype(make_recipe(tmp_path / "base", experts), tmp_path / "base")
    live, _ = load_model(tmp_path / "base", "AutoModel")
    merged = AutoModel.from_pretrained(write(recipe, tmp_path, tmp_path / "out"))
    assert same(merged, live_merge(recipe, tmp_path / "base", experts, tmp_path / "cache"))
    found, wanted = dict(merged.named_buffers()), dict(live.named_buffers())
    assert len(found) > 6
    assert all(
        torch.equal(found[name], buffer) and found[name].dtype == buffer.dtype for name, buffer in wanted.items()
    )


def test_another_config_does_not_change_what_was_scored(tmp_path):
    """Hashes are of weights alone, so the recipe says in which dtype they were."""
    experts = save_family(tmp_path, pico(LlamaForCausalLM, LLAMA))
    recast(tmp_path / "base", F32, {}, {"dtype": "bfloat16"})
    recipe = with_dtype(make_recipe(tmp_path / "base", experts, auto_class=CAUSAL), tmp_path / "base")
    expected = live_merge(recipe, tmp_path / "base", experts, tmp_path / "cache")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    out = write(recipe, tmp_path, tmp_path / "out")
    assert same(AutoModelForCausalLM.from_pretrained(out), expected)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_dtype_of_ones_own_is_said(tmp_path, capsys):
    experts = save_family(tmp_path, pico(LlamaForCausalLM, LLAMA))
    recipe = with_dtype(make_recipe(tmp_path / "base", experts, auto_class=CAUSAL), tmp_path / "base")
    write(recipe, tmp_path, tmp_path / "same", dtype="float32")
    assert "scored in" not in capsys.readouterr().err
    out = write(recipe, tmp_path, tmp_path / "other", dtype="bfloat16")
    note = "written in bfloat16, and scored in float32: each weight is rounded otherwise"
    assert f"note: {note}" in capsys.readouterr().err
    assert f"- {note}" in (out / "README.md").read_text()


def test_a_recipe_says_the_dtype():
    text = (Path(__file__).parents[1] / "data" / "recipe.yaml").read_text()
    assert Recipe.from_yaml(text).dtype is None
    recipe = replace(Recipe.from_yaml(text), dtype="bfloat16")
    assert "\ndtype: bfloat16\n" in recipe.to_yaml()
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    with pytest.raises(ConfigError, match="recipe: Unknown dtype 'bfloat': did you mean 'bfloat16'"):
        Recipe.from_yaml(text + "dtype: bfloat\n")
    with pytest.raises(ConfigError, match="recipe: dtype must be of type str, not 16"):
        Recipe.from_yaml(text + "dtype: 16\n")


def test_from_a_search_to_a_model(tmp_path, monkeypatch):
    """Files of mixed dtype and a config that says none: the recipe of the search says in which the winner was."""
    experts = save_family(tmp_path, pico(LlamaForCausalLM, LLAMA), experts=2)
    for name in ("base", *experts):
        recast(tmp_path / name, BF16, {"lm_head": F32, MLP: F32}, {})
    save_tokenizer(tmp_path / "base")
    write_jsonl(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in documents(40)])
    settings = [
        "fitness=perplexity",
        f"model.base={tmp_path}/base",
        f"model.experts=[{','.join(map(str, experts.values()))}]",
        f"model.cache={tmp_path}/cache",
        f"model.auto_class={CAUSAL}",
        "model.device=cpu",
        f"fitness.tasks={{mine: {{task: {tmp_path}/texts.jsonl}}}}",
        "space=layer",
        "searcher=random",
        "budget=3",
        "start=0.4",
    ]
    assert run_search(compose(*settings), tmp_path / "run", Reporter()) is not None
    recipe = Recipe.from_yaml((tmp_path / "run" / "recipe.yaml").read_text())
    model, _ = load_model(tmp_path / "base", CAUSAL)
    assert recipe.dtype == str(model.config.dtype).removeprefix("torch.")
    assert {p.dtype for p in load_skeleton(tmp_path / "base", CAUSAL).model.parameters()} == {F32}  # no config says it
    expected = live_merge(recipe, tmp_path / "base", experts, tmp_path / "cache")
    assert same(AutoModelForCausalLM.from_pretrained(write(recipe, tmp_path / "run", tmp_path / "out")), expected)
