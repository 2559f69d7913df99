"""Every transform, from files of bfloat16 with tied embeddings and a parameter that an expert lacks: a merged directory
has the bits that were scored.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from evomerge.recipes.catalog import TRANSFORMS
from evomerge.transforms.chain import Step
from tests.kit.merging import CAUSAL, live_merge, make_recipe, places, same, save_family, tensors_of, write
from tests.kit.models import LLAMA_TIED, pico, rewritten
from tests.kit.published import quick

LACKING = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("family")
    save_family(path, pico(LlamaForCausalLM, LLAMA_TIED).to(torch.bfloat16), frozen="layers.0.self_attn")
    rewritten(path / "green", lambda tensors: {key: t for key, t in tensors.items() if key != LACKING})
    return path


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_merged_directory_is_what_was_scored(family: Path, tmp_path: Path, name: str) -> None:
    experts, step = places(family), Step(quick(name))
    plain = make_recipe(family / "base", experts, granularity="layer", auto_class=CAUSAL)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors_of(family / "base").items()}
    rows, rng = list(step.rows(list(experts), shapes)), np.random.default_rng(1)
    weights = {group: {row: float(rng.uniform(-0.5, 1.5)) for row in rows} for group in plain.coefficients["weight"]}
    recipe = replace(
        plain,
        transform=[step.about()],
        rows=[] if rows == list(experts) else rows,
        coefficients={"weight": weights},
        dtype="bfloat16",
    )
    expected = live_merge(recipe, family / "base", experts, tmp_path / "cache")
    assert {tensor.dtype for tensor in expected.values()} == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(write(recipe, tmp_path, tmp_path / "out"))
    assert same(model, expected)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    base = tensors_of(family / "base")
    changed = {key for key, tensor in expected.items() if not torch.equal(tensor, base[key])}
    assert len(changed) > 5
    assert not any("layers.0.self_attn" in key for key in changed)  # no expert changed these
