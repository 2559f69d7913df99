"""A model that sees, and experts that are its language model alone (`model.part`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from evomerge.cli.progress import Reporter
from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.inspection.sources import inspect_sources
from evomerge.problem import Problem, Sources
from evomerge.recipes.handover import make_recipe
from evomerge.recipes.model import write_model
from evomerge.runs.build import build_problem
from tests.kit.kinds import INPUT
from tests.kit.language import save_tokenizer, write_jsonl
from tests.kit.models import LLAMA, TINY, pico, rewritten
from tests.kit.yardstick import settings_of

CLASS = "AutoModelForImageTextToText"
VISION = CLIPVisionConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
)
QWEN2 = Qwen2Config(**TINY, num_key_value_heads=2)
TOKENS = {f"{name}_token_id": 40 + i for i, name in enumerate(("image", "video", "vision_start", "vision_end"))}
SEEING = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 1, "patch_size": 4}
ROPE = {"mrope_section": [2, 3, 3], "rope_type": "default", "rope_theta": 10000.0}
FAMILIES: dict[str, Any] = {
    "llava": (
        LlavaForConditionalGeneration,
        LlavaConfig(vision_config=VISION, text_config=LLAMA, image_token_index=40),
        LlamaForCausalLM,
        LLAMA,
    ),
    "qwen2_vl": (
        Qwen2VLForConditionalGeneration,
        Qwen2VLConfig(
            text_config={**TINY, "num_key_value_heads": 2, "rope_parameters": ROPE},
            vision_config=SEEING,
            **TOKENS,
        ),
        Qwen2ForCausalLM,
        QWEN2,
    ),
}


def save_family(path: Path, kind: str) -> None:
    """A base; `reads`, an expert of its language model alone; and `sees`, one of the whole."""
    whole, config, reader, inner = FAMILIES[kind]
    base = pico(whole, config)
    for parameter in base.parameters():
        parameter.data *= 0.3
    base.save_pretrained(path / "base")
    own = pico(reader, inner)
    own.model.load_state_dict(base.model.language_model.state_dict())
    own.lm_head.load_state_dict(base.lm_head.state_dict())
    for number, (name, model) in enumerate({"reads": own, "sees": base}.items()):
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(path / name)
    for name in ("base", "reads", "sees"):
        save_tokenizer(path / name)
    (path / "fitness.py").write_text("def score(model, processor, items):\n    raise SystemExit\n")
    write_jsonl(path / "items.jsonl", [{"text": f"w{i} w{i + 1}", "label": i % 2} for i in range(100)])


@pytest.fixture
def problem_of(tmp_path: Path) -> Callable[..., Problem]:
    def build(part: str | None = "language_model", **more: Any) -> Problem:
        settings = settings_of(tmp_path)
        own = {"base": str(tmp_path / "base"), "experts": {name: str(tmp_path / name) for name in ("reads", "sees")}}
        settings["model"] |= {**own, "auto_class": CLASS, "cache": str(tmp_path / "cache"), "part": part, **more}
        return build_problem(settings, Reporter())

    return build


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=INPUT).logits


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_language_model_is_merged_into_the_part_of_the_base_that_it_is(tmp_path, problem_of, kind):
    save_family(tmp_path, kind)
    problem = problem_of()
    assert any("expert reads is the model.language_model of the base" in warning for warning in problem.warnings)
    coefficients = problem.space.constant([0.7, -0.4])
    problem.merger.apply(coefficients)
    recipe = make_recipe(problem, coefficients, {}, {})
    assert recipe.part == "model.language_model"
    live = dict(problem.live.model.named_parameters())
    whole, _, reader, _ = FAMILIES[kind]
    base, sees = (dict(whole.from_pretrained(tmp_path / name).named_parameters()) for name in ("base", "sees"))
    reads = dict(reader.from_pretrained(tmp_path / "reads").named_parameters())
    reads = {name.replace("model.", "model.language_model."): tensor for name, tensor in reads.items()}
    assert reads.keys() < base.keys()
    for name, before in base.items():
        expected = before + 0.7 * (reads.get(name, before) - before) - 0.4 * (sees[name] - before)
        torch.testing.assert_close(live[name], expected, rtol=0, atol=1e-6)
    out = write_model(recipe, tmp_path, tmp_path / "merged", reporter=Reporter())
    again = AutoModelForImageTextToText.from_pretrained(out)
    torch.testing.assert_close(logits(again), logits(problem.live.model), rtol=0, atol=1e-5)
    assert load_file(out / "model.safetensors").keys() == load_file(tmp_path / "base" / "model.safetensors").keys()


def test_what_is_no_part_is_refused_by_name(tmp_path, problem_of):
    save_family(tmp_path, "llava")
    with pytest.raises(ConfigError, match=r"model\.part: .*languag_model.*did you mean 'language_model'"):
        problem_of("languag_model")
    with pytest.raises(CheckpointError, match=r"reads holds a LlamaForCausalLM, which is not the model\.vision_tower"):
        problem_of("vision_tower")
    with pytest.raises(
        CheckpointError, match=r"reads is a llama, and the base a llava, .* write model\.part=language_model:"
    ):
        problem_of(None)


def test_a_part_that_lacks_a_tensor_is_refused_by_its_name_in_the_base(tmp_path, problem_of):
    save_family(tmp_path, "llava")
    rewritten(tmp_path / "reads", lambda t: {key: one for key, one in t.items() if key != "model.norm.weight"})
    with pytest.raises(CheckpointError, match=r"expert reads .* lacks model\.language_model\.norm\.weight"):
        problem_of()


def test_a_part_with_fewer_layers_is_refused(tmp_path, problem_of):
    save_family(tmp_path, "llava")
    config = LlamaConfig(**{**LLAMA.to_dict(), "num_hidden_layers": 1, "layer_types": None})
    pico(LlamaForCausalLM, config).save_pretrained(tmp_path / "reads")
    with pytest.raises(CheckpointError, match=r"reads .* lacks model\.language_model\.layers\.1\.self_attn\.q_proj"):
        problem_of()


def test_inspect_sees_a_part(tmp_path):
    save_family(tmp_path, "llava")
    sources = Sources(tmp_path / "base", {"reads": tmp_path / "reads"}, {})
    found = inspect_sources(sources, CLASS, tmp_path / "cache", 0.2, Reporter(), part="language_model")
    assert not found.refused
    assert not any("another configuration" in note for note in found.warnings)
