"""Odd model directories that people have: each is refused by name, named, or scored as transformers loads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, MarianConfig, MarianMTModel

from evomerge.cli.progress import Reporter
from evomerge.common.errors import CheckpointError
from evomerge.inspection.sources import inspect_sources
from evomerge.problem import Sources
from evomerge.recipes.handover import make_recipe
from evomerge.recipes.model import write_model
from evomerge.runs.build import build_problem
from evomerge.selection.evaluation import Model, evaluate
from tests.kit.evaluations import under
from tests.kit.models import rewritten
from tests.kit.yardstick import logits, outcome, save_families, save_family, settings_of

CAUSAL = "AutoModelForCausalLM"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("families")
    save_families(path)
    return path


@pytest.fixture
def family(root: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a family that a test may change."""
    return lambda name: Path(shutil.copytree(root / name, tmp_path / name))


def deeper(path: Path, layers: int) -> None:
    """Make a Llama of another depth, with the layers that it had."""
    config = AutoConfig.from_pretrained(path, num_hidden_layers=layers)
    old, model = AutoModelForCausalLM.from_pretrained(path), LlamaForCausalLM(config)
    model.load_state_dict(old.state_dict(), strict=False)
    model.save_pretrained(path)


def quantised(path: Path) -> None:
    """Projections as GPTQ has them, and no word of it in config.json."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for key in [key for key in tensors if "proj" in key]:
            stem = key.removesuffix(".weight")
            del tensors[key]
            tensors |= {f"{stem}.qweight": torch.ones(4, 32, dtype=torch.int32), f"{stem}.scales": torch.ones(1, 32)}
        return tensors

    rewritten(path, change)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "projections of GPTQ": (quantised, r"lacks model\.layers\.0\.self_attn\.q_proj\.weight.*holds model.*scales"),
    "one layer less": (lambda path: deeper(path, 1), r"expert one .* lacks model\.layers\.1\.\S+,.* and 6 more"),
    "one layer more": (lambda path: deeper(path, 3), r"expert one .* holds model\.layers\.2\.\S+,.* and 6 more"),
    "a norm that is not there": (
        lambda path: rewritten(path, lambda t: {k: v for k, v in t.items() if k != "model.norm.weight"}),
        r"expert one .* lacks model\.norm\.weight",
    ),
    "a bias that the base has not": (
        lambda path: rewritten(path, lambda t: t | {"lm_head.bias": torch.ones(50)}),
        r"expert one .* holds lm_head\.bias, which the live model does not have",
    ),
    "8-bit codes": (
        lambda path: rewritten(path, lambda t: t | {"lm_head.weight": t["lm_head.weight"].to(torch.int8)}),
        r"lm_head\.weight is torch\.int8; the weights are quantised",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_expert_that_does_not_fit_is_refused_by_search_and_inspect_in_the_same_words(root, family, name):
    change, message = REFUSED[name]
    path = family("llama")
    change(path / "one")
    done, said, _ = outcome(settings_of(root), path, CAUSAL)
    assert done == "refused"
    with pytest.raises(CheckpointError, match=message):
        raise CheckpointError(said)
    sources = Sources(path / "base", {"one": path / "one", "two": path / "two"}, {})
    (refused,) = inspect_sources(sources, CAUSAL, path / "cache", 0.2, Reporter()).refused
    assert refused.error == said


@pytest.mark.parametrize("name", ["projections of GPTQ", "one layer less", "one layer more"])
def test_whoever_means_it_may_merge_a_part(root, family, name):
    path, settings = family("llama"), settings_of(root)
    REFUSED[name][0](path / "one")
    settings["model"] |= {"allow_missing": ["model.layers.*"]}
    done, said, equal = outcome(settings, path, CAUSAL)
    assert done == "scored"
    what = "lacks model.layers." if name != "one layer more" else "has model.layers.2."
    assert f"expert one {what}" in said
    assert equal["base"]


def test_keys_that_have_the_prefix_in_part_are_read_as_transformers_reads_them(root, family):
    path = family("llama")
    rewritten(path / "one", lambda t: {k.replace("model.", "", 1) if ".1." in k else k: v for k, v in t.items()})
    done, said, equal = outcome(settings_of(root), path, CAUSAL)
    assert (done, all(equal.values())) == ("scored", True)
    assert "expert one" not in said


def test_an_architecture_that_transformers_does_not_know_is_refused_with_what_to_do(root, family):
    path = family("llama")
    file = path / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "mine"}))
    done, said, _ = outcome(settings_of(root), path, CAUSAL)
    assert done == "refused"
    assert "register those of 'mine' in a program of your own" in said


# heads


def tie(path: Path) -> None:
    """Tie head and embedding, as transformers saves it: no head is in the file."""
    rewritten(path, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != "lm_head.weight"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))


@pytest.mark.parametrize("whole", [False, True], ids=["head left out", "head written out"])
def test_the_head_of_an_expert_that_ties_is_its_embedding(root, family, whole):
    path = family("llama")
    tie(path / "one")
    if whole:
        rewritten(path / "one", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    done, said, equal = outcome(settings_of(root), path, CAUSAL)
    assert (done, equal) == ("scored", dict.fromkeys(equal, True))
    assert "tie_word_embeddings" in said


def test_an_embedding_that_stands_under_the_name_of_the_head_alone(root, family):
    path = family("llama")
    tie(path / "one")
    rewritten(path / "one", lambda t: {k.replace("model.embed_tokens", "lm_head"): v for k, v in t.items()})
    done, _, equal = outcome(settings_of(root), path, CAUSAL)
    assert (done, equal) == ("scored", dict.fromkeys(equal, True))


def test_an_expert_that_neither_ties_nor_holds_a_head_has_none(root, family):
    path = family("tied")
    config = json.loads((path / "one" / "config.json").read_text())
    (path / "one" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    done, said, _ = outcome(settings_of(root), path, CAUSAL)
    assert done == "refused"
    assert "expert one" in said
    assert "lacks lm_head.weight" in said


@pytest.fixture
def two_heads(family) -> Path:
    """A base that is tied by its config and holds two different tensors: transformers does not tie it."""
    path = family("tied")
    for name in ("base", "one", "two"):
        rewritten(path / name, lambda t: t | {"lm_head.weight": 0.5 * t["model.embed_tokens.weight"] + 0.01})
    return path


def test_all_verbs_agree_on_a_base_that_its_config_ties_and_its_files_do_not(root, two_heads):
    settings = settings_of(root)
    done, _, equal = outcome(settings, two_heads, CAUSAL)
    assert (done, equal) == ("scored", dict.fromkeys(equal, True))
    sources = Sources(two_heads / "base", {"one": two_heads / "one", "two": two_heads / "two"}, {})
    found = inspect_sources(sources, CAUSAL, two_heads / "cache", 0.2, Reporter())
    assert not found.refused
    assert "lm_head.weight" in found.parameters
    experts = {name: str(two_heads / name) for name in ("one", "two")}
    settings["model"] |= {"base": str(two_heads / "base"), "experts": experts, "auto_class": CAUSAL}
    problem = build_problem(settings, Reporter())
    coefficients = problem.space.constant([0.3, 0.4])
    problem.merger.apply(coefficients)
    recipe = make_recipe(problem, coefficients, {}, {})
    out = write_model(recipe, two_heads, two_heads / "merged", reporter=Reporter())
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(out)), logits(problem.live.model))


def test_two_heads_over_a_base_that_ties_are_refused_and_the_advice_works(root, family):
    path, settings = family("tied"), settings_of(root)
    for name in ("one", "two"):
        rewritten(path / name, lambda t: t | {"lm_head.weight": 0.5 * t["model.embed_tokens.weight"] + 0.01})
    done, said, _ = outcome(settings, path, CAUSAL)
    assert done == "refused"
    assert "Give the base a head of its own" in said
    model: Any = AutoModelForCausalLM.from_pretrained(path / "base")  # what the message says, to the letter
    model.config.tie_word_embeddings = False
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.save_pretrained(path / "new")
    for file in (path / "base").glob("*token*"):
        shutil.copy(file, path / "new")
    shutil.rmtree(path / "base")
    (path / "new").rename(path / "base")
    done, _, equal = outcome(settings, path, CAUSAL)
    assert (done, equal) == ("scored", dict.fromkeys(equal, True))


def test_only_another_vocabulary_is_called_that(root, family):
    """Also where config.json leaves the size to the class's default, or nests it."""
    path, settings = family("llama"), settings_of(root)
    grown: Any = AutoModelForCausalLM.from_pretrained(path / "one")
    grown.resize_token_embeddings(53)
    grown.save_pretrained(path / "one")
    done, said, _ = outcome(settings, path, CAUSAL)
    assert done == "refused"
    assert "the vocabularies differ (53 tokens and 50)" in said
    settings["model"] |= {"vocabulary": "shared"}  # as the message says
    assert outcome(settings, path, CAUSAL)[0] == "scored"


# files


def test_transposed_matrices_of_converted_files_are_searched(root, family):
    path = family("bert")
    for name in ("base", "one"):
        tensors = {
            k: t.T.contiguous().T if t.dim() == 2 else t
            for k, t in load_file(path / name / "model.safetensors").items()
        }
        torch.save(tensors, path / name / "pytorch_model.bin")
        (path / name / "model.safetensors").unlink()
    done, _, equal = outcome(settings_of(root), path, "AutoModel")
    assert (done, equal) == ("scored", dict.fromkeys(equal, True))


def test_transposed_experts_in_16_bits_are_kept_as_they_are(root, family):
    path = family("llama")
    for name in ("base", "one", "two"):
        tensors = load_file(path / name / "model.safetensors")
        tensors = {k: t.bfloat16().T.contiguous().T if t.dim() == 2 else t.bfloat16() for k, t in tensors.items()}
        torch.save(tensors, path / name / "pytorch_model.bin")
        (path / name / "model.safetensors").unlink()
        config = json.loads((path / name / "config.json").read_text())
        (path / name / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    done, _, equal = outcome(settings_of(root), path, CAUSAL)
    assert (done, equal["base"], equal["directory"]) == ("scored", True, True)


MARIAN = MarianConfig(
    vocab_size=50,
    decoder_vocab_size=50,
    d_model=32,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    max_position_embeddings=16,
    pad_token_id=0,
    eos_token_id=2,
    decoder_start_token_id=0,
    forced_eos_token_id=None,
)


def test_positions_that_are_computed_need_not_be_in_the_files(root, tmp_path):
    """Every MarianMT: its sinusoidal positions are parameters, and no file holds them."""
    save_family(tmp_path, MarianMTModel, MARIAN)
    for name in ("base", "one", "two"):
        rewritten(tmp_path / name, lambda t: {key: tensor for key, tensor in t.items() if "embed_positions" not in key})
        assert not [key for key in load_file(tmp_path / name / "model.safetensors") if "embed_positions" in key]
    sources = Sources(tmp_path / "base", {"one": tmp_path / "one", "two": tmp_path / "two"}, {})
    found = inspect_sources(sources, "AutoModelForSeq2SeqLM", tmp_path / "cache", 0.2, Reporter())
    assert not found.refused
    assert not [warning for warning in found.warnings if "positions" in warning]
    settings = settings_of(root)
    experts = {name: str(tmp_path / name) for name in ("one", "two")}
    settings["model"] |= {"base": str(tmp_path / "base"), "experts": experts, "auto_class": "AutoModelForSeq2SeqLM"}
    problem = build_problem(settings, Reporter())
    problem.become("one")
    expected = MarianMTModel.from_pretrained(tmp_path / "one")
    for name, parameter in problem.live.model.named_parameters():
        torch.testing.assert_close(parameter, expected.get_parameter(name), rtol=0, atol=1e-6)


def test_buffers_are_compared_under_either_name(root, family):
    """A float buffer that differs is named, whatever prefix the files have."""
    path = family("bert")
    for name, value in (("base", 0.0), ("one", 1.0), ("two", 0.0)):
        rewritten(path / name, lambda t, v=value: t | {"head.running_mean": torch.full((4,), v)})
    rewritten(path / "one", lambda t: {f"bert.{key}" if not key.startswith("head") else key: v for key, v in t.items()})
    _, said, _ = outcome(settings_of(root), path, "AutoModel")
    assert "expert one differs from the base in head.running_mean" in said
    assert "expert two differs" not in said


def test_rows_that_are_scored_without_tensors_of_their_own_are_marked(root, family, tmp_path):
    """An expert by name and its directory, where the user has allowed that it lacks something; others are not."""
    path, settings = family("llama"), settings_of(root)
    (tmp_path / "ones.py").write_text(
        "def score(model, processor, items):\n    return {task: [1.0] * len(items[task]) for task in items}\n"
    )
    REFUSED["a norm that is not there"][0](path / "one")
    experts = {name: str(path / name) for name in ("one", "two")}
    settings["model"] |= {"base": str(path / "base"), "experts": experts, "auto_class": CAUSAL}
    settings["model"] |= {"allow_missing": ["model.norm.weight"]}
    settings["fitness"] |= {"function": f"{tmp_path}/ones.py:score"}
    problem = build_problem(settings, Reporter())
    models = {name: Model("expert", name) for name in experts} | {"dir": Model("directory", path / "one")}
    marks = evaluate(under(problem, settings), models, "select", Reporter()).marks
    said = "scored{} with the base's model.norm.weight in place of its own"
    assert marks == {"one": [f"expert one is {said.format(' on t')}"], "dir": [f"it is {said.format('')}"]}
