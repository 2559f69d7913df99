"""The page of a run, of a sweep or of a comparison, drawn when all results are on the disk: it never costs a run.

In: directories of runs. Out: `report.html`, and a line that says where it is; a warning where it cannot be drawn.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from evomerge.common.progress import Progress
from evomerge.runs.beside import is_page_older

logger = logging.getLogger(__name__)


def draw_run(directory: Path, progress: Progress) -> None:
    """Draw the page of a run, unless it is there and younger than all results that it shows."""
    if is_page_older(directory / "report.html", directory):
        _draw("report", lambda report: report.write_report(directory), progress)


def draw_sweep(runs: Sequence[Path], progress: Progress) -> None:
    """Draw the page that compares runs, beside their directories."""
    if runs:
        page = runs[0].parent / "report.html"
        _draw("report of the sweep", lambda report: report.write_sweep(list(runs), page, again=False), progress)


def draw_comparison(directory: Path, progress: Progress) -> None:
    """Draw the page of a comparison that has ended."""
    _draw("report", lambda report: report.write_comparison(directory), progress)


def _draw(what: str, draw: Callable[[ModuleType], Path], progress: Progress) -> None:
    try:
        with progress.working("drawing the report"):
            page = draw(import_module("evomerge.report"))  # its libraries may be missing
    except Exception as error:  # whatever goes wrong in drawing: the search is done, and all of it is on the disk
        logger.warning("The report could not be written: %s: %s", type(error).__name__, error)
    else:
        progress.say(f"{what}: {os.path.relpath(page)}")
