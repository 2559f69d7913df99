"""What `evomerge evaluate RUN --worth` and `--around` find stays in the run directory, and is drawn on its page.

In: what was asked for, and what came of it. Out: files of `runs/beside.py` and `report.html`, or the reason why not: a
page shows the winner on the items and by the metric of its search, so what was scored otherwise is not kept.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # see `evaluate.py`
    from evomerge.cli.evaluate import Scored
    from evomerge.cli.progress import Reporter

WHO = ("evaluator", "time_limit", "model.device", "model.device_map", "model.place", "model.cache")
"""Settings that say who scores, not what."""


def keep_for_page(options: argparse.Namespace, given: Sequence[str], scored: Scored, reporter: Reporter) -> None:
    """Keep what a winner is worth, or what is around it, and draw the page of its run.

    Args:
        options: the flags.
        given: the settings.
        scored: what came of them.
        reporter: is told where it is kept, or why it is not.
    """
    from evomerge.report import write_report
    from evomerge.runs.beside import has_its_items, keep_around, keep_worth
    from evomerge.runs.directory import open_run

    directory = Path(options.models[0]).expanduser() if options.models else Path()
    result, held_out = scored.result, scored.held_out
    parts = [result, *([held_out] if held_out else [])]
    failed = any(part.errors for part in parts)
    if not (options.worth or options.around) or failed or not (directory / "summary.json").is_file():
        return
    shown, flag = os.path.relpath(directory), "--worth" if options.worth else "--around"
    if _is_other(options, given, result.split):
        reporter.say(
            f"not kept for the page of {shown}: that shows what `evomerge evaluate {shown} {flag}` finds with no other "
            f"model, split, metric, items or settings"
        )
        return
    run = open_run(directory)
    if not all(has_its_items(run, part) for part in parts):
        reporter.say(
            f"not kept for the page of {shown}: its {result.split} items are others than those on which the winner was "
            f"judged; the search's own command judges it again, then this one keeps what it finds"
        )
        return
    try:
        kept = keep_worth(run, result, held_out) if options.worth else keep_around(run, result, scored.rows)
        page = write_report(directory)
    except OSError as error:  # a run of somebody else's
        reporter.say(f"warning: not kept for the page of {shown}: {error}")
        return
    reporter.say(f"kept in {os.path.relpath(kept)}, and drawn in {os.path.relpath(page)}")


def _is_other(options: argparse.Namespace, given: Sequence[str], split: str) -> bool:
    """Whether something else was scored than what belongs on the page."""
    keys = [argument.split("=")[0].lstrip("+~") for argument in given]
    who = all(any(key == one or key.startswith(f"{one}.") for one in WHO) for key in keys)
    splits = ("report",) if options.worth else ("select", "report")
    return (
        len(options.models) > 1 or options.items is not None or bool(options.metric) or not who or split not in splits
    )
