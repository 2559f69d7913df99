"""What faults of workers cost, and that nothing is lost: `python scripts/check_faults.py [--times 100]`.

In: nothing but pico models that it makes. Each fault is injected so many times in a row into a pool of two worker
processes (with --ray, actors on a cluster that it starts), while they score three candidates in four blocks each; every
unit must come back once, with the bits of a serial scorer. Out: for each fault a row with how often all was right, and
the seconds that one costs (its wave minus the median of waves without a fault). The exit status is 1 if anything was
wrong.

    killed    SIGKILL of a worker, as a machine without memory sends it, at a random moment of its unit
    starved   a worker whose allocations fail from a random moment of its unit on, under a limit of its memory
    frozen    SIGSTOP of a worker: its candidate fails when `time_limit` is over, all others are right
    twice     workers that say everything twice
    driver    SIGKILL of the search itself at a random moment after it has begun to score, ten times on its way; its log
              must be that of a serial search in the end
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from evomerge.common.events import Event
from evomerge.common.limits import TimeLimit
from evomerge.common.progress import Silent
from evomerge.fitness.capabilities import Batched
from evomerge.runs.build import build_problem
from evomerge.runs.config import CONF, plain, register
from evomerge.runs.worker import build_message
from evomerge.search.evaluators.blocks import cut
from evomerge.search.evaluators.cluster import Actors
from evomerge.search.evaluators.pool import Pool
from evomerge.search.evaluators.processes import MODULE, Processes
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.search.evaluators.units import Scored, Unit

LIMIT = 1.5
"""Seconds of a candidate, where one is frozen."""
ON_THE_WAY = 10
"""How often one search is killed before it may end."""
FAULTS = ("killed", "starved", "frozen", "twice", "driver")


def main() -> int:
    """Inject faults and print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100, help="how often each (default: 100)")
    parser.add_argument("--only", choices=FAULTS, nargs="+", help="these faults alone")
    parser.add_argument("--ray", action="store_true", help="workers on a cluster of Ray's that is started here")
    parser.add_argument("--seed", type=int, default=0, help="of points and moments")
    arguments = parser.parse_args()
    wrong = 0
    with TemporaryDirectory() as place:
        torch.set_num_threads(1)
        bench = Bench(Path(place), arguments.ray, arguments.seed)
        for name in arguments.only or FAULTS:
            right, seconds = getattr(bench, name)(arguments.times)
            wrong += arguments.times - right
            print(f"{name:<8} {right} of {arguments.times} right, {seconds:.2f} s each (median)", flush=True)
    return int(wrong > 0)


class Bench:
    """Pools over the pico suite.

    Args:
        place: a directory for what they write.
        ray: whether workers are actors of Ray's.
        seed: of points and moments.
    """

    def __init__(self, place: Path, ray: bool = False, seed: int = 0) -> None:
        register()
        self._ray = ray
        with initialize_config_dir(str(CONF), version_base="1.3"):
            self._settings = plain(compose("search", overrides=["experiment=smoke", f"model.cache={place}/cache"]))
        self._problem, self._place, self._random = build_problem(self._settings, Silent()), place, random.Random(seed)
        self._ids = make_subsets(self._problem)["search"](0)
        fitness = live_fitness(self._problem, self._problem.items["search"])
        self._serial = SerialScorer(self._problem, {"search": fitness})

    def killed(self, times: int) -> tuple[int, float]:
        """Kill a worker at a random moment of a unit."""
        return self._struck(times, signal.SIGKILL)

    def starved(self, times: int) -> tuple[int, float]:
        """Leave a worker no memory."""
        return self._struck(times, signal.SIGUSR2, module="pool_bench.starved")

    def frozen(self, times: int) -> tuple[int, float]:
        """Freeze a worker: its candidate alone may fail, as one that takes too long."""
        return self._struck(times, signal.SIGSTOP, TimeLimit(LIMIT))

    def twice(self, times: int) -> tuple[int, float]:
        """Let workers say everything twice."""
        with self._pool("pool_bench.faulty") as pool:
            pool.wait(2)
            found = [self._wave(pool) for _ in range(times)]
        with self._pool() as pool:
            pool.wait(2)
            usual = statistics.median(self._wave(pool)[1] for _ in range(times))
        return sum(right for right, _ in found), statistics.median(seconds for _, seconds in found) - usual

    def driver(self, times: int) -> tuple[int, float]:
        """Kill searches with workers again and again, and compare the log of each with a serial one's in the end."""
        few = ["fitness.select_items=30", "fitness.report_items=30", "budget=150"]
        blocks = ["evaluator.blocks=3", "evaluator.threads=1"]
        given = ["experiment=smoke", *few, *blocks, f"model.cache={self._place}/cache"]
        whole = self._place / "serial"
        self._run(given, whole)
        expected, right, costs = (whole / "trials.jsonl").read_bytes(), 0, list[float]()
        workers = [*given, f"evaluator={'ray' if self._ray else 'processes'}", "evaluator.workers=2"]
        started = time.monotonic()
        self._run(workers, self._place / "whole")
        usual, done = time.monotonic() - started, 0
        while done < times:
            path, began, kills = self._place / f"run{done}", time.monotonic(), 0
            while not (path / "summary.json").exists():
                due = kills < min(ON_THE_WAY, times - done)
                kills += self._run(workers, path, self._random.uniform(0, 0.3) if due else None)
            costs.append((time.monotonic() - began - usual) / max(kills, 1))
            right += kills * ((path / "trials.jsonl").read_bytes() == expected)
            done += kills
        return right, statistics.median(costs)

    def _run(self, settings: list[str], path: Path, after: float | None = None) -> bool:
        """Run a search, and kill it so many seconds after it has written a unit or a trial; return whether it was."""
        command = [sys.executable, "-m", "evomerge", "search", *settings, f"hydra.run.dir={path}"]
        before = _written(path)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if after is not None:
            while _written(path) == before and process.poll() is None:
                time.sleep(0.005)
            time.sleep(after)
            process.kill()
        return process.wait() == -signal.SIGKILL

    def _struck(
        self, times: int, number: signal.Signals, limit: TimeLimit | None = None, module: str = MODULE
    ) -> tuple[int, float]:
        right, costs, usual = 0, list[float](), list[float]()
        blow = _Blow(number, self._random)
        with self._pool(module, limit, blow) as pool:
            blow.pool = pool
            for _ in range(times):
                pool.wait(2)
                usual.append(self._wave(pool)[1])
                blow.due = self._random.randrange(12)
                correct, seconds = self._wave(pool, may_fail=limit is not None)
                right, _ = right + correct, costs.append(seconds)
        return right, statistics.median(costs) - statistics.median(usual)

    def _wave(self, pool: Pool, may_fail: bool = False) -> tuple[bool, float]:
        """Score three candidates, and return whether every unit came back once and right, and the seconds."""
        low, high = self._problem.space.low, self._problem.space.high
        points = [np.array([self._random.uniform(*each) for each in zip(low, high, strict=True)]) for _ in range(3)]
        units = [Unit(point, part) for point in points for part in cut(self._ids, 4)]
        started = time.monotonic()
        answers = list(pool(units))
        seconds = time.monotonic() - started
        if sorted(position for position, _ in answers) != list(range(len(units))):
            return False, seconds
        found, failed = dict(answers), set[int]()
        if may_fail:
            failed = {i // 4 for i, scored in found.items() if isinstance(scored.outcome, TimeoutError)}
        wrong = {i for i in found if i // 4 not in failed}
        fitness = self._problem.fitness
        size = given = fitness.batch_size if isinstance(fitness, Batched) else 0
        while wrong and size and isinstance(fitness, Batched):  # a worker may have halved its batches: other last bits
            fitness.batch_size, size = size, size // 2
            wrong -= {i for i, scored in self._serial(units) if _same(scored, found[i])}
            fitness.batch_size = given
        for i in wrong:
            print(f"unit {i}: {found[i].outcome!r:.200}", file=sys.stderr)
        return not wrong and len(failed) <= 1, seconds

    @contextmanager
    def _pool(
        self, module: str = MODULE, limit: TimeLimit | None = None, watch: Callable[[Event], None] = lambda event: None
    ) -> Iterator[Pool]:
        build, prints = build_message(self._settings, self._problem, 1), self._place / "workers"
        crew = Actors(build, 2, 0, 1, prints, None, module) if self._ray else Processes(build, [{}, {}], prints, module)
        with Pool(crew, limit, watch=watch) as pool:
            yield pool


class _Blow:
    """Sends a signal to the worker that has been given the unit that is due, a moment later."""

    def __init__(self, number: signal.Signals, chance: random.Random) -> None:
        self._number, self._chance, self.due = number, chance, -1
        self.pool: Pool | None = None

    def __call__(self, event: Event) -> None:
        if event.kind != "begun":
            return
        self.due -= 1
        if self.due == -1 and self.pool is not None:
            process = self.pool.readies[event.worker]["process"]
            threading.Timer(self._chance.uniform(0, 0.01), _send, (process, self._number)).start()


def _written(path: Path) -> list[int]:
    files = (path / "trials.jsonl", path / "units.jsonl")
    return [file.stat().st_size if file.exists() else 0 for file in files]


def _send(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def _same(one: Scored, other: Scored) -> bool:
    if isinstance(one.outcome, Exception) or isinstance(other.outcome, Exception):
        return False
    return one.outcome.items == other.outcome.items and all(
        np.array_equal(row, other.outcome.results[task][name], equal_nan=True)
        for task, rows in one.outcome.results.items()
        for name, row in rows.items()
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
