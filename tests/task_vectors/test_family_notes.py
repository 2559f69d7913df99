"""What is said of a family of models: the same by all verbs, of all that makes a row another model than its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    ResNetModel,
)

from evomerge.cli.progress import Reporter
from evomerge.common.errors import CheckpointError
from evomerge.inspection.sources import inspect_sources
from evomerge.models.processing import Processing, processing_notes
from evomerge.problem import Sources
from evomerge.runs.build import build_problem
from evomerge.runs.config import check, plain
from evomerge.selection.evaluation import Model, evaluate
from evomerge.task_vectors.family import auto_class_of
from tests.kit.evaluations import under
from tests.kit.helpers import compose
from tests.kit.language import CHAT, VOCABULARY, documents, save_tokenizer, write_jsonl
from tests.kit.merging import make_recipe, save_family, write
from tests.kit.models import TINY, pico, rewritten

CAUSAL = "AutoModelForCausalLM"


@pytest.fixture
def family(language_family, tmp_path) -> Path:
    """A copy of the pico language models, to be changed."""
    path = shutil.copytree(language_family, tmp_path / "family")
    write_jsonl(path / "texts.jsonl", [{"text": row["text"]} for row in documents(40)])
    return path


def settings_of(path: Path, *more: str) -> dict:
    given = plain(
        compose(
            "fitness=perplexity",
            f"model.base={path}/base",
            f"model.experts=[{path}/left,{path}/right]",
            f"model.cache={path}/cache",
            f"model.auto_class={CAUSAL}",
            "model.device=cpu",
            f"fitness.tasks={{mine: {{task: {path}/texts.jsonl, expert: left}}}}",
            *more,
        )
    )
    check(given)
    return given


def inspected(path: Path):
    sources = Sources(path / "base", {name: path / name for name in ("left", "right")}, {})
    return inspect_sources(sources, CAUSAL, path / "cache", 0.2, Reporter())


def put(file: Path, **changes) -> None:
    """Change a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def twins(path: Path) -> None:
    shutil.rmtree(path / "right")
    shutil.copytree(path / "left", path / "right")


def the_base_again(path: Path) -> None:
    shutil.copyfile(path / "base" / "model.safetensors", path / "left" / "model.safetensors")


def broken(path: Path, name: str) -> None:
    def breaks(tensors: dict) -> dict:
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.inf
        return tensors

    rewritten(path / name, breaks)


def other_card(path: Path) -> None:
    for name, licence in (("base", "mit"), ("left", "apache-2.0")):
        (path / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n")


def without(path: Path, *patterns: str) -> None:
    for pattern in patterns:
        for file in path.glob(pattern):
            file.unlink()


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "rope": (
        lambda path: put(path / "left" / "config.json", rope_parameters={"rope_theta": 1e5, "rope_type": "default"}),
        "expert left was made for another configuration than the base: rope_parameters.rope_theta is 100000.0 there",
    ),
    "base": (lambda path: put(path / "base" / "config.json", hidden_act="gelu"), "expert right was made for another"),
    "stops": (
        lambda path: put(path / "left" / "generation_config.json", eos_token_id=[2, 5]),
        "eos_token_id is [2, 5]",
    ),
    "dtype": (lambda path: put(path / "left" / "config.json", dtype="bfloat16"), "expert left is loaded in bfloat16"),
    "template": (
        lambda path: save_tokenizer(path / "left", chat=f"{CHAT} "),
        "expert left has another chat template than the base",
    ),
    "no template": (
        lambda path: save_tokenizer(path / "left", chat=None) or without(path / "left", "*.jinja"),
        "expert left has no chat template",
    ),
    "tokens": (
        lambda path: save_tokenizer(path / "left", [*VOCABULARY[:-2], "|", "x"]),
        "expert left has 1 token that the base's tokenizer lacks (x)",
    ),
    "special": (
        lambda path: put(path / "left" / "tokenizer_config.json", eos_token="Q"),
        'expert left has another tokenizer than the base, whose is used for all: eos_token is "Q" there and "</s>"',
    ),
    "room": (
        lambda path: put(path / "left" / "tokenizer_config.json", model_max_length=7),
        "model_max_length is 7 there and",
    ),
    "case": (
        lambda path: put(path / "left" / "tokenizer.json", normalizer={"type": "Lowercase"}),
        'normalizer.type is "Lowercase" there and null in the base',
    ),
    "no tokenizer": (
        lambda path: without(path / "left", "tokenizer*", "*.jinja", "special*"),
        "expert left holds no tokenizer, so it could not be compared with the base's",
    ),
    "damaged tokenizer": (
        lambda path: (path / "left" / "tokenizer.json").write_text("{}"),
        "expert left has another tokenizer.json than the base: its tokenizer could not be compared",
    ),
    "another format": (
        lambda path: without(path / "left", "tokenizer.json") or (path / "left" / "tekken.json").write_text("{}"),
        "could not be compared",
    ),
    "twins": (twins, "experts left and right have nearly the same task vectors (cosine 1.0000"),
    "the base again": (the_base_again, "expert left equals the base in all that is merged"),
    "licences": (other_card, "base and experts have other licences (apache-2.0, mit)"),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_inspect_says_a_search_says(family, odd):
    change, said = ODD[odd]
    change(family)
    warnings = inspected(family).warnings
    assert any(said in text for text in warnings), warnings
    told = build_problem(settings_of(family), Reporter()).warnings
    assert [text for text in told if not text.startswith("few ")] == warnings


@pytest.mark.parametrize("odd", ["rope", "dtype", "template", "twins", "the base again", "licences"])
def test_what_merge_says_stands_on_the_card(family, odd, capsys):
    change, said = ODD[odd]
    change(family)
    experts = {name: family / name for name in ("left", "right")}
    out = write(make_recipe(family / "base", experts, auto_class=CAUSAL), family, family / "out")
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert any(said in line for line in warnings)
    assert listed_on_card(out) == [line.removeprefix("warning: ") for line in warnings]


def test_buffers_that_differ_stand_on_the_card(tmp_path, capsys):
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    experts = save_family(tmp_path, pico(ResNetModel, config), experts=2, frozen="nothing")
    rewritten(
        tmp_path / "red",
        lambda held: {key: held[key] + 1 if key.endswith("running_mean") else held[key] for key in held},
    )
    out = write(make_recipe(tmp_path / "base", experts), tmp_path, tmp_path / "out")
    (note,) = [note for note in listed_on_card(out) if "running_mean" in note]
    assert note.startswith("expert red differs from the base in")
    assert f"warning: {note}" in capsys.readouterr().err


def listed_on_card(directory: Path) -> list[str]:
    """What a model card says of base and experts."""
    section = (directory / "README.md").read_text().split("## What should be known of these models\n")[1]
    return [line.removeprefix("- ") for line in section.split("\n## ")[0].splitlines() if line]


REFUSED: dict[str, Callable[[Path], object]] = {
    "not finite": lambda path: broken(path, "right"),
    "base not finite": lambda path: broken(path, "base"),
    "no weights": lambda path: without(path / "left", "*.safetensors"),
    "no config": lambda path: without(path / "left", "config.json"),
    "base without config": lambda path: without(path / "base", "config.json"),
    "base of another class": lambda path: put(path / "base" / "config.json", model_type="dinov2"),
    "base that contradicts itself": lambda path: put(path / "base" / "config.json", intermediate_size=48),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_search_refuses_inspect_refuses_in_the_same_words(family, what):
    REFUSED[what](family)
    with pytest.raises(CheckpointError) as refused:
        build_problem(settings_of(family), Reporter())
    try:
        errors = [member.error for member in inspected(family).refused]
    except CheckpointError as error:
        errors = [str(error)]
    assert errors == [str(refused.value)]


def harmless(path: Path) -> None:
    put(
        path / "left" / "config.json",
        transformers_version="4.40.0",
        attention_dropout=0.1,
        use_cache=False,
        pad_token_id=None,
    )
    content = json.loads((path / "right" / "config.json").read_text())
    (path / "right" / "config.json").write_text(json.dumps(dict(reversed(content.items()))))
    put(path / "right" / "tokenizer_config.json", name_or_path="x/y")
    put(
        path / "right" / "tokenizer.json",
        truncation={"max_length": 9, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
    )
    for name in ("base", "left"):
        (path / name / "training_args.bin").write_bytes(b"x")
        (path / name / "README.md").write_text("---\nlicense: mit\n---\n")


def resharded(path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(path / "left")
    without(path / "left", "model.safetensors")
    model.save_pretrained(path / "left", max_shard_size="30KB")


@pytest.mark.parametrize("change", [lambda path: None, harmless, resharded], ids=["unchanged", "harmless", "resharded"])
def test_a_family_of_one_kind_gives_no_warning(family, change):
    change(family)
    assert inspected(family).warnings == []


CONFIGS = {
    "rope": {"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}},
    "eps": {"rms_norm_eps": 0.5},
    "activation": {"hidden_act": "gelu"},
    "heads": {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32},
}


@pytest.mark.parametrize("change", CONFIGS)
def test_rows_of_another_configuration_are_marked(family, change):
    """The yardstick: `from_pretrained` has other logits than the row, so the table says in what."""
    put(family / "left" / "config.json", **CONFIGS[change])
    settings = settings_of(family)
    problem = build_problem(settings, Reporter())
    tokens = torch.arange(12)[None]
    alone = AutoModelForCausalLM.from_pretrained(family / "left").eval()(tokens).logits
    problem.become("left")
    here = problem.live.model(tokens).logits
    problem.become(None)
    assert (alone - here).abs().max() > 0.01
    models = {
        "base": Model("base"),
        "experts": Model("experts"),
        "left": Model("expert", "left"),
        "right": Model("expert", "right"),
        "its directory": Model("directory", family / "left"),
        "constant": Model("constant", 0.4),
    }
    marks = evaluate(under(problem, settings), models, "report", Reporter()).marks
    assert list(marks) == ["experts", "left", "its directory"]
    for texts in marks.values():
        (text,) = texts
        assert f"{next(iter(CONFIGS[change]))}" in text
        assert "in the base" in text
        assert "under the base's configuration" in text


def test_the_auto_class_of_a_class():
    assert auto_class_of("LlamaForCausalLM") == "AutoModelForCausalLM"
    assert auto_class_of("BertForMaskedLM") == "AutoModelForMaskedLM"
    assert auto_class_of("T5ForConditionalGeneration") == "AutoModelForSeq2SeqLM"
    assert auto_class_of("NoSuchModel") is None


def test_a_vocabulary_in_a_file_of_earlier_years(tmp_path):
    """A tokenizer is compared as transformers loads it, whichever files hold it."""
    for name in ("base", "old"):
        BertConfig().save_pretrained(tmp_path / name)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    (tmp_path / "old" / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    for cased, said in ((False, []), (True, ["normalizer.lowercase is false there and true in the base"])):
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": not cased}
        (tmp_path / "old" / "tokenizer_config.json").write_text(json.dumps(settings))
        if not cased:
            AutoTokenizer.from_pretrained(tmp_path / "old").save_pretrained(tmp_path / "base")
            assert not (tmp_path / "base" / "vocab.txt").exists()
        notes = processing_notes(Processing(tmp_path / "base"), Processing(tmp_path / "old"), "expert a")
        assert len(notes) == len(said)
        assert all(text in note for text, note in zip(said, notes, strict=True))


def test_a_tokenizer_of_other_files_and_the_same_words(family):
    """What differs in bytes alone is no difference."""
    AutoTokenizer.from_pretrained(family / "left").save_pretrained(family / "left", legacy_format=False)
    file = family / "left" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=7))
    assert file.read_bytes() != (family / "base" / "tokenizer.json").read_bytes()
    assert inspected(family).warnings == []


def test_a_parameter_that_is_a_single_number(tmp_path):
    """The temperature of CLIP has no rows: likenesses are taken of it as it is."""
    tower = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = CLIPConfig(
        text_config=tower | {"vocab_size": 32, "max_position_embeddings": 16},
        vision_config=tower | {"image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    for number, name in enumerate(("base", "left", "right", "twin")):
        model = pico(CLIPModel, config)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number % 3))
        model.save_pretrained(tmp_path / name)
        save_tokenizer(tmp_path / name, VOCABULARY[:32])
    sources = Sources(tmp_path / "base", {name: tmp_path / name for name in ("left", "right", "twin")}, {})
    [warning] = inspect_sources(sources, "AutoModel", tmp_path / "cache", 0.2, Reporter()).warnings
    assert warning.startswith("expert twin equals the base in all that is merged")


def test_classes_in_another_order_are_named_where_heads_are_merged(tmp_path):
    config = BertConfig(**TINY, max_position_embeddings=16)
    for number, (name, classes) in enumerate({"base": "no yes", "left": "yes no", "right": "no yes"}.items()):
        config.id2label = dict(enumerate(classes.split()))
        model = pico(BertForSequenceClassification, config)
        for parameter in model.parameters() if number else ():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        model.save_pretrained(tmp_path / name)
        save_tokenizer(tmp_path / name)
    sources = Sources(tmp_path / "base", {name: tmp_path / name for name in ("left", "right")}, {})
    kind, cache = "AutoModelForSequenceClassification", tmp_path / "cache"
    [warning] = inspect_sources(sources, kind, cache, 0.2, Reporter()).warnings
    assert warning.startswith('expert left has other classes in its head than the base (id2label[0] is "yes" there')
    headless = inspect_sources(sources, "AutoModel", cache, 0.2, Reporter()).warnings
    assert not any("classes" in text for text in headless)
