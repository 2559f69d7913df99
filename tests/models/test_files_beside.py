"""What lies beside the weights: taken over if it is neither weights nor code, and named where it is not."""

from __future__ import annotations

import ast
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers.models
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertModel

from evomerge.models.files_beside import LARGE, files_of, module_folders, sort_directory, sort_files
from evomerge.recipes.recipe import Recipe
from tests.kit.merging import ADDED, make_recipe, names, save_family, write
from tests.kit.models import BERT, pico

PIPELINE = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.LSTM"},
    {"idx": 3, "name": "3", "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def every(*paths: str) -> dict[str, int | None]:
    return dict.fromkeys(paths, 10)


def vocabulary_files() -> set[str]:
    """The names of all files in which a tokenizer of transformers keeps its vocabulary."""
    found = set()
    for file in Path(transformers.models.__path__[0]).glob("*/tokenization_*.py"):
        text = file.read_text(encoding="utf-8")
        for node in ast.parse(text).body if "VOCAB_FILES_NAMES" in text else ():
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "VOCAB_FILES_NAMES":
                found |= set(ast.literal_eval(node.value).values())
    return found


def test_every_file_that_a_tokenizer_of_transformers_names_is_taken():
    wanted = vocabulary_files()
    assert {"source.spm", "target.spm", "spm.model", "bpe.codes", "prophetnet.tokenizer", "merges.txt"} < wanted
    assert len(wanted) > 20
    sorting = sort_files(every(*wanted))
    assert set(sorting.taken) == wanted
    assert sorting.left == {}


@pytest.mark.parametrize(
    "name",
    [
        *("LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md", "vocab.bpe", "tekken.json", "qwen.tiktoken", "vocab"),
        *(
            "chat_template.jinja",
            "chat_template.json",
            "additional_chat_templates/tools.jinja",
            "generation_config.json",
        ),
        *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json", "data.csv"),
        *(
            "modules.json",
            "sentence_bert_config.json",
            "config_sentence_transformers.json",
            "1_Pooling/config.json",
            "speech.wav",
        ),
        *("assets/licences/THIRD PARTY.txt", "é/ü.txt", "adapters.md", "binary"),
    ],
)
def test_what_is_taken(name):
    assert sort_files(every(name, "config.json", "model.safetensors")).taken == (name,)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((name, "weights") for name in ("tf_model.h5", "flax_model.msgpack", "rust_model.ot", "Model.GGUF", "m.onnx")),
        *((name, "weights") for name in ("openvino_model.xml", "consolidated.00.pth", "consolidated.safetensors")),
        *((name, "weights") for name in ("tf_model.h5.index.json", "flax_model.msgpack.index.json", "model.onnx_data")),
        *((name, "weights") for name in ("model.ckpt", "model.ckpt.index", "model.ckpt.data-00000-of-00001", "x.npz")),
        *((name, "code") for name in ("modeling_own.py", "configuration_own.py", "a/b/handler.py", "try.ipynb")),
        *((name, "training") for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth")),
        *((name, "training") for name in ("trainer_state.json", "all_results.json", "mergekit_config.yml")),
        *((name, "hidden") for name in (".gitattributes", ".DS_Store", "1_Pooling/.keep")),
    ],
)
def test_what_is_left(name, why):
    sorting = sort_files(every(name, "config.json", "model.safetensors"))
    assert sorting.left == {name: why}
    assert sorting.taken == ()
    assert sorting.weights == ("model.safetensors",)
    assert sorting.written == ("config.json",)


def test_folders_that_are_left_as_a_whole():
    """Another form of the model has settings and a tokenizer of its own: without its weights they are of no use."""
    sorting = sort_files(
        every(
            *("onnx/config.json", "onnx/model.onnx", "original/params.json", "original/a/consolidated.00.pth"),
            *("checkpoint-20/config.json", "runs/now/events.out.tfevents.1", ".git/objects/ab", "sub/.cache/x"),
            *("heads/mood.safetensors", "text/vocab.txt"),
        )
    )
    assert sorting.left == {
        ".git/": "hidden",
        "checkpoint-20/": "training",
        "heads/": "weights",
        "onnx/": "weights",
        "original/": "weights",
        "runs/": "training",
        "sub/.cache/": "hidden",
    }
    assert sorting.taken == ("text/vocab.txt",)


def test_a_pipeline_keeps_its_modules():
    files = every("modules.json", "2_Dense/model.safetensors", "2_Dense/config.json", "2_Dense/own.py", "3_Old/x.bin")
    assert sort_files(files, ["2_Dense"]).taken == ("2_Dense/config.json", "2_Dense/model.safetensors", "modules.json")
    assert sort_files(files, ["2_Dense"]).left == {"2_Dense/own.py": "code", "3_Old/": "weights"}
    assert "2_Dense/" in sort_files(files).left


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[1, {}]", '[{"path": 3}, {"path": ""}, {"path": "./"}]'])
def test_a_modules_json_that_names_no_folder(tmp_path, text):
    (tmp_path / "modules.json").write_text(text)
    assert module_folders(tmp_path / "modules.json") == {}


def test_large_files_of_no_known_kind():
    assert sort_files({"data": LARGE + 1, "vocab": LARGE}).left == {"data": "large"}
    assert sort_files({"2_Dense/model.safetensors": LARGE + 1}, ["2_Dense"]).left == {}


def test_links_are_followed_and_never_in_a_circle(tmp_path):
    model, blobs = tmp_path / "model", tmp_path / "blobs"
    (model / "1_Pooling").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "a").write_text("12345")
    (model / "vocab.txt").symlink_to(blobs / "a")
    (model / "more").symlink_to(blobs)
    (model / "1_Pooling" / "round").symlink_to(model)
    (model / "lost.json").symlink_to(tmp_path / "nowhere")
    (model / ".cache" / "deep").mkdir(parents=True)
    assert files_of(model) == {".cache/": 0, "lost.json": None, "more/a": 5, "vocab.txt": 5}
    sorting = sort_directory(model)
    assert sorting.taken == ("more/a", "vocab.txt")
    assert sorting.left == {".cache/": "hidden", "lost.json": "unreadable"}


# merged directories


def pipeline(path: Path, tokenizer: Path) -> Recipe:
    """A family of sentence-transformers: an encoder, pooling, a dense layer, a tokenizer; the base's has all else."""
    experts = save_family(path, pico(BertModel, BERT), experts=2)
    for k, folder in enumerate([path / "base", *experts.values()]):
        for file in tokenizer.glob("tokenizer*"):
            shutil.copy(file, folder)
        (folder / "modules.json").write_text(json.dumps(PIPELINE))
        for name in ("1_Pooling", "2_Dense", "3_Normalize"):
            (folder / name).mkdir()
        (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
        (folder / "2_Dense" / "config.json").write_text('{"in_features": 32, "out_features": 4}')
        save_file({"linear.weight": torch.full((4, 32), float(k))}, folder / "2_Dense" / "model.safetensors")
    return make_recipe(path / "base", experts)


def test_a_pipeline_of_sentence_transformers(pico_suite, tmp_path, capsys):
    recipe = pipeline(tmp_path, pico_suite.base)
    base = tmp_path / "base"
    (base / "README.md").write_text("---\nlicense: mit\n---\nThe base, under the MIT licence.\n")
    (base / "LICENSE").write_text("MIT")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (base / "onnx").mkdir()
    for name in ("onnx/model.onnx", "onnx/config.json", "pytorch_model.bin", "modeling_own.py", "trainer_state.json"):
        (base / name).write_text("{}")
    out = write(recipe, tmp_path, tmp_path / "out")
    said = capsys.readouterr().err
    taken = {"LICENSE", "modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"}
    taken |= {"tokenizer.json", "tokenizer_config.json", "additional_chat_templates/tools.jinja"}
    assert names(out) == {"config.json", "model.safetensors", "BASE_README.md", *taken, *ADDED}
    assert all((out / name).read_bytes() == (base / name).read_bytes() for name in taken)
    assert "under the MIT licence" in (out / "BASE_README.md").read_text()
    notes = [
        "left out (code): modeling_own.py",
        "left out (weights of another form, or of another model): onnx/, pytorch_model.bin",
        "left out (how the base was made): trainer_state.json",
        "2_Dense is a module of its own, whose weights are not merged: they are the base's, and red, green have others",
    ]
    card = (out / "README.md").read_text()
    for note in notes:
        assert f"note: {note}\n" in said
        assert f"- {note}\n" in card
    assert "3_Normalize" not in said  # an empty folder, which git and the hub do not keep
    model = AutoModel.from_pretrained(out)
    tokens = AutoTokenizer.from_pretrained(out)("the ant", return_tensors="pt")
    assert model(**tokens).last_hidden_state.shape[-1] == 32
    assert torch.equal(load_file(out / "2_Dense" / "model.safetensors")["linear.weight"], torch.zeros(4, 32))
    # merged again: what the first merge wrote is no file of the base
    again = make_recipe(out, {name: tmp_path / name for name in recipe.experts})
    assert names(write(again, tmp_path, tmp_path / "again")) == names(out)
    assert "# Merge of" in (tmp_path / "again" / "BASE_README.md").read_text()


def test_a_pipeline_whose_module_is_not_there(pico_suite, tmp_path, capsys):
    recipe = pipeline(tmp_path, pico_suite.base)
    shutil.rmtree(tmp_path / "base" / "2_Dense")
    write(recipe, tmp_path, tmp_path / "out")
    said = capsys.readouterr().err
    assert "note: modules.json of the base names 2_Dense, and there is no such folder: the pipeline will not" in said


def test_a_snapshot_of_links_becomes_files(pico_suite, tmp_path):
    """The hub's cache holds links to blobs; a merged model is whole without it."""
    recipe = pipeline(tmp_path, pico_suite.base)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for k, file in enumerate(sorted(f for f in (tmp_path / "base").rglob("*") if f.is_file())):
        file.rename(blobs / str(k))
        file.symlink_to(blobs / str(k))
    out = write(recipe, tmp_path, tmp_path / "out")
    assert not [file for file in out.rglob("*") if file.is_symlink()]
    assert {"2_Dense/model.safetensors", "1_Pooling/config.json", "tokenizer.json"} < names(out)


def test_what_lies_beside_needs_room(pico_suite, tmp_path, monkeypatch):
    from evomerge.common.errors import CheckpointError

    recipe = pipeline(tmp_path, pico_suite.base)
    (tmp_path / "base" / "table.csv").write_bytes(b"0" * (3 << 20))
    usage = shutil.disk_usage(tmp_path)._replace(free=3 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="make room"):
        write(recipe, tmp_path, tmp_path / "out")
    (tmp_path / "base" / "table.csv").unlink()
    write(replace(recipe), tmp_path, tmp_path / "out")
