"""Workers on a cluster of Ray's: whatever happens to them, their nodes and who asks them, the log is serial's."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.common.events import Event
from evomerge.common.limits import TimeLimit
from evomerge.fitness.base import Outcome
from evomerge.runs import engine
from evomerge.runs.evaluator import plan_of
from evomerge.runs.run import run_search
from evomerge.search.evaluators import cluster
from evomerge.search.evaluators.cluster import Actors, nodes_of
from evomerge.search.evaluators.pool import DEATHS, Pool
from evomerge.search.evaluators.units import Unit
from evomerge.search.evaluators.wire import Message
from tests.kit.answering import outcome_of, units_of
from tests.kit.evaluations import sources_of
from tests.kit.helpers import compose

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'evomerge[ray]'"
)
pytestmark = pytest.mark.filterwarnings("ignore:.*unclosed <socket:ResourceWarning")  # Ray's own
PROGRAM = "tests.kit.answering"


class Nodes:
    """A cluster without machines: a head without cores, and nodes with logical GPUs."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        with cluster.started_so():
            self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.address = self._cluster.address
        self._nodes: list[Any] = []

    def add(self) -> None:
        with cluster.started_so():
            self._nodes.append(self._cluster.add_node(num_cpus=2, num_gpus=1))

    def remove(self) -> None:
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

    def have(self, count: int) -> str:
        """Let there be so many nodes, and return where."""
        while len(self._nodes) < count:
            self.add()
        while len(self._nodes) > count:
            self.remove()
        return self.address

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.close()


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Faulty(Actors):
    """A crew to which something happens when it sends.

    Attributes:
        faults: what happens with the n-th message, by n; it is given the process of the worker that it is for.
    """

    faults: dict[int, Callable[[int], None]]

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._sent, self._processes = 0, dict[int, int]()

    def receive(self, seconds: float | None) -> list[tuple[int, Message | None]]:
        found = super().receive(seconds)
        for worker, message in found:
            if message and message["kind"] == "ready":
                self._processes[worker] = message["process"]
        return found

    def send(self, worker: int, message: Message) -> None:
        super().send(worker, message)
        self._sent += 1
        if fault := self.faults.pop(self._sent, None):
            fault(self._processes[worker])


def answers(pool: Pool, units: list[Unit]) -> dict[int, Any]:
    found = {}
    for i, scored in pool(units):
        assert i not in found
        assert not isinstance(scored.outcome, Exception), scored.outcome
        found[i] = worth(scored.outcome)
    return found


def worth(outcome: Outcome) -> dict[str, list[float]]:
    return {task: rows["m"].tolist() for task, rows in outcome.results.items()}


@needs_ray
def test_the_log_is_serials_whatever_happens(
    nodes: Nodes, pico_suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker's process is killed, an actor, and a node is removed, each in the middle of one search."""
    sources = [*sources_of(pico_suite, tmp_path / "cache"), "searcher.popsize=6", "budget=18"]
    how = ["evaluator.blocks=3", "evaluator.threads=1"]
    assert run_search(compose(*sources, *how), tmp_path / "serial", Reporter()) is not None
    monkeypatch.setattr(engine, "Actors", Faulty)
    faults = {6: end, 20: lambda pid: end(parent(pid)), 32: lambda pid: nodes.remove()}
    monkeypatch.setattr(Faulty, "faults", faults, raising=False)
    how += ["evaluator=ray", f"evaluator.address={nodes.have(2)}"]
    assert run_search(compose(*sources, *how), tmp_path / "ray", Reporter()) is not None
    assert not faults
    serial, ray = ((tmp_path / name / "trials.jsonl").read_bytes() for name in ("serial", "ray"))
    assert ray == serial
    assert "Worker 0 is lost (on " in caplog.text
    assert "killed by SIGKILL" in caplog.text


@needs_ray
def test_a_full_store_and_an_actor_that_leaves_a_stopped_worker(nodes: Nodes, tmp_path: Path) -> None:
    """Messages of a megabyte go around a store that is full; a worker that nobody can end is not waited for."""
    import ray

    def stop(process: int) -> None:
        stopped.append(process)
        os.kill(process, signal.SIGSTOP)
        end(parent(process))

    def fill(process: int) -> None:
        with contextlib.suppress(ray.exceptions.OutOfDiskError, ray.exceptions.ObjectStoreFullError):
            for _ in range(12):
                held.append(ray.put(bytes(2**24)))  # what is too much goes to the disk, unless that is full as well

    stopped, held = list[int](), list[Any]()
    Faulty.faults = {2: fill, 5: stop}
    units, told = units_of(4, 3, dim=50_000), list[Event]()
    crew = Faulty({"seconds": 0.02}, 2, 1, 1, tmp_path / "workers", nodes.have(2), PROGRAM)
    with Pool(crew, watch=told.append) as pool:
        assert answers(pool, units) == {i: worth(outcome_of(unit)) for i, unit in enumerate(units)}
    assert sum(event.kind == "lost" for event in told) == 1
    end(*stopped)


@needs_ray
def test_a_worker_that_hangs_is_killed_and_the_others_go_on(nodes: Nodes, tmp_path: Path) -> None:
    units = units_of(2, 4)
    with Pool(Actors({"hangs": ["30"]}, 2, 0, 1, tmp_path / "w", nodes.have(1), PROGRAM), TimeLimit(1.5)) as pool:
        found = dict(pool(units))
    for i, unit in enumerate(units):
        outcome = found[i].outcome
        assert isinstance(outcome, TimeoutError) if i in (3, 7) else worth(outcome) == worth(outcome_of(unit))


@needs_ray
def test_workers_that_cannot_start_are_retired_with_their_last_words(nodes: Nodes, tmp_path: Path) -> None:
    told: list[Event] = []
    crew = Actors({"ends": "no licence here"}, 1, 0, 1, tmp_path / "w", nodes.have(1), PROGRAM)
    with Pool(crew, watch=told.append) as pool, pytest.raises(EvomergeError, match="No worker is left"):
        pool.wait()
    assert [event.kind for event in told] == ["lost"] * DEATHS + ["retired"]
    assert all("ended with status 1: no licence here" in event.why for event in told)


@needs_ray
def test_a_worker_without_room_waits_and_the_others_go_on(nodes: Nodes, tmp_path: Path) -> None:
    units = units_of(3, 2)
    with Pool(Actors({}, 3, 1, 1, tmp_path / "w", nodes.have(1), PROGRAM)) as pool:
        assert answers(pool, units) == {i: worth(outcome_of(unit)) for i, unit in enumerate(units)}
    crew = Actors({}, 2, 3, 1, tmp_path / "w", nodes.address, PROGRAM, patience=1.0)
    asked = r"needs 3 GPUs and 1 cores of one node, and the cluster has [12] GPUs"  # one that just left may still count
    with Pool(crew) as pool, pytest.raises(EvomergeError, match=asked):
        pool.wait()


@needs_ray
def test_workers_end_with_the_program_that_asks(tmp_path: Path) -> None:
    """It is killed; actors and workers are gone soon after."""
    mark = str(uuid.uuid4())
    script = (
        "from pathlib import Path\n"
        "from evomerge.search.evaluators.cluster import Actors\n"
        "from evomerge.search.evaluators.pool import Pool\n"
        "from tests.kit.answering import units_of\n"
        f"pool = Pool(Actors({{'seconds': 0.05}}, 2, 0, 1, Path({str(tmp_path / 'w')!r}), module={PROGRAM!r}))\n"
        "pool.wait(2)\n"
        "for _ in pool(units_of(1000, 4)): print('one', flush=True)\n"
    )
    environment = {**os.environ, "MARK": mark, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"one\n"
        assert len(marked(mark)) == 5  # with the program itself
        program.kill()
    until = time.monotonic() + 30
    while left := marked(mark):
        assert time.monotonic() < until, left
        time.sleep(0.2)


def marked(mark: str) -> list[str]:
    """The command lines of actors and workers that have a mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().decode())
    return [line for line in found if PROGRAM in line or "Relay" in line]


@needs_ray
def test_no_cluster_at_an_address_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="no cluster of Ray's answers there"):
        nodes_of("127.0.0.1:1", [])


def test_without_ray_the_search_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'evomerge\[ray\]'"):
        engine.planned({"evaluator": {"kind": "ray"}}, None, None)


def test_workers_are_planned_for_the_nodes_that_there_are() -> None:
    def planned(nodes: list[tuple[int, int]], **settings: Any) -> tuple[int, int, int | None]:
        plan = plan_of({"kind": "ray", "address": "auto", **settings}, nodes)
        return plan.workers, plan.gpus, plan.threads

    assert planned([(0, 32), (8, 32), (8, 64)]) == (16, 1, 4)
    assert planned([(3, 12), (3, 12)], gpus=2) == (2, 2, 12)
    assert planned([(8, 32)], workers=2) == (2, 1, 16)
    assert planned([(0, 4), (0, 2)]) == (6, 0, 1)
    assert planned([(0, 4), (0, 3)], workers=2) == (2, 0, 3)
    with pytest.raises(ConfigError, match=r"3 workers with 2 GPUs each need 6, and there are 3 \+ 3"):
        planned([(3, 12), (3, 12)], gpus=2, workers=3)
    with pytest.raises(ConfigError, match="no node of the cluster has as much"):
        planned([(1, 4), (1, 4)], threads=5)
