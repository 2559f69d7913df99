"""The page of a run or of a sweep, drawn when the command has all results on the disk: it never costs a run.

In: directories of runs. Out: `report.html`, and a line that says where it is; a warning where it cannot be drawn.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from evomerge.common.progress import Progress

logger = logging.getLogger(__name__)


def draw_run(directory: Path, progress: Progress) -> None:
    """Draw the page of a run, unless it is there and younger than the result."""
    page, summary = directory / "report.html", directory / "summary.json"
    if page.is_file() and page.stat().st_mtime_ns >= summary.stat().st_mtime_ns:
        return
    _draw([directory], None, progress)


def draw_sweep(runs: Sequence[Path], progress: Progress) -> None:
    """Draw the page that compares runs, beside their directories."""
    if runs:
        _draw(runs, runs[0].parent / "report.html", progress)


def _draw(runs: Sequence[Path], sweep: Path | None, progress: Progress) -> None:
    try:
        from evomerge.report import write_report, write_sweep  # its libraries may be missing

        with progress.working("drawing the report"):
            page = write_report(runs[0]) if sweep is None else write_sweep(list(runs), sweep, again=False)
    except Exception as error:  # whatever goes wrong in drawing: the search is done, and all of it is on the disk
        logger.warning("The report could not be written: %s: %s", type(error).__name__, error)
    else:
        progress.say(f"report{' of the sweep' if sweep else ''}: {os.path.relpath(page)}")
