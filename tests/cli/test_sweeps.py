"""The end of a sweep, and of a search that is asked to stop: the exit status, and who is named with which reason."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import pytest

from evomerge.cli.common import REASON
from evomerge.search.journal import read_log
from tests.processes.command import evomerge

pytestmark = pytest.mark.slow

SMALL = ("experiment=smoke", "budget=2", "searcher=random", "fitness.items=12", "fitness.select_items=12")
STOPPING = """
import os, signal
calls = []
def score(model, tokenizer, items):
    calls.append(0)
    if len(calls) == 4 and os.path.exists('stop'):
        os.kill(os.getpid(), {signal})
    return {{t: [float(len(i.text)) for i in c] for t, c in items.items()}}
"""


@pytest.fixture
def place(pico_suite, tmp_path: Path) -> Path:
    """A directory of a user, with the pico suite where the settings expect it."""
    (tmp_path / "suites").symlink_to(pico_suite.path.parent)
    (tmp_path / "stop").touch()
    return tmp_path


def not_complete(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("not complete: ")]


def test_a_refused_member_is_named_and_the_others_run(place: Path) -> None:
    done = evomerge("search", "-m", *SMALL, "start=nonsense,0.4", cwd=place)
    assert done.returncode == 1
    assert "1 of 2 runs are complete" in done.stdout
    (line,) = not_complete(done.stderr)
    assert "start-nonsense" in line
    assert "start=nonsense is no number, no name and no file" in line
    (run,) = (file.parent for file in (place / "runs").glob("*/recipe.yaml"))
    arguments = shlex.split((run / "command.txt").read_text())  # of this run alone
    assert arguments == ["evomerge", "search", *SMALL, "start=0.4", f"hydra.run.dir=runs/{run.name}"]


def test_a_member_whose_function_cannot_be_found_or_breaks(place: Path) -> None:
    """Refused, with a traceback of its own in the middle, or quietly complete: each has its place at the end."""
    (place / "mine.py").write_text("def score(model, tokenizer, items):\n    return {t: [1.0] * 99 for t in items}\n")
    (place / "good.py").write_text(
        "def score(model, tokenizer, items):\n    return {t: [float(i.label) for i in c] for t, c in items.items()}\n"
    )
    functions = "fitness.function=mine.py:score,gone.py:score,good.py:score"
    done = evomerge("search", "-m", *SMALL, "fitness=custom", functions, cwd=place)
    assert done.returncode == 1, done.stderr
    assert "1 of 3 runs are complete" in done.stdout
    first, second = not_complete(done.stderr)
    assert "must return one number for each item" in first
    assert "gone.py" in second


def test_a_member_that_was_mended_is_no_longer_named(place: Path) -> None:
    mine = place / "mine.py"
    mine.write_text("def score(model, tokenizer, items):\n    raise OSError('no luck')\n")
    command = ("search", "-m", *SMALL, "fitness=custom", "fitness.function=mine.py:score", "seed=1,2")
    done = evomerge(*command, cwd=place)
    assert done.returncode == 1
    assert len(not_complete(done.stderr)) == 2
    mine.write_text("def score(model, tokenizer, items):\n    return {t: [1.0] * len(c) for t, c in items.items()}\n")
    done = evomerge(*command, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs are complete" in done.stdout
    assert not list((place / "runs").glob(f"*/{REASON}"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
def test_who_stops_a_search_gets_a_status_and_the_same_command_goes_on(place: Path, number: signal.Signals) -> None:
    (place / "mine.py").write_text(STOPPING.format(signal=int(number)))
    command = ("search", *SMALL, "budget=6", "fitness=custom", "fitness.function=mine.py:score", "hydra.run.dir=run")
    done = evomerge(*command, cwd=place)
    assert done.returncode == 128 + number, done.stderr
    assert "Run the same command again to go on" in done.stderr
    trials = sum(line["kind"] == "trial" for line in read_log(place / "run" / "trials.jsonl"))
    assert 0 < trials < 6
    (place / "stop").unlink()
    again = evomerge(*command, cwd=place)
    assert again.returncode == 0, again.stderr
    assert sum(line["kind"] == "trial" for line in read_log(place / "run" / "trials.jsonl")) == 6


def test_a_sweep_that_is_stopped_does_not_begin_its_next_run(place: Path) -> None:
    (place / "mine.py").write_text(STOPPING.format(signal=int(signal.SIGTERM)))
    command = ("search", "-m", *SMALL, "budget=6", "fitness=custom", "fitness.function=mine.py:score", "seed=1,2")
    done = evomerge(*command, cwd=place)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    (log,) = (place / "runs").glob("*/trials.jsonl")
    assert "-s1-" in log.parent.name


@pytest.mark.parametrize("directory", ["hydra.run.dir=/dev/null/x", "hydra.run.dir=file"])
def test_a_run_directory_that_cannot_be_made_is_a_sentence(place: Path, directory: str) -> None:
    (place / "file").write_text("")
    done = evomerge("search", *SMALL, directory, cwd=place)
    assert done.returncode == 2
    assert "write hydra.run.dir= and a directory that you may write" in done.stderr
    assert "Traceback" not in done.stderr
    assert "HYDRA_FULL_ERROR" not in done.stderr


def test_what_was_said_is_in_the_log_file(place: Path) -> None:
    done = evomerge("search", *SMALL, "loss=entropy", "hydra.run.dir=run", cwd=place)
    log = (place / "run" / "evomerge.log").read_text(encoding="utf-8")
    warnings = [line.strip() for line in done.stderr.splitlines() if line.strip().startswith("warning")]
    assert warnings
    for line in warnings:
        assert line in log
        assert done.stderr.count(line) == 1
