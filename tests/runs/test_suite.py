import errno
import hashlib
import json
import os

import pytest
import torch
from safetensors import safe_open

from evomerge.common.errors import SuiteError
from evomerge.fitness.items import make_item, write_items
from evomerge.runs.suite import load_suite, write_head, write_manifest


@pytest.fixture
def directory(tmp_path):
    """A finished suite of one task, with weights of a few bytes."""
    path = tmp_path / "mine"
    for part in ("base", "experts/a", "heads", "tasks/a"):
        (path / part).mkdir(parents=True)
    for part in ("base", "experts/a"):
        (path / part / "model.safetensors").write_bytes(b"weights")
    write_head(path / "heads" / "a.safetensors", torch.eye(2, 4))
    write_items(path / "tasks" / "a" / "search.jsonl", [make_item("one", 0), make_item("two", 1)])
    write_manifest(path, "mine", {"a": ("first", "second")}, {"a": {"steps": 3}})
    return path


def test_a_suite_comes_back_as_written(directory):
    suite = load_suite(str(directory))
    assert (suite.name, suite.base, suite.experts) == ("mine", directory / "base", {"a": directory / "experts" / "a"})
    task = suite.tasks["a"]
    assert task.classes == ("first", "second")
    assert (task.items, task.expert) == (directory / "tasks" / "a", "a")
    assert task.head is not None
    with safe_open(task.head, "pt") as head:
        assert head.metadata() == {"pooling": "mean", "scale": "20.0"}
        assert torch.equal(head.get_tensor("weight"), torch.eye(2, 4))
    manifest = json.loads((directory / "suite.json").read_text())
    assert manifest["training"] == {"a": {"steps": 3}}
    assert set(manifest["sha256"]) == {
        "base/model.safetensors",
        "experts/a/model.safetensors",
        "heads/a.safetensors",
        "tasks/a/search.jsonl",
    }


def test_a_full_disk_at_the_end_leaves_no_half_of_a_manifest(directory, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {file: file.stat().st_size for file in directory.rglob("*")}
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_manifest(directory, "other", {"a": ("first", "second")}, {})
    assert {file: file.stat().st_size for file in directory.rglob("*")} == before


def test_a_suite_may_be_moved(directory):
    moved = directory.rename(directory.with_name("elsewhere"))
    assert load_suite(moved).base == moved / "base"


def test_missing_and_unfinished_suites_say_how_to_build_them(directory, tmp_path):
    with pytest.raises(SuiteError, match=r"is no suite: build it with `python scripts/build_suite.py text --out"):
        load_suite(tmp_path / "nowhere")
    with pytest.raises(SuiteError, match=r"build it with `python scripts/build_suite.py vision --out .*my-vision`"):
        load_suite(tmp_path / "my-vision")
    (directory / "suite.json").unlink()
    with pytest.raises(SuiteError, match=r"is an unfinished suite .* build it with"):
        load_suite(directory)


def test_a_damaged_suite_is_refused(directory):
    with (directory / "tasks" / "a" / "search.jsonl").open("a") as file:
        file.write('{"text": "smuggled in", "label": 0}\n')
    with pytest.raises(SuiteError, match=r"search\.jsonl is not as it was built"):
        load_suite(directory)
    (directory / "experts" / "a" / "model.safetensors").unlink()
    (directory / "tasks" / "a" / "search.jsonl").unlink()
    with pytest.raises(SuiteError, match=r"is incomplete: experts/a/model\.safetensors is missing"):
        load_suite(directory)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [("{", "is damaged"), ("[]", "lacks format, name"), ('{"format": 1, "name": "x"}', "lacks base, experts")],
)
def test_a_damaged_manifest_is_refused(directory, manifest, message):
    (directory / "suite.json").write_text(manifest)
    with pytest.raises(SuiteError, match=message):
        load_suite(directory)


def test_another_format_is_refused(directory):
    manifest = json.loads((directory / "suite.json").read_text())
    (directory / "suite.json").write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(SuiteError, match="has suite format 2, this version reads 1"):
        load_suite(directory)


def test_the_same_head_is_the_same_bytes(tmp_path):
    for name in "abcdefgh":
        write_head(tmp_path / name, torch.eye(2, 4))
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def test_a_head_of_texts_is_the_same_bytes_as_ever(tmp_path):
    write_head(tmp_path / "head", torch.arange(8.0).view(2, 4) / 10)
    digest = hashlib.sha256((tmp_path / "head").read_bytes()).hexdigest()
    assert digest == "c1fbdec6cd30552228a4e849388c5b2ed971f7a31518ae02c201601de39f0971"  # suites were built with it


def test_a_pooling_that_does_not_exist(tmp_path):
    with pytest.raises(SuiteError, match="a head has no pooling 'max'; choose one of mean, cls_mean"):
        write_head(tmp_path / "head", torch.eye(2), pooling="max")
    assert not (tmp_path / "head").exists()
