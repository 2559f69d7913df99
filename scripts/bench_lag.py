"""What asking ahead costs in quality and gains in time: `python scripts/bench_lag.py`.

In: nothing; functions that cost no time stand for a benchmark, and drawn seconds for what a candidate takes. Out: two
tables. The first holds each lag against no lag after the same number of candidates: what is lost at the best point
found, and in brackets how many candidates the searcher without a lag needs for that. The second simulates a pool: the
share of its workers' time, from the first candidate to the last, in which they work.
"""

from __future__ import annotations

import argparse
import heapq
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.searchers.base import Searcher, lag_of
from evomerge.searchers.cmaes import CmaEs
from evomerge.searchers.tpe import Tpe
from evomerge.space.coefficients import CoefficientSpace, make_space
from evomerge.space.variable import Variable
from evomerge.trials import Batch

MAKE: dict[str, Callable[..., Searcher]] = {"cmaes": CmaEs, "tpe": Tpe}
LAGS = (0, 3, 7, 15, 31, 63)
TENFOLD = 10.0
"""How many times as long the longest candidate takes as the shortest."""
MORE = 2
"""The searcher without a lag is given so many times the budget, to find out when it has found as much."""
CANDIDATES = 12_000


@dataclass(frozen=True)
class Function:
    """What is searched.

    Args:
        loss: what is lost at a point, (dim,): 0 at the best one.
        noise: the standard deviation of what a searcher is told besides, the same whenever it asks for a point.
    """

    loss: Callable[[np.ndarray], float]
    noise: float = 0.0

    def told(self, x: np.ndarray) -> float:
        """Return the loss that a searcher is told of."""
        return self.loss(x) + self.noise * float(np.random.default_rng(zlib.crc32(x.tobytes())).standard_normal())


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--dims", type=int, nargs="+", default=[10, 30])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--searchers", nargs="+", default=list(MAKE))
    options = parser.parse_args()
    heading = f"{' | '.join(f'lag {lag}' for lag in LAGS)} |\n|---|---|{'---|' * len(LAGS)}"
    print(f"| searcher | function | {heading}")
    for name in options.searchers:
        for dim in options.dims:
            for title, function in make_functions(dim).items():
                found = [lost(name, box(dim), function, options.budget, options.seeds, lag) for lag in LAGS]
                cells = [said(one, found[0], options.budget) for one in found]
                print(f"| {name} | {title}, {dim} coefficients | {' | '.join(cells)} |", flush=True)
    print(f"\n| workers | asked at once | {heading}")
    seconds = TENFOLD ** np.random.default_rng(0).random(CANDIDATES)
    for workers in (8, 64):
        for blocks in (1, 10):
            shares = [utilisation(seconds, workers, 1 if lag else 12, lag, blocks) for lag in LAGS]
            what = "12 candidates, with a lag 1" + f", each in {blocks} blocks" * (blocks > 1)
            print(f"| {workers} | {what} | {' | '.join(f'{share:.2f}' for share in shares)} |")


def box(dim: int) -> CoefficientSpace:
    """Return a space of so many weights between 0 and 1.5."""
    weight = Variable("weight", 0.0, 1.5, 0.75)
    return make_space("tensor", {f"p{i}": (1,) for i in range(dim)}, ["expert"], [weight])


def make_functions(dim: int) -> dict[str, Function]:
    """Return the functions that are searched, each with its best point inside of the box."""
    rng = np.random.default_rng(0)
    best = rng.uniform(0.2, 0.9, dim)
    turned, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    scales = 10 ** (2 * np.arange(dim) / max(dim - 1, 1))

    def bowl(x: np.ndarray) -> float:
        return float(((x - best) ** 2).mean())

    def valley(x: np.ndarray) -> float:
        return float((scales * (turned @ (x - best)) ** 2).sum() / scales.sum())

    return {"bowl": Function(bowl), "valley": Function(valley), "noisy bowl": Function(bowl, 0.02)}


def lost(name: str, space: CoefficientSpace, function: Function, budget: int, seeds: int, lag: int) -> np.ndarray:
    """Return the geometric mean over seeds of what is lost at the best point, after each candidate."""
    curves = []
    for seed in range(seeds):
        searcher = MAKE[name](space, space.start({}), seed, lag=lag)
        curves.append(np.log(curve(searcher, function, budget * (1 if lag else MORE))))
    return np.exp(np.mean(curves, axis=0))


def curve(searcher: Searcher, function: Function, budget: int) -> np.ndarray:
    """Return what is lost at the point that seems best, after each of so many candidates."""
    ahead, losses, told = deque[Batch](), list[float](), list[float]()
    while len(told) < budget:
        while len(ahead) <= lag_of(searcher):
            ahead.append(searcher.ask())
        batch = ahead.popleft()
        losses += [function.loss(x) for x in batch.points]
        told += (values := [function.told(x) for x in batch.points])
        searcher.tell(batch.scored([-value for value in values]))
    return np.array([losses[int(np.argmin(told[: n + 1]))] for n in range(budget)])


def said(found: np.ndarray, without: np.ndarray, budget: int) -> str:
    """Return what is lost after the budget, and how many candidates without a lag that is worth."""
    reached = without <= found[budget - 1]
    return f"{found[budget - 1]:.2g} ({int(np.argmax(reached)) + 1 if reached.any() else f'over {len(without)}'})"


def utilisation(seconds: Sequence[float] | np.ndarray, workers: int, batch: int, lag: int, blocks: int = 1) -> float:
    """Return the share of its time in which a pool works.

    Args:
        seconds: that each candidate takes, in the order asked.
        workers: how many blocks run at once.
        batch: candidates that are asked at once.
        lag: batches that are asked ahead of the oldest that has not ended.
        blocks: into how many equal ones the items of a candidate are cut.
    """
    free, told, last = [0.0] * workers, list[float](), 0.0
    for number, took in enumerate(seconds):
        before = number // batch - lag - 1
        asked = told[before] if before >= 0 else 0.0
        for _ in range(blocks):
            end = max(asked, heapq.heappop(free)) + took / blocks
            heapq.heappush(free, end)
            last = max(last, end)  # so far: a batch is told when it and all before it have ended
        if number % batch == batch - 1:
            told.append(last)
    return float(np.sum(seconds) / (workers * last))


if __name__ == "__main__":
    main()
