"""Quantised experts: as the numbers that transformers makes of them, where it can; else refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import evomerge as em
from evomerge.cli.evaluate import main
from evomerge.cli.progress import Reporter
from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.recipes.handover import make_recipe
from evomerge.recipes.recipe import Recipe
from evomerge.runs.build import build_problem
from evomerge.runs.config import plain
from tests.kit.helpers import compose
from tests.kit.language import documents, write_jsonl
from tests.kit.merging import write

BLOCK = 16


def to_fp8(path: Path) -> dict[str, Tensor]:
    """Quantise a model as DeepSeek's are, in blocks; returns the numbers that the codes stand for."""
    tensors, numbers = {}, {}
    for name, tensor in load_file(path / "model.safetensors").items():
        if tensor.dim() == 2 and "proj" in name:
            rows, columns = tensor.shape
            blocks = tensor.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
            scale = blocks.abs().amax((1, 3)) / 448
            codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            numbers[name] = (codes.float() * scale[:, None, :, None]).view(rows, columns)
            tensors |= {name: codes.view(rows, columns), f"{name}_scale_inv": scale}
        else:
            tensors[name] = numbers[name] = tensor
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
    }
    (path / "config.json").write_text(json.dumps(config))
    return numbers


@pytest.fixture
def family(language_family: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(language_family, tmp_path / "family"))
    write_jsonl(path / "texts.jsonl", documents(60))
    return path


def built(family: Path, *more: str):
    models = [f"model.base={family}/base", f"model.experts=[{family}/left,{family}/right]", "model.device=cpu"]
    task = [f"model.cache={family}/cache", "fitness=perplexity", f"fitness.tasks={{t: {family}/texts.jsonl}}"]
    kind = ["model.auto_class=AutoModelForCausalLM", "space=model"]
    return build_problem(plain(compose(*models, *kind, *task, *more)), Reporter())


def test_an_expert_is_the_numbers_of_its_codes(family, tmp_path):
    numbers = to_fp8(family / "left")
    with pytest.raises(CheckpointError, match=r"is quantised \(fp8\).*write model\.dequantise=true"):
        built(family)
    problem = built(family, "model.dequantise=true")
    expert = problem.vectors.experts["left"]
    for name in problem.vectors.parameters:
        torch.testing.assert_close(expert.tensor(name), numbers[name], atol=1e-7, rtol=1e-6)
    assert built(family, "model.dequantise=true").contents == problem.contents  # it is made once
    assert len(list((family / "cache" / "dequantised").glob("[!.]*"))) == 1
    coefficients = problem.space.constant(0.4)
    merged = write(make_recipe(problem, coefficients, {}, {}), tmp_path, tmp_path / "merged")
    problem.merger.apply(coefficients)
    inputs = torch.tensor([[3, 4, 5, 6]])
    with torch.inference_mode():
        scored, written = (m(inputs).logits for m in (problem.live.model, AutoModelForCausalLM.from_pretrained(merged)))
    torch.testing.assert_close(written, scored, atol=1e-5, rtol=0)


def test_a_recipe_makes_the_numbers_again_where_the_cache_was_deleted(family, tmp_path, capsys):
    to_fp8(family / "left")
    problem = built(family, "model.dequantise=true")
    recipe = make_recipe(problem, problem.space.constant(0.4), {}, {})
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert recipe.experts["left"].place == recipe.experts["left"].path
    first = write(recipe, tmp_path, tmp_path / "first")
    shutil.rmtree(family / "cache")
    assert recipe.experts["left"].place == f"{family}/left"
    second = write(recipe, tmp_path, tmp_path / "second")
    shutil.rmtree(family / "cache")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    task = ["fitness=perplexity", f"fitness.tasks={{t: {family}/texts.jsonl}}", f"model.cache={family}/cache"]
    main([str(tmp_path / "recipe.yaml"), *task, "model.device=cpu", "--json"])
    assert next(iter(json.loads(capsys.readouterr().out)["models"].values()))["mean"] is not None
    shutil.rmtree(family / "cache")
    shutil.move(family / "left", family / "moved")
    third = write(recipe, tmp_path, tmp_path / "third", experts={"left": family / "moved"})
    assert len({(path / "model.safetensors").read_bytes() for path in (first, second, third)}) == 1
    shutil.rmtree(family / "cache")
    said = rf"of the quantised model {family}/left, which cannot be made again: .* is not there\. Name the quantised"
    with pytest.raises(ConfigError, match=said):
        write(recipe, tmp_path, tmp_path / "fourth")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "unheard"])
def test_what_transformers_cannot_turn_into_numbers_here_is_refused_by_name(family, method):
    to_fp8(family / "left")
    config = json.loads((family / "left" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (family / "left" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"is quantised \({method}\), and transformers cannot turn it into"):
        built(family, "model.dequantise=true")


def test_a_program_takes_the_numbers_as_well(family):
    numbers = to_fp8(family / "left")
    experts = {name: family / name for name in ("left", "right")}
    more = {"auto_class": "AutoModelForCausalLM", "device": "cpu", "cache": family / "cache"}
    with pytest.raises(CheckpointError, match=r"write model\.dequantise=true"):
        em.Family(family / "base", experts, **more)
    opened = em.Family(family / "base", experts, dequantise=True, **more).opened
    assert opened.sources.dequantised == {"left": str(family / "left")}
    for name in opened.parameters:
        torch.testing.assert_close(opened.experts["left"].tensor(name), numbers[name], atol=1e-7, rtol=1e-6)
    assert opened.settings["experts"]["left"] == str(family / "left")
