"""What a page shows of a pool of workers: utilisation over time, a lane for each worker, and who was lost.

In: `Utilisation`. Out: a `Chart`, lanes of stacked shares as paths in a box of 100 x 100, and sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.report.charts import Chart, Line, Rule
from evomerge.report.scales import Axis, axis
from evomerge.report.utilisation import KINDS, Trouble, Utilisation
from evomerge.report.wording import span
from evomerge.runs.worker_log import Session

BINS = {"chart": 60, "lane": 200}
"""Parts of the time that a drawing tells apart."""
LEVELS = 20
"""Heights that a lane tells apart."""
MOST_LANES, MOST_TROUBLES = 32, 12
"""So many are shown, of more."""
NAMES = {
    "forward": "fitness",
    "merge": "merging",
    "other": "rest of units",
    "setup": "starting",
    "lost": "lost",
    "idle": "idle",
}


@dataclass(frozen=True)
class Lane:
    """The time of a worker: its name, its utilisation, all shares in words, and (kind, path) of what is drawn."""

    name: str
    share: str
    words: str
    paths: list[tuple[str, str]]


@dataclass(frozen=True)
class WhereTimeWent:
    """The section on workers.

    Attributes:
        sentence: utilisation, and of what.
        shares: of the time of all workers, by kind: {"kind", "share", "words"}.
        chart: utilisation over time.
        lanes: of the workers.
        left_out: what is said of workers without a lane.
        troubles: sentences on those that were lost or retired.
    """

    sentence: str
    shares: list[dict[str, Any]]
    chart: Chart
    lanes: list[Lane]
    left_out: str
    troubles: list[str]


def where_time_went(sessions: Sequence[Session], window: str, more: str = "") -> WhereTimeWent | None:
    """Return what is known of workers; None where there were none, or nothing was measured.

    Args:
        sessions: what they did.
        window: from when to when that was measured, in words.
        more: a sentence on what was not.
    """
    found = Utilisation(sessions)
    if not found.wall:
        return None
    least = sorted(found.workers, key=lambda worker: found.of(worker)["forward"])[:MOST_LANES]
    rest = len(found.workers) - len(least)
    return WhereTimeWent(
        _sentence(found, window, more),
        _shares(found),
        _over_time(found),
        [_lane(found, worker) for worker in sorted(least)],
        f"Those that were in the fitness least; {rest:,} more are not drawn." if rest else "",
        _sentences(found.troubles),
    )


def _sentence(found: Utilisation, window: str, more: str) -> str:
    n = len(found.workers)
    calls = f", in {found.calls} calls of the command" if found.calls > 1 else ""
    return (
        f"Utilisation is {found.share:.1%}: so much of the time of {n:,} worker{'s' if n > 1 else ''}, "
        f"{span(found.wall)} {window}{calls}, was spent in the fitness. "
        f"{found.units:,} units were done. A worker took up to {span(found.started)} to start. {more}"
    ).rstrip()


def _shares(found: Utilisation) -> list[dict[str, Any]]:
    return [
        {
            "kind": kind,
            "share": round(seconds / found.capacity, 5),
            "words": f"{NAMES[kind]} {span(seconds)} ({seconds / found.capacity:.1%})",
        }
        for kind, seconds in found.seconds.items()
        if seconds
    ]


def _over_time(found: Utilisation) -> Chart:
    values = 100 * found.over_time(BINS["chart"])
    scale, unit = _unit(found.wall)
    x = axis([0.0, found.wall / scale], f"{unit} of the search", pad=0.0)
    y = Axis(0.0, 100.0, "% of workers in the fitness", (0.0, 25.0, 50.0, 75.0, 100.0))
    heights = [round(100 - float(value), 1) for value in values]
    width = 100 / len(heights)
    path = f"M0 {heights[0]}" + "".join(f"V{h}H{round(width * (i + 1), 2)}" for i, h in enumerate(heights))
    total = 100 * found.share
    words = f"{total:.1f} % of workers on average; at times {values.min():.0f} %, at times {values.max():.0f} %."
    rules = [Rule(round(100 - total, 2), "constant", f"all in all {total:.1f} %")]
    return Chart(x, y, words, [], [Line(path, "best")], rules, height=180)


def _unit(seconds: float) -> tuple[float, str]:
    if seconds < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


def _lane(found: Utilisation, worker: int) -> Lane:
    shares = found.of(worker)
    words = ", ".join(f"{NAMES[kind]} {share:.1%}" for kind, share in shares.items() if share)
    drawn = [kind for kind in KINDS if kind != "idle"]
    tops = np.cumsum([found.shares(worker, kind, BINS["lane"]) for kind in drawn], axis=0)
    levels = np.rint(LEVELS * np.vstack([np.zeros(BINS["lane"]), tops])).astype(int)
    paths = [(kind, _areas(levels[i], levels[i + 1])) for i, kind in enumerate(drawn)]
    return Lane(f"worker {worker}", f"{shares['forward']:.0%}", words, [pair for pair in paths if pair[1]])


def _areas(low: np.ndarray, high: np.ndarray) -> str:
    """Return a path around what lies between two rows of levels: a rectangle for each run of parts that are alike."""
    width, height = 100 / len(low), 100 / LEVELS
    starts = [0, *(np.flatnonzero((np.diff(low) != 0) | (np.diff(high) != 0)) + 1)]
    pieces = []
    for start, stop in zip(starts, [*starts[1:], len(low)], strict=True):
        if (top := high[start]) > (bottom := low[start]):
            left, right = (f"{width * edge:g}" for edge in (start, stop))
            pieces.append(f"M{left} {100 - height * top:g}H{right}V{100 - height * bottom:g}H{left}z")
    return "".join(pieces)


def _sentences(troubles: Sequence[Trouble]) -> list[str]:
    """Say who was retired, then who was lost."""
    ranked = sorted(troubles, key=lambda one: (one.kind != "retired", one.at))
    happened = {"retired": "was retired", "lost": "was lost"}
    texts = [
        f"Worker {one.worker} {happened[one.kind]} after {span(one.at)}: {one.why.rstrip('.') or 'nothing is known'}."
        for one in ranked[:MOST_TROUBLES]
    ]
    more = len(ranked) - len(texts)
    return [*texts, f"{more:,} more losses are in workers.jsonl."] if more else texts
