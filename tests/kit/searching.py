"""Every searcher, as the matrices of tests take them, and a conversation with one. A new searcher adds one line."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from evomerge.searchers.base import Searcher, lag_of
from evomerge.searchers.cmaes import CmaEs
from evomerge.searchers.gradient import Gradient
from evomerge.searchers.greedy import Greedy
from evomerge.searchers.grid import Grid
from evomerge.searchers.hybrid import Hybrid
from evomerge.searchers.lines import Lines
from evomerge.searchers.mocma import MoCma
from evomerge.searchers.nsga2 import Nsga2
from evomerge.searchers.random import Random
from evomerge.searchers.screened import Screened
from evomerge.searchers.surrogate import Surrogate
from evomerge.searchers.topk import TopK
from evomerge.searchers.tpe import Tpe
from evomerge.searchers.warm import WarmStart
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, Trial

Make = Callable[[CoefficientSpace, int], Searcher]

OPTIONS: dict[str, Any] = {
    "cmaes": {},
    "cmaes-diagonal": {"diagonal_above": 0},
    "cmaes-popsize": {"popsize": 5},
    "cmaes-lag": {"lag": 12, "popsize": 5},
}
SEARCHERS: dict[str, Make] = {
    "cmaes": lambda space, seed: CmaEs(space, space.start({}), seed),
    "cmaes-diagonal": lambda space, seed: CmaEs(space, space.start({}), seed, **OPTIONS["cmaes-diagonal"]),
    "cmaes-popsize": lambda space, seed: CmaEs(space, space.start({}), seed, **OPTIONS["cmaes-popsize"]),
    "cmaes-lag": lambda space, seed: CmaEs(space, space.start({}), seed, **OPTIONS["cmaes-lag"]),
    "screened": lambda space, seed: Screened(space, space.start({}), seed),
    "tpe": lambda space, seed: Tpe(space, space.start({}), seed),
    "tpe-batch": lambda space, seed: Tpe(space, space.start({}), seed, batch=4),
    "tpe-lag": lambda space, seed: Tpe(space, space.start({}), seed, startup=30, lag=3),
    "tpe-screened": lambda space, seed: Tpe(space, space.start({}), seed, batch=2, share=0.25),
    "random": lambda space, seed: Random(space, space.start({}), seed),
    "random-lag": lambda space, seed: Random(space, space.start({}), seed, batch=2, lag=3),
    "warm-cmaes": lambda space, seed: WarmStart(space, lambda start: CmaEs(space, start, seed)),
    "warm-tpe": lambda space, seed: WarmStart(space, lambda start: Tpe(space, start, seed)),
    "nsga2": lambda space, seed: Nsga2(space, space.start({}), seed, popsize=6),
    "mocma": lambda space, seed: MoCma(space, space.start({}), seed, popsize=6),
    "map": lambda space, seed: Surrogate(space, space.start({}), seed, points=14),
    "grid": lambda space, seed: Grid(space, space.start({}), seed, coordinate=space.names[0]),
    "greedy": lambda space, seed: Greedy(space, space.start({}), seed),
    "topk": lambda space, seed: TopK(space, space.start({}), seed),
    "gradient": lambda space, seed: Gradient(space, space.start({}), seed),
    "gradient-cosine": lambda space, seed: Gradient(
        space, space.start({}), seed, schedule="cosine", steps=700, every=3
    ),
    "warm-gradient": lambda space, seed: WarmStart(space, lambda start: Gradient(space, start, seed)),
    "hybrid": lambda space, seed: Hybrid(space, space.start({}), seed, partial(Gradient, steps=12), CmaEs),
    "warm-hybrid": lambda space, seed: WarmStart(
        space, lambda start: Hybrid(space, start, seed, partial(Gradient, steps=9), CmaEs)
    ),
    "warm-hybrid-lag": lambda space, seed: WarmStart(
        space, lambda start: Hybrid(space, start, seed, partial(Gradient, steps=9), partial(CmaEs, lag=3))
    ),
}
SEVERAL: dict[str, Make] = {
    "random": lambda space, seed: Random(space, space.start({}), seed, objectives=3),
    "random-lag": lambda space, seed: Random(space, space.start({}), seed, batch=2, lag=3, objectives=3),
    "tpe": lambda space, seed: Tpe(space, space.start({}), seed, objectives=3),
    "tpe-lag": lambda space, seed: Tpe(space, space.start({}), seed, batch=2, lag=3, objectives=3),
    "nsga2": lambda space, seed: Nsga2(space, space.start({}), seed, popsize=6, objectives=3),
    "nsga2-lag": lambda space, seed: Nsga2(space, space.start({}), seed, popsize=6, lag=2, objectives=3),
    "nsga2-experts": lambda space, seed: Nsga2(space, space.start({}), seed, 6, first="experts", objectives=3),
    "mocma": lambda space, seed: MoCma(space, space.start({}), seed, popsize=6, objectives=3),
    "mocma-experts": lambda space, seed: MoCma(space, space.start({}), seed, 6, first="experts", objectives=3),
    "mocma-diagonal": lambda space, seed: MoCma(
        space, space.start({}), seed, popsize=6, diagonal_above=0, objectives=3
    ),
    "map": lambda space, seed: Surrogate(space, space.start({}), seed, points=14, batch=4, objectives=3),
    "lines": lambda space, seed: Lines(space, space.start({}), seed, objectives=3),
    "warm-nsga2": lambda space, seed: WarmStart(
        space, lambda start: Nsga2(space, start, seed, popsize=6, objectives=3), objectives=3
    ),
}
"""Searchers as they are told three values."""
BY_GRADIENT = tuple(name for name in SEARCHERS if "gradient" in name or "hybrid" in name)


def answer(batch: Batch, value: Callable[[np.ndarray], float | None]) -> Batch:
    """Fill a batch; None is a failed point. Gradients, where they are asked for, are those of the sphere."""
    for i, x in enumerate(batch.points):
        v = value(x)
        gradient = (-2 * (x - 0.7)).tolist() if batch.gradient and v is not None and np.isfinite(v) else None
        values = None if v is None else (v,)
        batch.trials[i] = Trial(batch.index, i, "failed" if v is None else "ok", values, gradient=gradient)
    return batch


def answer_several(batch: Batch, value: Callable[[np.ndarray], tuple[float, ...] | None]) -> Batch:
    """Fill a batch with several values and violations: of four numbers the last one is how far a constraint is
    violated. None is a failed point.
    """
    for i, x in enumerate(batch.points):
        v = value(x)
        found = ("failed", None, ()) if v is None else ("ok", v[:3], v[3:])
        batch.trials[i] = Trial(batch.index, i, *found)
    return batch


def trade(x: np.ndarray) -> tuple[float, ...]:
    """Three spheres around different points of the space."""
    return tuple(-float(((x - centre) ** 2).sum()) for centre in (0.2, 0.6, 1.0))


def drive(
    searcher: Searcher,
    value: Callable[[np.ndarray], Any],
    trials: int,
    fill: Callable[[Batch, Callable[[np.ndarray], Any]], Batch] = answer,
) -> list[Batch]:
    """Ask, ahead by the searcher's lag, and tell until so many points were told, or the searcher stops."""
    batches: list[Batch] = []
    ahead: deque[Batch] = deque()
    while sum(len(b.points) for b in batches) < trials:
        while len(ahead) <= lag_of(searcher) and searcher.stop() is None:
            ahead.append(searcher.ask())
        if not ahead:
            break
        batch = fill(ahead.popleft(), value)
        searcher.tell(batch)
        batches.append(batch)
    return batches


def points(batches: list[Batch]) -> np.ndarray:
    return np.concatenate([batch.points for batch in batches])
