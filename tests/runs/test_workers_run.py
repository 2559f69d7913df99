"""A search on worker processes: its log is that of a serial one, whoever dies, and workers do all that is scored."""

from __future__ import annotations

import json
import os
import signal
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from evomerge.common.errors import ConfigError
from evomerge.common.events import Event, Watch
from evomerge.common.progress import Silent
from evomerge.runs.evaluator import BLOCKS, Plan, check_evaluator, plan_of
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.runs.worker_log import WORKERS, read_sessions
from tests.kit.evaluations import sources_of
from tests.kit.helpers import compose


class Killing(Silent):
    """Kills the first worker that has been given a few units."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def pool(self, workers: int) -> Watch:
        def watch(event: Event) -> None:
            self.seen.append(event)
            if event.kind == "begun" and sum(one.kind == "begun" for one in self.seen) == 9:
                os.kill(children()[0], signal.SIGKILL)

        return watch


def children() -> list[int]:
    """The worker processes of this one."""
    listed = [Path(f"/proc/{os.getpid()}/task/{task}/children") for task in os.listdir(f"/proc/{os.getpid()}/task")]
    found = [int(child) for path in listed for child in path.read_text().split()]
    return [one for one in found if b"evomerge.runs.worker" in Path(f"/proc/{one}/cmdline").read_bytes()]


@pytest.mark.slow
def test_a_search_on_workers_of_which_one_is_killed_has_the_log_of_a_serial_one(
    pico_suite: Suite, tmp_path: Path
) -> None:
    sources, told = sources_of(pico_suite, tmp_path / "cache"), Killing()
    common = [
        *sources,
        "searcher=gradient",
        "searcher.steps=3",
        "start=cocktail",
        "loss=jensen_shannon",
        "budget=8",
        "evaluator.threads=1",
    ]
    one: Any = run_search(compose(*common, "evaluator.blocks=3"), tmp_path / "serial", Silent())
    settings = [*common, "model.cache=" + str(tmp_path / "other"), "evaluator.blocks=3", "evaluator=processes"]
    two: Any = run_search(compose(*settings, "evaluator.workers=2"), tmp_path / "workers", told)
    serial, workers = ((tmp_path / name / "trials.jsonl").read_bytes() for name in ("serial", "workers"))
    assert serial == workers
    assert [event.kind for event in told.seen].count("lost") == 1
    assert (one.report, one.select) == (two.report, two.select)
    assert json.loads(serial.splitlines()[0])["identity"]["blocks"] == 3
    assert children() == []
    (session,) = read_sessions(tmp_path / "workers" / WORKERS)
    assert [(one.kind, one.worker) for one in session.events] == [(one.kind, one.worker) for one in told.seen]
    assert session.at <= (session.asks or 0) < (session.told or 0)
    assert not (tmp_path / "workers" / "units.jsonl").exists()


def test_choices_stand_in_place_of_auto() -> None:
    assert plan_of({"kind": "serial"}, [(8, 64)]) == Plan()
    assert plan_of({"kind": "processes"}, [(8, 64)]) == Plan("processes", BLOCKS, 8, 8, 1, beside=8)
    assert plan_of({"kind": "processes", "gpus": 2}, [(8, 64)]) == Plan("processes", BLOCKS, 16, 4, 2, beside=4)
    assert plan_of({"kind": "processes"}, [(0, 2)]) == Plan("processes", BLOCKS, 1, 2, 0, beside=2)
    assert plan_of({"kind": "processes", "blocks": 1, "threads": 3}, [(0, 2)]) == Plan(
        "processes", 1, 3, 2, 0, beside=2
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "process"}, "did you mean 'processes'"),
        ({"workers": 4}, "write evaluator=processes too"),
        ({"kind": "processes", "workers": 0}, "evaluator.workers=0: write auto, or a whole number from 1"),
        ({"kind": "processes", "blocks": 2.5}, "evaluator.blocks=2.5"),
    ],
)
def test_settings_that_are_none_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_evaluator(given)


def test_more_gpus_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match="6 workers with 2 GPUs each need 12, and there are 8"):
        plan_of({"kind": "processes", "workers": 6, "gpus": 2}, [(8, 64)])


def test_threads_that_were_many_for_one_process_are_said_to_be_too_many_for_workers() -> None:
    before: Any = Namespace(blocks=4, threads=16)
    kept = {"kind": "processes", "workers": 8}
    plan = plan_of(kept, [(0, 16)], before)
    assert plan.crowded(16) == (
        "8 workers with 16 threads each share 16 cores, and wait for each other: write evaluator.workers=1, or "
        "evaluator.threads=2 in another run directory (hydra.run.dir=), since a run keeps the threads that it began "
        "with"
    )
    assert not plan_of(kept, [(0, 16)]).crowded(16)


def test_workers_share_the_memory_of_those_that_are_on_one_machine() -> None:
    assert plan_of({"kind": "ray"}, [(8, 64)] * 4).beside == 8
    assert plan_of({"kind": "ray", "workers": 3}, [(8, 64), (2, 16)]).beside == 3
    assert plan_of({"kind": "ray", "gpus": 0, "threads": 4}, [(0, 16), (0, 8)]).beside == 4
    assert plan_of({"kind": "ray", "workers": 9}, [(0, 4)]).beside == 9  # started here, with as many cores as it takes
