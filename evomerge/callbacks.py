"""The end of a sweep, as a Hydra callback: a table with one row for each run, best first, and a page that compares."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from evomerge.config import run_name
from evomerge.progress import Reporter


class SweepTable(Callback):
    """Prints the runs of a sweep, from their summaries, and writes their report."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Find the directory of every run from the sweep's settings, whatever launched it; print the table and say
        where the report is.
        """
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        choices: Any = OmegaConf.to_container(config.hydra.runtime.choices)
        jobs = [job for batch in BasicSweeper.split_arguments(overrides, max_batch_size=None) for job in batch]
        runs = [Path(config.hydra.sweep.dir) / run_name(choices, job) for job in jobs]
        complete = [run for run in runs if (run / "summary.json").exists()]
        summaries = [{"name": run.name, **json.loads((run / "summary.json").read_text())} for run in complete]
        summaries.sort(key=lambda summary: -_selected(summary))  # by the report split it would be choosing on it
        rows = []
        for summary in summaries:
            name, winner, difference = (
                summary["name"],
                summary["report"]["winner"],
                summary["paired"]["winner_vs_best_constant"],
            )
            rows.append(
                [
                    name,
                    f"{_selected(summary):.4f}",
                    f"{winner['mean']:.4f} ± {winner['se']:.4f}",
                    f"{difference['diff']:+.4f} ± {difference['se']:.4f}",
                    f"{summary['report']['best_constant']['mean']:.4f}",
                    str(summary["trials"]),
                ]
            )
        title = f"{len(rows)} of {len(jobs)} runs are complete; best on the select split first, then the report split"
        columns = ["run", "on select", "winner ± se", "- best constant ± se", "best constant", "trials"]
        reporter = Reporter()
        reporter.table(title, columns, rows)
        _report([run for run in runs if (run / "trials.jsonl").is_file()], reporter)


def _report(runs: list[Path], reporter: Reporter) -> None:
    """Write the page of the sweep beside its runs, and say where; what goes wrong there costs nothing else."""
    if not runs:
        return
    from evomerge.report import attempt, write_sweep  # at the end only: it loads matplotlib

    page = attempt(lambda: write_sweep(runs, runs[0].parent / "report.html", again=False))
    if page is not None:
        reporter.say(f"report of the sweep: {os.path.relpath(page)}")


def _selected(summary: dict[str, Any]) -> float:
    """Return what the winner reached on the select split."""
    return summary["select"]["finalists"][summary["select"]["winner"]]
