"""Adapters beside whole experts: what is written is what was scored, bit for bit, by every method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.kit.adapters import CAUSAL, llama, save_adapter
from tests.kit.language import save_tokenizer
from tests.kit.merging import METHODS, live_merge, loaded, make_recipe, same, save_family, write


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """A base in bfloat16, a whole expert, two adapters, and one with tensors of every other kind."""
    path = tmp_path_factory.mktemp("family")
    experts = save_family(path, llama().bfloat16(), experts=1)
    save_tokenizer(path / "base")
    experts["low"] = save_adapter(path / "low", llama().bfloat16().float(), seed=1)
    experts["other"] = save_adapter(
        path / "other", llama().bfloat16(), seed=2, r=4, target_modules=["q_proj", "lm_head"]
    )
    more = {"use_dora": True, "bias": "all", "modules_to_save": ["input_layernorm"]}
    experts["odd"] = save_adapter(path / "odd", llama().bfloat16(), seed=3, **more)
    return path, experts


@pytest.mark.parametrize("granularity", ["tensor", "chunk:3"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_is_what_was_scored(family, tmp_path, method, granularity):
    path, experts = family
    recipe = make_recipe(path / "base", experts, method, granularity, CAUSAL)
    expected = live_merge(recipe, path / "base", experts, tmp_path / "cache")
    out = write(recipe, path, tmp_path / "out")
    model, missing, unexpected = loaded(out, CAUSAL)
    assert (missing, unexpected) == (set(), set())
    assert same(model, expected)
    assert expected["lm_head.weight"].dtype == torch.bfloat16
