"""Whose chat template, end token and generation config a merge is scored and written with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import evomerge as em
from evomerge.cli.borrowed import settings_of
from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError
from evomerge.recipes.handover import make_recipe
from evomerge.recipes.live_directory import writer_of
from evomerge.recipes.recipe import Recipe
from evomerge.runs.build import build_problem
from evomerge.runs.config import plain
from evomerge.selection.contenders import of_recipe
from tests.kit.helpers import compose
from tests.kit.language import documents, write_jsonl
from tests.kit.merging import write

OTHER = "{% for m in messages %}< {{ m['content'] }} > {% endfor %}"
SAID: list[dict[str, str]] = [{"role": "user", "content": "w1 w2"}]


@pytest.fixture
def family(language_family: Path, tmp_path: Path) -> Path:
    """A base, and an expert that was tuned with another template and ends with another token."""
    path = Path(shutil.copytree(language_family, tmp_path / "family"))
    tokenizer = AutoTokenizer.from_pretrained(path / "left")
    tokenizer.chat_template, tokenizer.eos_token = OTHER, "|"
    tokenizer.save_pretrained(path / "left")
    GenerationConfig(eos_token_id=[2, 47], do_sample=False).save_pretrained(path / "left")
    write_jsonl(path / "texts.jsonl", documents(60))
    return path


def built(family: Path, *more: str) -> Any:
    models = [f"model.base={family}/base", f"model.experts=[{family}/left,{family}/right]", "model.device=cpu"]
    task = [f"model.cache={family}/cache", "fitness=perplexity", f"fitness.tasks={{t: {family}/texts.jsonl}}"]
    kind = ["model.auto_class=AutoModelForCausalLM", "space=model"]
    return build_problem(plain(compose(*models, *kind, *task, *more)), Reporter())


def asked(path: Path) -> tuple[str, str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(path)
    generation = AutoModelForCausalLM.from_pretrained(path).generation_config
    return tokenizer.apply_chat_template(SAID, tokenize=False), tokenizer.eos_token, generation.eos_token_id


@pytest.mark.parametrize("name", ["base", "left"])
def test_it_is_scored_and_written_with_the_same(family, tmp_path, name):
    problem = built(family, f"model.template={name}")
    live = problem.live
    here = live.processor.apply_chat_template(SAID, tokenize=False), live.processor.eos_token
    assert (*here, live.model.generation_config.eos_token_id) == asked(family / name)
    coefficients = problem.space.constant(0.4)
    recipe = make_recipe(problem, coefficients, {}, {})
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    merged = write(recipe, tmp_path, tmp_path / "merged")
    assert asked(merged) == asked(family / name)
    card = (merged / "README.md").read_text()
    assert ("those of the expert left" in " ".join(card.split())) == (name == "left")
    problem.merger.apply(coefficients)
    inputs = torch.tensor([[3, 4, 5, 6]])
    with torch.inference_mode():
        scored, written = (m(inputs).logits for m in (live.model, AutoModelForCausalLM.from_pretrained(merged)))
    torch.testing.assert_close(written, scored, atol=1e-5, rtol=0)
    (tmp_path / "out").mkdir()
    writer = writer_of(live, problem.vectors.base, problem.template)
    writer.prepare(tmp_path / "out")
    writer.write(live.model, tmp_path / "out")
    assert asked(tmp_path / "out") == asked(family / name)


def test_it_is_part_of_what_is_searched_and_said(family):
    def contents(*more: str) -> str:
        return json.dumps(built(family, *more).contents)

    base, left = contents(), contents("model.template=left")
    assert base != left != contents("model.template=right")
    assert "model.template" not in base
    tokenizer = AutoTokenizer.from_pretrained(family / "left")
    tokenizer.chat_template = OTHER + "."
    tokenizer.save_pretrained(family / "left")
    assert contents("model.template=left") != left
    warnings = built(family, "model.template=left").warnings
    assert any("asked as the expert left is" in text for text in warnings)
    assert not any(text.startswith("expert left") and "chat template" in text for text in warnings)
    assert any(text.startswith("expert right has another chat template than expert left") for text in warnings)


def test_a_recipe_is_evaluated_with_its_own_template_or_not_at_all(family, tmp_path):
    problem = built(family, "model.template=left")
    recipe = make_recipe(problem, problem.space.constant(0.4), {}, {})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert settings_of([], [str(tmp_path / "recipe.yaml")], Reporter())["model"]["template"] == "left"
    of_recipe(tmp_path / "recipe.yaml", problem)
    with pytest.raises(ConfigError, match=r"was made with model\.template=left, .* with that of base: write"):
        of_recipe(tmp_path / "recipe.yaml", built(family))


def test_an_unknown_expert_and_an_end_token_that_the_base_lacks_are_refused(family):
    with pytest.raises(ConfigError, match=r"model\.template: Unknown expert 'lefft': did you mean 'left'"):
        built(family, "model.template=lefft")
    tokenizer = AutoTokenizer.from_pretrained(family / "left")
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(family / "left")
    with pytest.raises(ConfigError, match="its end token <end> is not the same token of the base's tokenizer"):
        built(family, "model.template=left")


def test_a_program_asks_so(family, tmp_path):
    experts = {name: family / name for name in ("left", "right")}
    more = {"auto_class": "AutoModelForCausalLM", "device": "cpu", "cache": tmp_path / "cache"}
    opened = em.Family(family / "base", experts, template="left", **more)
    candidate = em.Candidate(opened, space="model")
    items = em.items(family / "texts.jsonl")
    result = em.search(candidate, "perplexity", {"t": items}, searcher="random", budget=1)
    assert result.recipe.template == "left"
    assert asked(result.save(tmp_path / "merged")) == asked(family / "left")
    with pytest.raises(ConfigError, match=r"model\.template: Unknown expert 'lefft': did you mean 'left'"):
        em.Family(family / "base", experts, template="lefft", **more)
