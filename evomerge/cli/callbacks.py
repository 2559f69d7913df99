"""What Hydra calls at the beginning and at the end of a search or a sweep.

Before: the place for run directories, refused in a sentence where it cannot be written. After a sweep: a table with one
row for each run, best first; a page that compares them; and the runs that were refused or failed, each with its reason.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from evomerge.cli.common import explained
from evomerge.cli.pages import draw_sweep
from evomerge.runs.config import run_name
from evomerge.runs.directory import read_summary
from evomerge.selection.statistics import plus_minus

if TYPE_CHECKING:
    pass

REASON = "error.txt"
"""In the directory of a run of a sweep that was refused or failed: why."""


class RunDirectory(Callback):
    """Refuses a place for run directories that cannot be written, before Hydra fails there in words of its own."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the run directory, and try it."""
        _try(Path(config.hydra.run.dir), "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the directory of all runs, and try it."""
        _try(Path(config.hydra.sweep.dir), "hydra.sweep.dir")


def _try(directory: Path, setting: str) -> None:
    with explained(f"Run directories are made there: write {setting}= and a directory that you may write."):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass


class SweepTable(Callback):
    """Prints the runs of a sweep, from their summaries, writes their report, and names those that failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Find the directory of every run from the sweep's settings, whatever launched it; print the table and say
        where the report is, and which runs are not complete and why.

        Raises:
            SystemExit: with status 1, if a run is not complete.
        """
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        choices: Any = OmegaConf.to_container(config.hydra.runtime.choices)
        jobs = [job for batch in BasicSweeper.split_arguments(overrides, max_batch_size=None) for job in batch]
        runs = [Path(config.hydra.sweep.dir) / run_name(choices, job) for job in jobs]
        failed = {run: why for run in runs if (why := _why_not(run))}
        complete = [run for run in runs if run not in failed]
        summaries = [(run.name, summary) for run in complete if (summary := read_summary(run))]
        summaries.sort(key=lambda pair: -pair[1].select.value)  # by the report split it would be choosing on it
        rows = [
            [
                name,
                f"{summary.select.value:.4f}",
                plus_minus(summary.winner.mean, summary.winner.se),
                plus_minus(summary.gain.diff, summary.gain.se, "+"),
                "" if (constant := summary.best_constant.mean) is None else f"{constant:.4f}",
                str(summary.trials),
            ]
            for name, summary in summaries
        ]
        title = f"{len(rows)} of {len(jobs)} runs are complete; best on the select split first, then the report split"
        columns = ["run", "on select", "winner ± se", "- best constant ± se", "best constant", "trials"]
        from evomerge.cli.progress import Reporter  # not at the top: Hydra imports this module for --help, too

        reporter = Reporter()
        reporter.table(title, columns, rows)
        draw_sweep([run for run in runs if (run / "trials.jsonl").is_file()], reporter)
        for run, why in failed.items():
            reporter.say(f"not complete: {os.path.relpath(run)}: {why}")
        if failed:
            raise SystemExit(1)


def _why_not(run: Path) -> str | None:
    """Return why a run is not complete; None if it is."""
    if (run / REASON).is_file():
        return (run / REASON).read_text(encoding="utf-8").strip()
    return None if (run / "summary.json").is_file() else f"it ended without a word; see {os.path.relpath(run)}"
