"""Measures cases: all of them and all probes of the bandwidth take turns, round by round, so that ratios compare what
the same minutes of the same machine gave.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from merge_bench.bandwidth import probes
from merge_bench.cases import Case, Ready, draws_alone
from merge_bench.models import Shape, write_models
from merge_bench.peer import NAMES, seconds_of

PAUSE = 0.3
"""Seconds after the probes of torch, whose threads go on for a while, waiting for more: in the way of all others."""
DRAWS = "draws of dare alone"
KEYS = ("method", "dtype", "rows", "store", "seconds", "roofline_ratio", "mergekit_ratio", "prepare_seconds")


def row_of(case: str, method: str, **more: Any) -> dict[str, Any]:
    """Return a row, with None for all that it does not say."""
    return {"case": case, **dict.fromkeys((*KEYS, "extra_memory")), "method": method, "dtype": "bfloat16", **more}


def measure(
    directory: Path, cases: Sequence[Case], shape: Shape, rounds: int, mergekit: Path | None
) -> list[dict[str, Any]]:
    """Return the rows of some cases.

    Args:
        directory: an empty one.
        cases: which.
        shape: of the models.
        rounds: how often each is timed.
        mergekit: its environment; None to do without.
    """
    live = write_models(directory, shape, max(case.rows for case in cases))
    elements = sum(parameter.numel() for parameter in live.model.parameters())
    ready = [Ready(case, directory, live) for case in cases]
    moved = probes(directory, 2 * elements, {case.rows + 1 for case in cases})
    timed: dict[str, Callable[[int], float]] = {each.case.name: each.merge for each in ready}
    if any(case.method.form.keep == "drawn" for case in cases):
        timed[DRAWS] = draws_alone(3, elements)
    timed |= {name: work for name, (_, work) in moved.items()}
    _say(f"{elements / 1e6:.1f} M parameters; load before: {os.getloadavg()}")
    found: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, work in timed.items():
            found[name].append(work(number))
        time.sleep(PAUSE)
    seconds = {name: statistics.median(each[1:]) for name, each in found.items()}  # the first reads the files
    bandwidths = {name: nbytes / seconds[name] for name, (nbytes, _) in moved.items()}
    said = ", ".join(f"{name} {bandwidth / 1e9:.1f}" for name, bandwidth in bandwidths.items())
    _say(f"load after: {os.getloadavg()}; GB/s: {said}")
    rows = []
    for each in ready:
        theirs = None if mergekit is None else _mergekit(each.case, directory, mergekit)
        rows += _rows(each, seconds[each.case.name], max(bandwidths.values()), theirs)
    if DRAWS in seconds:
        rows.append(row_of(DRAWS, "dare", rows=3, seconds=round(seconds[DRAWS], 5)))
    return rows


def _rows(ready: Ready, seconds: float, bandwidth: float, theirs: float | None) -> list[dict[str, Any]]:
    case = ready.case
    what = {"method": case.method.name, "rows": case.rows, "store": case.store}
    what["prepare_seconds"] = round(ready.prepare_seconds, 4)
    merged = row_of(
        case.name,
        **what,
        seconds=round(seconds, 5),
        roofline_ratio=round(ready.bytes / bandwidth / seconds, 3),
        mergekit_ratio=None if theirs is None else round(theirs / seconds, 1),
        extra_memory=ready.extra_memory(),
    )
    return [merged, row_of(f"{case.name} prepared", **what, extra_memory=ready.prepare_memory)]


def _mergekit(case: Case, directory: Path, environment: Path) -> float | None:
    """Return the median of mergekit's seconds for a case that it is asked for."""
    if case.method.name not in NAMES or case.store != "bfloat16" or case.variant:
        return None
    seconds = seconds_of(environment, directory, case.method.name, case.rows)
    _say(f"mergekit, {case.name}: {min(seconds):.2f} to {max(seconds):.2f} s, {len(seconds)} times")
    return statistics.median(seconds)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
