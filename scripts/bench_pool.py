"""How well a pool uses its workers: `python scripts/bench_pool.py [--real] [--workers 8 64] [--seconds 1] [--json]`.

Utilisation is the time inside the fitness over workers times the time from the first ask to the last tell. Merges,
asking, telling, messages and idle workers count as lost. Workers are simulated: a candidate takes `--seconds` for 100
items that differ tenfold, and .05 of that whenever a worker is given another candidate. The clock is virtual, but what
this process does between two messages is measured and counts. With `--real` they are processes that wait, for as many
workers as this machine can start, and the milliseconds that a unit takes beside its own time are printed.

Beside it: whole candidates as units, `searcher.lag` where a generation idles, and the bound of an ideal scheduler,
which merges each candidate once, cuts it anywhere, and waits for nothing but the end of a generation.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pool_bench.virtual import Virtual

from evomerge.common.events import Event
from evomerge.fitness.items import Item
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.search.evaluators.pool import Pool
from evomerge.search.evaluators.processes import Processes
from evomerge.search.evaluators.values import ValueEvaluator
from evomerge.search.log import TrialLog
from evomerge.search.loop import search
from evomerge.search.stopping import Budget
from evomerge.searchers.cmaes import CmaEs
from evomerge.searchers.tpe import Tpe
from evomerge.space.coefficients import Variable, make_space

MERGE = 0.05
"""What another candidate takes on a worker, as a share of the candidate."""
ITEMS = 100
DIMENSIONS = 24
MANY = 64
"""How many workers TPE is asked for at most: each of its asks takes longer the more it was told."""


@dataclass(frozen=True)
class Row:
    """What one search took.

    Attributes:
        workers: how many.
        searcher: its name, with its population and lag.
        blocks: into how many the items of a candidate were cut.
        utilisation: see the module.
        bound: that of an ideal scheduler.
        changes: how many times a worker was given another candidate, per candidate.
        overhead: the milliseconds of this process for a unit, what searcher and log take included.
    """

    workers: int
    searcher: str
    blocks: int
    utilisation: float
    bound: float
    changes: float
    overhead: float


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="processes that wait, in place of a virtual clock")
    parser.add_argument("--workers", type=int, nargs="+", default=[8], help="how many (default: 8)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a candidate (default: 1)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each row")
    arguments = parser.parse_args()
    if min(arguments.workers) < 3:
        parser.error("--workers is 3 or more each: a population has as many points, and with a lag needs 3")
    for workers in arguments.workers:
        for name, size, lag, blocks in cases(workers):
            row = run(workers, name, size, lag, blocks, arguments.seconds, arguments.real)
            if arguments.json:
                print(json.dumps(asdict(row)), flush=True)
            else:
                print(
                    f"{row.workers:>5} workers  {row.searcher:<26} {row.blocks:>3} blocks  utilisation "
                    f"{row.utilisation:.3f}  (ideal {row.bound:.3f})  {row.changes:.2f} merges a candidate  "
                    f"{row.overhead:.2f} ms a unit",
                    flush=True,
                )


def cases(workers: int) -> Iterator[tuple[str, int, int, int]]:
    """Yield searchers with their population, lag and blocks: one, one and a half candidates a worker."""
    for size in (workers, workers * 3 // 2):
        for blocks in (1, 4, 10):
            yield "cmaes", size, 0, blocks
        yield "cmaes", size, workers - 1, 1
        yield "cmaes", size, workers - 1, 10
    if workers <= MANY:
        yield "tpe", 1, workers - 1, 1
        yield "tpe", 1, workers - 1, 10


def run(workers: int, name: str, size: int, lag: int, blocks: int, seconds: float, real: bool) -> Row:
    """Run one search on simulated workers.

    Args:
        workers: how many.
        name: cmaes or tpe.
        size: of the population.
        lag: of the searcher.
        blocks: into how many the items of a candidate are cut.
        seconds: that a candidate takes.
        real: whether workers are processes.
    """
    count = max(8 * size, 6 * workers)
    subset = Subset({"a": items(seconds)}, None, 0)
    ended: list[Event] = []
    with (
        TemporaryDirectory() as path,
        crew_of(workers, MERGE * seconds, real, Path(path)) as crew,
        Pool(crew, watch=lambda event: ended.append(event) if event.kind == "ended" else None) as pool,
    ):
        pool.wait(workers)  # for all: what is measured is not their start
        evaluate, searcher = ValueEvaluator(pool, subset, Objective("m"), blocks=blocks), make(name, size, lag)
        clock = (lambda: crew.now) if isinstance(crew, Virtual) else time.perf_counter
        began, thought = clock(), time.process_time()
        with TrialLog(Path(path) / "trials.jsonl", {}, {}) as log:
            search(searcher, evaluate, log, Budget(count))
        wall, thought = clock() - began, time.process_time() - thought
    fitness, merges = sum(event.forward for event in ended), sum(event.merge > MERGE * seconds / 2 for event in ended)
    return Row(
        workers=workers,
        searcher=f"{name}{f' popsize={size}' * (name == 'cmaes')}{f' lag={lag}' * (lag > 0)}",
        blocks=blocks,
        utilisation=fitness / (workers * wall),
        bound=ideal(workers, size if name == "cmaes" and not lag else count, seconds),
        changes=merges / count,
        overhead=1000 * thought / len(ended),
    )


def ideal(workers: int, together: int, seconds: float) -> float:
    """Return the utilisation of a scheduler that cuts candidates anywhere, merges each once where it can, and waits for
    the end of what is asked together.

    A worker that ends without a candidate of its own must merge another's to help: with n candidates in turns of W, the
    last n mod W of them are shared by all.
    """
    full, rest = divmod(together, workers)
    merge = MERGE * seconds
    last = rest * seconds / workers + merge if rest else 0.0
    return together * seconds / (workers * (full * (seconds + merge) + last))


def items(seconds: float) -> list[Item]:
    """Return the items of a candidate, which take so long together; the longest takes ten times the shortest."""
    each = np.exp(np.random.default_rng(0).uniform(0, np.log(10), ITEMS))
    return [Item(f"{i}:{one:.6f}", "", 0) for i, one in enumerate(each / each.sum() * seconds)]


def make(name: str, size: int, lag: int) -> Any:
    """Return a searcher over a box of 24 coefficients."""
    space = make_space(
        "tensor", {f"t{i}": (2, 2) for i in range(DIMENSIONS)}, ["a"], [Variable("weight", 0.0, 1.5, 0.0)]
    )
    start = np.full(space.dim, 0.4)
    if name == "tpe":
        return Tpe(space, start, 1, lag=lag)
    return CmaEs(space, start, 1, popsize=size, lag=lag)


@contextmanager
def crew_of(workers: int, merge: float, real: bool, path: Path) -> Iterator[Any]:
    """Make simulated workers."""
    environments: Sequence[dict[str, str]] = [{}] * workers
    yield Processes({"merge": merge}, environments, path, "pool_bench.worker") if real else Virtual(workers, merge)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
