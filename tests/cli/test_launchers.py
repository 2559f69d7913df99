"""Sweeps through Hydra and its launchers, up to the command of each member; a stand-in takes the member's place."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from evomerge.cli import callbacks
from evomerge.cli.search import pass_on
from tests.processes.command import evomerge
from tests.processes.preempted import Job
from tests.processes.waiting import wait_until

ROOT = Path(__file__).parents[2]

SMALL = ("searcher=random", "budget=3")
MEMBER = f"""
import json, os, shutil, sys
where = next(word.partition("=")[2] for word in sys.argv if word.startswith("hydra.run.dir="))
if "seed=2" in sys.argv:
    sys.exit("evomerge: seed=2 is refused.")
shutil.copytree({str(ROOT / "tests" / "data" / "run_0_2")!r}, where, dirs_exist_ok=True)
with open(os.path.join(where, "said.json"), "w") as file:
    json.dump([sys.argv[1:], os.environ["OMP_NUM_THREADS"]], file)
"""
BREAKING = """
from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
node = {"_target_": "hydra_plugins.breaking.Breaking"}
ConfigStore.instance().store(group="hydra/launcher", name="breaking", node=node)
class Breaking(Launcher):
    def setup(self, **given):
        pass
    def launch(self, job_overrides, initial_job_idx):
        raise RuntimeError("it lost a member")
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
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two slots need two cores")
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
        (("experiment=a", "hydra/launcher=ray"), "The launcher ray is not installed: pip install hydra-ray-launcher."),
    ],
)
def test_launchers_that_cannot_be_taken(words: tuple[str, ...], message: str, place: Path) -> None:
    done = evomerge("search", "-m", "--config-dir=own", *words, cwd=place)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_launcher_that_breaks_off_leads_to_the_table(place: Path) -> None:
    (place / "hydra_plugins").mkdir()
    (place / "hydra_plugins" / "breaking.py").write_text(BREAKING)
    for seed in (2, 3):
        run = place / "runs" / f"smoke-pico-linear-layer-cmaes-s{seed}"
        shutil.copytree(ROOT / "tests" / "data" / "run_0_2", run)
    (run / "summary.json").unlink()
    done = evomerge("search", "-m", "experiment=smoke", "seed=1,2,3", "hydra/launcher=breaking", cwd=place)
    assert done.returncode == 1, done.stderr
    assert "evomerge: the launcher broke off the sweep: RuntimeError: it lost a member" in done.stderr
    assert "1 of 3 runs are complete" in done.stdout
    assert "-s1: it has not begun" in done.stderr
    assert "-s3: it ended without a word; see runs/" in done.stderr


def test_what_is_sent_to_another_process_names_run_directories_there() -> None:
    sent = [pickle.dumps(kind()) for kind in (callbacks.RunDirectory, callbacks.SweepTable)]
    OmegaConf.clear_resolver("run_name")
    for one in sent:
        pickle.loads(one)
        assert OmegaConf.has_resolver("run_name")
        OmegaConf.clear_resolver("run_name")


@pytest.mark.slow
def test_submitit_submits_a_job_again_that_ended_cleanly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit", reason="needs the extra slurm")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.chdir(ROOT)
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="local")
    job = executor.submit(Job(), tmp_path)
    wait_until((tmp_path / "begun").exists, "the job's beginning")
    os.kill(int((tmp_path / "begun").read_text()), signal.SIGUSR2)  # as Slurm does before a time limit
    assert job.result() == "complete"
    assert (tmp_path / "ended cleanly").exists()


@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
)  # its log files
def test_submitits_debug_executor_runs_the_same_job_in_this_process(tmp_path: Path) -> None:
    """Nobody submits it again there, so its checkpoint is asked for by hand: with that alone, it goes on."""
    submitit = pytest.importorskip("submitit", reason="needs the extra slurm")

    def interrupt() -> None:
        wait_until((tmp_path / "begun").exists, "the job's beginning")
        os.kill(os.getpid(), signal.SIGUSR2)

    job = submitit.AutoExecutor(tmp_path / "jobs", cluster="debug").submit(Job(), tmp_path)
    asking = threading.Thread(target=interrupt)
    asking.start()
    assert job.result() == "not submitted again"
    asking.join()
    assert (tmp_path / "begun").read_text() == str(os.getpid())
    assert (tmp_path / "ended cleanly").exists()
    assert Job().checkpoint(tmp_path).result() == "complete"


@pytest.mark.parametrize(
    ("status", "again"), [(0, False), (1, False), (137, False), (138, True), (140, True), (143, True)]
)
def test_a_job_of_slurm_is_queued_again_when_it_was_asked_to_stop(status: int, again: bool, tmp_path: Path) -> None:
    """The file of the docs, with stand-ins for srun and scontrol."""
    for name, text in {"srun": f'echo "$@"; exit {status}', "scontrol": 'echo "$@" > again'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / "docs" / "slurm" / "evomerge.sbatch", "search", "-m", "model.base=a b"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert done.stdout == "--unbuffered evomerge search -m model.base=a b\n"
    assert (tmp_path / "again").exists() == again
    assert not again or (tmp_path / "again").read_text() == "requeue 7\n"


def test_a_signal_is_handed_on_to_who_waited_for_it() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: got.append(number))
    try:
        pass_on(signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert got == [signal.SIGUSR2]
    for number in (None, signal.SIGINT, signal.SIGTERM):
        pass_on(number)  # nobody waits but Python itself
