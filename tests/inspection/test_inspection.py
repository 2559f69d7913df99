from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from transformers import BertForSequenceClassification, BertModel, LlamaConfig, LlamaForCausalLM

from evomerge.cli.progress import Reporter
from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.inspection.document import document
from evomerge.inspection.sources import Inspection, inspect_sources
from evomerge.problem import Sources
from tests.kit.language import save_tokenizer
from tests.kit.models import BERT, LLAMA, LLAMA_TIED, TINY, pico, rewritten


def look(path, *experts: str, auto_class: str = "AutoModel", density: float = 0.2) -> Inspection:
    sources = Sources(path / "base", {name: path / name for name in experts}, {})
    return inspect_sources(sources, auto_class, path / "cache", density, Reporter())


def vary(model, seed: int):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """Families of a tied and an untied language model."""
    path = tmp_path_factory.mktemp("llamas")
    for kind, config in (("tied", LLAMA_TIED), ("untied", LLAMA)):
        pico(LlamaForCausalLM, config).save_pretrained(path / kind / "base")
        vary(pico(LlamaForCausalLM, config), 1).save_pretrained(path / kind / "a")
        vary(pico(LlamaForCausalLM, config), 2).save_pretrained(path / kind / "sharded", max_shard_size="30KB")
        vary(pico(LlamaForCausalLM, config), 3).to(torch.bfloat16).save_pretrained(path / kind / "short")
        pico(LlamaForCausalLM, config, seed=9).save_pretrained(path / kind / "stranger")
        longer = LlamaConfig(**TINY | {"vocab_size": 53}, num_key_value_heads=2)
        longer.tie_word_embeddings = config.tie_word_embeddings
        pico(LlamaForCausalLM, longer).save_pretrained(path / kind / "longer")
    return path


@pytest.fixture
def family(llamas, tmp_path):
    """A copy of the tied family, to be changed."""
    return shutil.copytree(llamas / "tied", tmp_path / "family")


def test_pico_suite(pico_suite, tmp_path):
    sources = Sources(pico_suite.base, dict(pico_suite.experts), {})
    found = inspect_sources(sources, "AutoModel", tmp_path / "cache", 0.2, Reporter())
    assert found.refused == []
    assert found.compared == list(pico_suite.experts)
    assert found.live == "BertModel"
    assert found.groups[0].name == "embeddings"
    assert sum(found.of(group).elements for group in found.groups) == found.whole.elements
    assert (found.whole.ratios > 0).all()
    assert [file.name for file in (tmp_path / "cache").glob("*.safetensors")] == []  # no task vector is written


def test_a_family_of_shards_and_dtypes(llamas):
    found = look(llamas / "tied", "a", "sharded", "short")
    assert found.refused == []
    (warning,) = found.warnings
    assert warning.startswith("expert short has ")
    assert [member.facts and member.facts.files for member in found.members][:2] == [1, 1]
    assert found.experts[1].facts is not None
    assert found.experts[1].facts.files > 1
    # elements are drawn with the same width in all three
    assert found.whole.norms == pytest.approx([0.05 * math.sqrt(found.whole.elements)] * 3, rel=0.02)
    assert abs(found.whole.cosines - [[1, 0, 0], [0, 1, 0], [0, 0, 1]]).max() < 0.03


def test_an_untied_head_is_merged_by_its_own_class_alone(llamas):
    headless = look(llamas / "untied", "a")
    assert any("lm_head.weight, no part of LlamaModel" in text for text in headless.warnings)
    assert any("model.auto_class=AutoModelForCausalLM has it" in text for text in headless.warnings)
    whole = look(llamas / "untied", "a", auto_class="AutoModelForCausalLM")
    assert whole.warnings == []
    assert whole.whole.elements - headless.whole.elements == 50 * 32
    assert look(llamas / "tied", "a", auto_class="AutoModelForCausalLM").whole.elements == headless.whole.elements


def test_one_that_does_not_fit_costs_itself(llamas):
    found = look(llamas / "tied", "longer", "a", "stranger", "nowhere")
    errors = {member.name: member.error or "" for member in found.refused}
    assert list(errors) == ["longer", "stranger", "nowhere"]
    assert "the vocabularies differ (53 tokens and 50)" in errors["longer"]
    assert "was not tuned from base" in errors["stranger"]
    assert "does not exist" in errors["nowhere"]
    assert found.compared == ["a", "stranger"]  # how far it lies from the base can be told all the same
    assert found.whole.ratios[0] < 0.1 < 1 < found.whole.ratios[1]
    assert found.experts[0].facts is not None
    assert found.experts[0].facts.elements > found.whole.elements
    assert found.experts[3].facts is None


def test_nobody_fits(llamas):
    found = look(llamas / "tied", "longer")
    assert (found.compared, len(found.refused)) == ([], 1)
    assert document(found, None, 200)["experts"]["longer"]["fits"] is False


def test_the_base_as_expert_and_one_expert_twice(family):
    shutil.copytree(family / "base", family / "same")
    shutil.copytree(family / "a", family / "twin")
    found = look(family, "same", "a", "twin", "sharded")
    assert found.warnings == [
        "expert same equals the base in all that is merged: its task vector is zero",
        *(text for text in found.warnings if text.startswith("experts a and twin have nearly the same task vectors")),
    ]
    assert len(found.warnings) == 2
    assert found.whole.changed[0] == 0


def test_not_finite(family):
    def breaks(tensors: dict) -> dict:
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = math.inf
        return tensors

    rewritten(family / "a", breaks)
    (member,) = look(family, "a", "sharded").refused
    assert "layers.1.mlp.up_proj.weight of expert a is not finite" in (member.error or "")
    rewritten(family / "base", breaks)
    (member,) = look(family, "a", "sharded").refused
    assert (member.name, "of the base is not finite" in (member.error or "")) == ("base", True)


def test_a_base_without_the_head_of_its_class(own_classifiers):
    found = look(own_classifiers, "mood", "topic", auto_class="AutoModelForSequenceClassification")
    assert [member.name for member in found.refused] == ["base", "topic"]  # topic has three classes, the live model two
    assert "no file holds classifier.weight, classifier.bias" in (found.base.error or "")
    assert found.compared == ["mood"]


def test_classifiers_with_heads_of_their_own(own_classifiers):
    found = look(own_classifiers, "mood", "topic")
    assert found.refused == []
    assert [text.split(":")[0] for text in found.warnings] == [
        "expert mood has classifier.bias, classifier.weight beyond the base",
        "expert topic has classifier.bias, classifier.weight beyond the base",
    ]
    result = document(found, None, 200)
    assert result["experts"]["mood"]["extra"] == ["classifier.bias", "classifier.weight"]
    assert result["experts"]["mood"]["class"] == "BertForSequenceClassification"
    depth = {group["name"]: group["ratios"] for group in result["groups"]}
    assert depth["embeddings"] == [0, 0]  # only the blocks were tuned
    assert min(depth["encoder.layer.0"]) > 0


def test_missing_pooler(tmp_path):
    pico(BertModel, BERT, add_pooling_layer=False).save_pretrained(tmp_path / "base")
    vary(pico(BertModel, BERT, add_pooling_layer=False), 1).save_pretrained(tmp_path / "a")
    found = look(tmp_path, "a")
    assert found.refused == []
    (warning,) = found.warnings
    assert warning.startswith("the base holds no pooler.dense.weight, pooler.dense.bias")
    result = document(found, None, 200)
    assert (len(result["base"]["missing"]), result["experts"]["a"]["missing"]) == (2, [])


def test_tokens_templates_and_licences(family):
    special = ["<unk>", "<s>", "</s>"]
    for name, tokens in {"base": ["a", "b"], "a": ["b", "a"], "sharded": ["a", "b", "c"]}.items():
        save_tokenizer(family / name, [*special, *tokens], "x" if name != "a" else "y")
        (family / name / "README.md").write_text(f"---\nlicense: {'mit' if name == 'a' else 'apache-2.0'}\n---\n")
    found = look(family, "a", "sharded")
    assert [text.split(":")[0] for text in found.warnings] == [
        "expert a gives 2 tokens another id than the base (a, b)",
        "expert a has another chat template than the base, whose is used for all",
        "expert sharded has 1 token that the base's tokenizer lacks (c)",
        "base and experts have other licences (apache-2.0, mit)",
    ]
    experts = document(found, None, 200)["experts"]
    assert (experts["a"]["moved"], experts["a"]["added"], experts["a"]["lost"]) == (["a", "b"], [], [])
    assert (experts["sharded"]["moved"], experts["sharded"]["added"]) == ([], ["c"])
    assert [experts[name]["chat_template"] for name in experts] == ["other", "same"]


def test_another_image_processor(vision_family, tmp_path):
    path = shutil.copytree(vision_family, tmp_path / "vision")
    file = path / "letters" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0, 0, 0]}))
    found = look(path, "digits", "letters")
    assert found.refused == []
    said = "expert letters has another image processor than the base, whose is used for all: image_mean is [0, 0, 0]"
    assert sum(text.startswith(said) for text in found.warnings) == 1
    experts = document(found, None, 200)["experts"]
    assert [experts[name]["image_processor"] for name in experts] == ["same", "other"]


def test_a_model_without_blocks_has_no_depth(tmp_path, monkeypatch):
    monkeypatch.setattr("evomerge.space.groups._CONTAINERS", ("nothing",))
    pico(BertModel, BERT).save_pretrained(tmp_path / "base")
    vary(pico(BertModel, BERT), 1).save_pretrained(tmp_path / "a")
    found = look(tmp_path, "a")
    assert (found.refused, found.groups) == ([], ())


def test_a_base_that_cannot_be_read(llamas, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        look(tmp_path, "a")
    with pytest.raises(ConfigError, match="AutoModul"):
        look(llamas / "tied", "a", auto_class="AutoModul")


def test_a_base_that_is_not_what_its_config_says(llamas, tmp_path):
    shutil.copytree(llamas / "tied" / "base", tmp_path / "base")
    BERT.save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"no file holds embeddings\.word_embeddings\.weight"):
        look(tmp_path, "a")


def test_another_architecture(llamas, tmp_path):
    shutil.copytree(llamas / "tied" / "base", tmp_path / "base")
    BertForSequenceClassification(BERT).save_pretrained(tmp_path / "bert")
    (member,) = look(tmp_path, "bert").refused
    assert "Its architecture is not the base's" in (member.error or "")


def test_a_document_is_json_and_nothing_is_lost(llamas):
    found = look(llamas / "tied", "a", "sharded", density=0.5)
    result = json.loads(json.dumps(document(found, None, 200)))
    assert result["live"] == {"class": "LlamaModel", "auto_class": "AutoModel", "elements": 22240, "tensors": 20}
    assert result["compared"] == ["a", "sharded"]
    assert result["whole"]["cosines"][0][1] == pytest.approx(found.whole.cosines[0, 1])
    assert result["whole"]["opposite"]["pairs"][0][1] == pytest.approx(found.whole.signs.pairs[0, 1])
    assert result["whole"]["opposite"]["together"] == result["whole"]["opposite"]["pairs"][0][1]
    assert result["whole"]["opposite"]["chance"] == 0.5
    assert [group["name"] for group in result["groups"]] == ["embeddings", "layers.0", "layers.1", "head"]
    assert [group["depth"] for group in result["groups"]] == [None, 0, 1, None]
    vector = result["experts"]["a"]["task_vector"]
    matrices = [name for name, shape in found.parameters.items() if len(shape) > 1]
    assert vector["most_changed"] == max(matrices, key=lambda name: vector["ratios"][name])
    assert vector["tensors_changed"] == 20
    assert result["errors"] == []
    assert result["needs"] is None
