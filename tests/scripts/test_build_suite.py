# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers.utils import logging

from evomerge.common.errors import SuiteError
from evomerge.runs.suite import load_suite

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import build_suite as command  # noqa: E402
from suite_builder import build as builder  # noqa: E402

SIZES = {"report": 20, "search": 20, "select": 20, "unlabeled": 10, "train": 40}


@pytest.fixture(autouse=True)
def transformers_speaks_as_before():
    """The script silences transformers for its own process; here the process goes on with other tests."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()


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


@pytest.mark.parametrize("suite", ["text", "vision"])
@pytest.mark.parametrize(
    ("options", "out", "proving"),
    [([], "{}", True), (["--small"], "{}-small", False), (["--steps", "5"], "{}", False)],
)
def test_suites_for_trying_out_need_not_have_room(monkeypatch, suite, options, out, proving):
    called = []
    monkeypatch.setattr(builder, "build", lambda plan, out, *others: called.append((plan, out)))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert command.main([suite, *options]) == 0
    ((plan, directory),) = called
    assert plan.kind.name == suite
    assert directory == Path("suites", out.format(suite))
    assert plan.proving is proving
    assert plan.room_steps >= (0 if (suite, options) == ("text", ["--small"]) else 5)
    if "--steps" in options:
        assert {task.steps for task in plan.tasks} == {plan.room_steps} == {5}


@pytest.mark.parametrize("module", command.EXTRA)
def test_what_the_vision_suite_needs_is_said(monkeypatch, capsys, module):
    for name in [name for name in sys.modules if name.startswith(("suite_builder.vision", "suite_builder.dinov2"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert command.main(["vision"]) == 1
    assert f"made with {module}, which is not installed: pip install 'evomerge[suites]'" in capsys.readouterr().err


@pytest.mark.slow
def test_real_packages_and_a_kill_between_experts(tmp_path):
    """Needs the package index, once: downloads stay in the cache of the checkout."""
    cache, out = ROOT / ".cache" / "packages", tmp_path / "suite"
    code = (
        "import dataclasses, pathlib, sys; from rich.console import Console\n"
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        "from suite_builder import build, text_tasks\n"
        "small = text_tasks.SMALL\n"
        "short = [dataclasses.replace(task, steps=steps) for task, steps in zip(small.tasks[::2], (2, 12))]\n"
        f"plan = dataclasses.replace(small, tasks=tuple(short), room_steps=2, sizes={SIZES!r})\n"
        f"build.build(plan, pathlib.Path({str(out)!r}), pathlib.Path({str(cache)!r}), Console())\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while not (out / "experts" / "r8").is_dir():
        assert killed.poll() is None, "the build ended before its first expert"
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (out / "suite.json").exists()
    first = (out / "experts" / "r8" / "model.safetensors").stat().st_mtime_ns
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "expert r8: finished before, kept" in done.stdout
    assert (out / "experts" / "r8" / "model.safetensors").stat().st_mtime_ns == first
    assert set(load_suite(out).experts) == {"r8", "tweets"}
