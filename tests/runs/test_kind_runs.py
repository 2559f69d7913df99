"""Searches of models of other kinds, from settings to a directory that transformers loads: it is what was scored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from evomerge.cli.progress import Reporter
from evomerge.recipes.model import write_model
from evomerge.recipes.recipe import Recipe
from evomerge.runs.config import check, plain
from evomerge.runs.run import run_search
from tests.kit.helpers import compose
from tests.kit.kinds import BOTH_WAYS, MIXTURES, logits, save_kind
from tests.kit.language import write_jsonl

FITNESS = """
from pathlib import Path

import torch

from tests.kit.kinds import logits


def score(model, processor, items):
    found = logits(model)
    torch.save(found, Path(__file__).with_name(f"{float(found.sum())}.pt"))
    return {task: [float(found[0, i % 4].max()) for i, _ in enumerate(chosen)] for task, chosen in items.items()}
"""
KINDS = {"olmoe": (MIXTURES["olmoe"], "AutoModelForCausalLM"), "bart": (BOTH_WAYS["bart"], "AutoModelForSeq2SeqLM")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_gives_the_logits_that_were_scored(tmp_path: Path, kind: str) -> None:
    (cls, config), auto_class = KINDS[kind]
    save_kind(tmp_path, cls, config, {"base": True, "one": False, "two": True})
    (tmp_path / "own.py").write_text(FITNESS)
    write_jsonl(tmp_path / "items.jsonl", [{"text": f"w{i} w{i + 1}", "label": i % 2} for i in range(60)])
    settings = compose(
        *(
            f"model.base={tmp_path}/base",
            f"model.experts=[{tmp_path}/one,{tmp_path}/two]",
            f"model.auto_class={auto_class}",
            f"model.cache={tmp_path}/cache",
            "model.device=cpu",
            "fitness=custom",
            f"fitness.function={tmp_path}/own.py:score",
            f"fitness.tasks={{t: {{items: {tmp_path}/items.jsonl}}}}",
            "space=model",
            "searcher=random",
            "budget=3",
        )
    )
    check(plain(settings))
    run_search(settings, tmp_path / "run", Reporter())
    recipe = Recipe.from_yaml((tmp_path / "run" / "recipe.yaml").read_text())
    out = write_model(recipe, tmp_path / "run", tmp_path / "out", reporter=Reporter())
    again = logits(getattr(transformers, auto_class).from_pretrained(out))
    scored = [torch.load(file) for file in tmp_path.glob("*.pt")]
    assert any(torch.allclose(again, one, rtol=0, atol=1e-5) for one in scored)
    assert len(scored) > 4
