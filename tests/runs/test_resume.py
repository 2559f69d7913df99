"""Searches in real processes that meet real accidents; a log must end byte for byte as that of an undisturbed search.

Kills at random moments and in the middle of a write, the signals of schedulers, another kind of CPU, a full disk, a
second process; at the end all of it for the command itself.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.common.machine import fingerprint
from evomerge.runs.suite import Suite
from evomerge.search.journal import read_log
from evomerge.search.log import TrialLog
from evomerge.trials import StopReason
from tests.processes.command import begun, evomerge
from tests.processes.small_search import NAMES, attempt, play
from tests.processes.waiting import PATIENCE, exit_code, forked, size, wait_until

ROOT = Path(__file__).parents[2]
KILLED = ("cmaes", "hybrid")
"""One by value, and one by gradient and then by value: what a log of any searcher holds, test_trials.py has in one
process, cut off anywhere.
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What each searcher's log holds when nothing happens."""
    directory = tmp_path_factory.mktemp("undisturbed")
    for name in NAMES:
        play(directory / f"{name}.jsonl", name)
    return {name: (directory / f"{name}.jsonl").read_bytes() for name in NAMES}


def safe_lines(path: Path) -> bytes:
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1]


@pytest.mark.parametrize("name", KILLED)
def test_killed_at_random_moments(name: str, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    path, whole = tmp_path / "trials.jsonl", undisturbed[name]
    rng = random.Random(f"moments of {name}")
    kills, code = 0, None
    while code != 0:
        goal = size(path) + rng.randrange(1, len(whole) // 4)
        with forked(attempt, path, name, 0.005, None, None) as process:
            wait_until(lambda: size(path) >= goal or not process.is_alive(), "a few trials")  # noqa: B023
            time.sleep(0.008 * rng.random())  # anywhere in a candidate, or in a write
            process.kill()
            code = exit_code(process)
        assert code in (0, -signal.SIGKILL)
        assert whole.startswith(safe_lines(path))
        kills += code != 0
    assert kills >= 3
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", KILLED)
def test_killed_in_the_middle_of_a_write(name: str, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    path, whole = tmp_path / "trials.jsonl", undisturbed[name]
    rng = random.Random(f"writes of {name}")
    torn, code = 0, None
    while code != 0:
        number, share = rng.randrange(1, whole.count(b"\n") // 4), rng.choice([0.0, 0.01, rng.random(), 0.99, 1.0])
        with forked(attempt, path, name, 0.0, (number, share), None) as process:
            code = exit_code(process)
        assert code in (0, -signal.SIGKILL)
        assert whole.startswith(path.read_bytes())
        torn += safe_lines(path) != path.read_bytes()
    assert torn >= 2
    assert path.read_bytes() == whole
    assert "was cut off while it was being written" in path.with_suffix(".said").read_text()


@pytest.mark.parametrize(("name", "number"), [("cmaes", signal.SIGTERM), ("hybrid", signal.SIGUSR1)])
def test_signals_of_schedulers_end_cleanly(
    name: str, number: signal.Signals, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    path, whole = tmp_path / "trials.jsonl", undisturbed[name]
    with forked(attempt, path, name, 0.02, None, None) as process:
        wait_until(lambda: size(path) > len(whole) // 4, "a few trials")
        os.kill(process.pid or 0, signal.SIGSTOP)  # so that this process may count at leisure
        before = len(list(read_log(path)))
        os.kill(process.pid or 0, number)
        os.kill(process.pid or 0, signal.SIGCONT)
        assert exit_code(process) == 0
    assert path.read_bytes() == safe_lines(path)
    assert whole.startswith(path.read_bytes())
    assert len(list(read_log(path))) <= before + 4  # the running trial, and one, a tell and an ask that were under way
    with forked(attempt, path, name, 0.0, None, None) as process:
        assert exit_code(process) == 0
    assert path.read_bytes() == whole


def test_a_second_process_is_refused(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    with TrialLog(path, {"searcher": "random"}, fingerprint()):
        with forked(attempt, path, "random", 0.0, None, None) as process:
            assert exit_code(process) == 2
        assert "Another process is working on the run" in path.with_suffix(".said").read_text()
    with forked(attempt, path, "random", 0.0, None, None) as process:
        assert exit_code(process) == 0
    assert path.read_bytes() == undisturbed["random"]


def test_a_limit_on_file_size(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """What a full disk or a quota does, where mounting is not allowed: a write comes back short, then fails."""
    name = "hybrid"
    path, whole = tmp_path / "trials.jsonl", undisturbed[name]
    limit = len(whole) * 2 // 3
    with forked(attempt, path, name, 0.0, None, limit) as process:
        assert exit_code(process) == 2
    said = path.with_suffix(".said").read_text()
    assert "Could not write to" in said
    assert "Make room and run the same command again" in said
    assert path.read_bytes() == safe_lines(path)
    assert whole.startswith(path.read_bytes())
    with forked(attempt, path, name, 0.0, None, None) as process:
        assert exit_code(process) == 0
    assert path.read_bytes() == whole


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, timeout=60).returncode != 0:
        pytest.skip("mounting a file system is not allowed here; test_a_limit_on_file_size stands for this one")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], capture_output=True, timeout=60, check=True)


def test_a_full_disk(tiny_disk: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    path, whole = tiny_disk / "trials.jsonl", undisturbed["cmaes"]
    path.with_suffix(".said").symlink_to(tmp_path / "said")  # there is no room for words on it
    assert len(whole) > 8192
    with forked(attempt, path, "cmaes", 0.0, None, None) as process:
        assert exit_code(process) == 2
    assert "No space left on device" in (tmp_path / "said").read_text()
    assert path.read_bytes() == safe_lines(path)
    assert whole.startswith(path.read_bytes())
    subprocess.run(["mount", "-o", "remount,size=1m", str(tiny_disk)], timeout=60, check=True)
    with forked(attempt, path, "cmaes", 0.0, None, None) as process:
        assert exit_code(process) == 0
    assert path.read_bytes() == whole


def other_cpu(kind: str) -> dict[str, str]:
    """Environment variables with which a process takes this machine for an older one."""
    features = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])  # pyright: ignore[reportOptionalSubscript, reportCallIssue]
    variables = {"blas": {"OPENBLAS_CORETYPE": "Nehalem"}, "numpy": {"NPY_DISABLE_CPU_FEATURES": " ".join(features)}}
    if (kind != "blas" and not features) or (kind != "numpy" and "openblas" not in str(fingerprint()["blas"])):
        pytest.skip("the kernels of this build of numpy cannot be chosen from outside")
    return variables["blas"] | variables["numpy"] if kind == "both" else variables[kind]


@pytest.mark.parametrize("kind", ["blas", "numpy"])
def test_a_fingerprint_knows_each_kernel_of_a_cpu(kind: str) -> None:
    code = "import json; from evomerge.common.machine import fingerprint; print(json.dumps(fingerprint()))"
    environment = {**os.environ, **other_cpu(kind)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=PATIENCE, cwd=ROOT, env=environment
    )
    other, here = json.loads(done.stdout), fingerprint()
    assert other.keys() == here.keys()
    assert other != here


def test_a_search_moves_to_another_kind_of_cpu_and_back(
    undisturbed: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in NAMES:  # half of each search is done here
        lines = undisturbed[name].splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    command = [sys.executable, "-m", "tests.processes.small_search", str(tmp_path), *NAMES]
    environment = {**os.environ, **other_cpu("both")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("This run goes on on another kind of machine") == len(NAMES)
    for name in NAMES:
        path = tmp_path / f"{name}.jsonl"
        records, here = list(read_log(path)), [json.loads(line) for line in undisturbed[name].splitlines()]
        headers = [record for record in records if record["kind"] == "header"]
        assert len(headers) == 2
        assert headers[0]["fingerprint"] == fingerprint()
        assert headers[0]["fingerprint"] != headers[1]["fingerprint"]
        points, expected = asked(records), asked(here)
        assert points.shape == expected.shape
        np.testing.assert_allclose(points, expected, rtol=0, atol=1e-6)
        moved = path.read_bytes()
        assert play(path, name) in (StopReason.BUDGET, StopReason.EXHAUSTED)  # back, with nothing left to do
        assert path.read_bytes() == moved
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert sum("goes on on another kind of machine" in record.getMessage() for record in warnings) == len(NAMES)


def asked(records: list[dict[str, Any]]) -> np.ndarray:
    return np.concatenate([record["points"] for record in records if record["kind"] == "ask"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_command_itself_is_killed_and_resumed(pico_suite: Suite, tmp_path: Path) -> None:
    """By constants, by gradient, and then by CMA-ES."""

    def command(directory: str) -> list[str]:
        settings = ["searcher=hybrid", "searcher.first.steps=9", "space=tensor", "loss=jensen_shannon"]
        small = ["experiment=smoke", *settings, "budget=24", "fitness.items=12"]
        small += ["fitness.select_items=24", "fitness.report_items=24"]
        where = [f"model.suite={pico_suite.path}", f"model.cache={tmp_path / 'cache'}"]
        return ["search", *small, *where, f"hydra.run.dir={tmp_path / directory}"]

    patience = 3 * PATIENCE
    log = tmp_path / "killed" / "trials.jsonl"
    program = str(Path(sys.executable).with_name("evomerge"))  # an interpreter of its own, with other hashes
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([program, *command("whole")], timeout=patience, check=True, cwd=tmp_path, env=environment)
    whole = (tmp_path / "whole" / "trials.jsonl").read_bytes()
    rng = random.Random("moments of the command")

    for share in (0.0, 0.99):
        goal = share * len(whole)
        with begun(*command("killed"), cwd=tmp_path) as running:
            process = running.process
            wait_until(lambda: size(log) >= goal or not process.is_alive(), "the next trials", patience)  # noqa: B023
            time.sleep(rng.random() / 2)
            process.kill()
            done = running.end(patience)
            assert done.returncode in (0, -signal.SIGKILL), done.stderr
        assert not log.exists() or whole.startswith(safe_lines(log))
    log.parent.mkdir(exist_ok=True)
    log.write_bytes(whole[: len(whole) // 2])  # as one more kill would leave it, but with time for what follows
    (tmp_path / "killed" / "summary.json").unlink(missing_ok=True)  # the last kill may have come after the end

    with begun(*command("killed"), cwd=tmp_path) as running:
        process = running.process
        wait_until(lambda: size(log) > len(whole) // 2 + 100 or not process.is_alive(), "the next trial", patience)
        os.kill(process.pid or 0, signal.SIGSTOP)
        second = evomerge(*command("killed"), cwd=tmp_path, timeout=patience)
        assert second.returncode == 2, second.stderr
        assert "Another process is working on the run" in second.stderr
        assert "Traceback" not in second.stderr
        os.kill(process.pid or 0, signal.SIGCONT)
        done = running.end(patience)
        assert done.returncode == 0, done.stderr

    assert log.read_bytes() == whole
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "killed"))
    for part in ("report", "paired", "select", "items", "trials", "stop"):
        assert one[part] == two[part], part
    assert (tmp_path / "whole" / "recipe.yaml").read_bytes() == (tmp_path / "killed" / "recipe.yaml").read_bytes()
