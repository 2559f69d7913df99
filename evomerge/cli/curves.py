"""The table of `evomerge inspect --curve`: the loss along lines between models, and what that means for a merge."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.cli.progress import Reporter
from evomerge.selection.curves import ALPHAS, Curve
from evomerge.selection.statistics import plus_minus

SHOWN = (0, 2, 4, 5, 6, 8, 10)
"""Places of the points that a table has room for."""


def show_curves(lines: Sequence[Curve], reporter: Reporter) -> None:
    """Print a row for each pair of models, and what follows."""
    rows = [
        [
            f"{line.one} to {line.other}",
            *(f"{line.losses[i]:.3f}" for i in SHOWN),
            plus_minus(line.barrier, line.se) if line.barrier else "none",
            f"{line.above_mean:.3f}",
        ]
        for line in lines
    ]
    columns = ["", *(f"{ALPHAS[i]:g}" for i in SHOWN), "barrier ± se", "above the\nmean of ends"]
    reporter.table("loss on search items along the straight line between two models; lower is better", columns, rows)
    if flat := [line for line in lines if line.flat]:
        reporter.say(
            f"No barrier shows between {_pairs(flat)}: as far as these items tell, an average loses nothing where both "
            f"are of one task; experts of different tasks may lose much all the same."
        )
    if steep := [line for line in lines if not line.flat]:
        reporter.say(
            f"A barrier between {_pairs(steep)}: in between, the loss is higher than the line of both ends has it. "
            f"Smaller weights lose less, and a search finds them; transform=ties may help. Where the loss in between "
            f"is as high as that of the base, they were probably not fine-tuned from one base."
        )


def _pairs(lines: Sequence[Curve]) -> str:
    return ", ".join(f"{line.one} and {line.other}" for line in lines)
