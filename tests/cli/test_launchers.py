"""Sweeps through Hydra and its launchers, up to the command of each member; a stand-in takes the member's place."""

from __future__ import annotations

import json
import os
import pickle
import signal
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from evomerge.cli import callbacks
from evomerge.cli.search import _pass_on
from tests.processes.command import evomerge

SMALL = ("searcher=random", "budget=3")
MEMBER = f"""
import json, os, shutil, sys
where = next(word.partition("=")[2] for word in sys.argv if word.startswith("hydra.run.dir="))
if "seed=2" in sys.argv:
    sys.exit("evomerge: seed=2 is refused.")
shutil.copytree({str(Path(__file__).parents[1] / "data" / "run_0_2")!r}, where, dirs_exist_ok=True)
with open(os.path.join(where, "said.json"), "w") as file:
    json.dump([sys.argv[1:], os.environ["OMP_NUM_THREADS"]], file)
"""
EXPERIMENT = """
# @package _global_
defaults:
  - override /model: pico
  - override /hydra/launcher: {launcher}
hydra: {{launcher: {settings}}}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A user's directory, in which `python -m evomerge` is the stand-in; with experiments that name launchers."""
    for path in ("evomerge", "own/experiment"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "evomerge" / "__init__.py").touch()
    (tmp_path / "evomerge" / "__main__.py").write_text(MEMBER)
    for name, launcher, settings in (
        ("a", "slots", "{slots: 2, threads: 1}"),
        ("b", "slots", "{slots: 2, threads: 1}"),
        ("other", "basic", "{}"),
    ):
        file = tmp_path / "own" / "experiment" / f"{name}.yaml"
        file.write_text(EXPERIMENT.format(launcher=launcher, settings=settings).lstrip())
    return tmp_path


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two slots need two cores")
def test_a_sweep_over_experiments_takes_the_launcher_that_they_name(place: Path) -> None:
    done = evomerge("search", "-m", "--config-dir=own", *SMALL, "experiment=a,b", "seed=1,2", cwd=place)
    assert done.returncode == 1, done.stderr
    assert "4 searches on 2 slots" in done.stderr
    assert "2 of 4 runs are complete" in done.stdout
    refused = [line for line in done.stderr.splitlines() if line.startswith("not complete: ")]
    assert [line.rpartition(": ")[2] for line in refused] == ["seed=2 is refused."] * 2
    words, threads = json.loads((place / "runs" / "a-pico-linear-layer-random-s1" / "said.json").read_text())
    assert threads == "1"
    assert words == [
        *("search", f"--config-dir={place / 'own'}", *SMALL, "experiment=a", "seed=1"),
        "hydra.run.dir=runs/a-pico-linear-layer-random-s1",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("experiment=a,other",), "name launchers, or settings of them, that differ (a: slots, other: basic)"),
        (("experiment=a", "seed=1,2", "hydra.launcher.threads=99"), "hydra.launcher.threads=99, but each of 2 slots"),
        (("experiment=a,other", "hydra/launcher=slots", "hydra.launcher.slots=0"), "slots=0 is no number from 1"),
        (("experiment=a", "hydra/launcher=ray"), "The launcher ray is not installed: pip install hydra-ray-launcher."),
    ],
)
def test_launchers_that_cannot_be_taken(words: tuple[str, ...], message: str, place: Path) -> None:
    done = evomerge("search", "-m", "--config-dir=own", *words, cwd=place)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_sent_to_another_process_names_run_directories_there() -> None:
    sent = [pickle.dumps(kind()) for kind in (callbacks.RunDirectory, callbacks.SweepTable)]
    OmegaConf.clear_resolver("run_name")
    for one in sent:
        pickle.loads(one)
        assert OmegaConf.has_resolver("run_name")
        OmegaConf.clear_resolver("run_name")


def test_a_signal_is_handed_on_to_who_waited_for_it() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: got.append(number))
    try:
        _pass_on(signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert got == [signal.SIGUSR2]
    for number in (None, signal.SIGINT, signal.SIGTERM):
        _pass_on(number)  # nobody waits but Python itself
