"""What Hydra calls at the beginning and at the end of a search or a sweep.

Before: the place for run directories, refused in a sentence where it cannot be written; and the launcher that swept
experiments name. After a sweep: a table with one row for each run, best first; a page that compares them; and the runs
that were refused or failed, each with its reason. A launcher may send these objects to other processes, where the names
of run directories must be known as well.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from evomerge.cli.commands import SAFE
from evomerge.cli.common import REASON, explained
from evomerge.cli.pages import draw_sweep
from evomerge.common.errors import ConfigError
from evomerge.runs.config import register, run_name
from evomerge.runs.directory import read_summary
from evomerge.runs.fronts import gains_of
from evomerge.selection.statistics import plus_minus
from evomerge.selection.summary import Summary


class _Sent(Callback):
    """What a launcher may send to another process, which then knows how run directories are named."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (type(self),)


def _received(kind: type[_Sent]) -> _Sent:
    register()
    return kind()


class RunDirectory(_Sent):
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


class LauncherOfExperiments(_Sent):
    """Takes the launcher that the experiments of a sweep name: Hydra looks for one in what is not swept alone."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Put it in the place of the usual one, unless the command line names one.

        Raises:
            SystemExit: the experiments name different ones.
        """
        swept = _experiments(config)
        if not swept or any(text.startswith("hydra/launcher=") for text in config.hydra.overrides.hydra):
            return
        with explained(SAFE):
            launchers = {name: OmegaConf.to_container(one.launcher) for name, one in swept.items()}
            first, *others = launchers.values()
            if any(other != first for other in others):
                named = ", ".join(f"{name}: {one.runtime.choices['hydra/launcher']}" for name, one in swept.items())
                raise ConfigError(
                    f"The experiments of this sweep name launchers, or settings of them, that differ ({named}). One "
                    f"launcher runs all members: write hydra/launcher=slots, or another one, beside them."
                )
            with open_dict(config.hydra):
                config.hydra.launcher = OmegaConf.create(first)


class SweepTable(_Sent):
    """Prints the runs of a sweep, from their summaries, writes their report, and names those that failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Find the directory of every run from the sweep's settings, whatever launched it; print the table and say
        where the report is, and which runs are not complete and why.

        Raises:
            SystemExit: with status 1, if a run is not complete.
        """
        jobs, swept = _jobs(config), _experiments(config)
        own = [swept.get(_by_name(job).get("experiment", ""), config.hydra).runtime.choices for job in jobs]
        runs = [Path(config.hydra.sweep.dir) / run_name(chosen, job) for chosen, job in zip(own, jobs, strict=True)]
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
        reporter.table(title, columns, rows, _of_fronts(summaries))
        draw_sweep([run for run in runs if (run / "trials.jsonl").is_file()], reporter)
        for run, why in failed.items():
            reporter.say(f"not complete: {os.path.relpath(run)}: {why}")
        if failed:
            raise SystemExit(1)


def _of_fronts(summaries: Sequence[tuple[str, Summary]]) -> list[str]:
    """Return what is said of the runs that have several values."""
    found = [(name, summary.front) for name, summary in summaries if summary.front]
    if not found:
        return []
    about = "of several values: the winner is the point of the front that was chosen; numbers are means over all tasks"
    each = [f"{name}: {gains_of(one)}; hypervolume {one.hypervolume['report']:.4g} on report" for name, one in found]
    return [about, *each]


def _jobs(config: DictConfig) -> list[list[str]]:
    """Return the overrides of each run of a sweep."""
    overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    return [job for batch in BasicSweeper.split_arguments(overrides, max_batch_size=None) for job in batch]


def _experiments(config: DictConfig) -> dict[str, Any]:
    """Return Hydra's configuration under each experiment of a sweep over experiments; they may choose other groups and
    another launcher than the sweep's own has.
    """
    jobs = {words["experiment"]: job for job in _jobs(config) if "experiment" in (words := _by_name(job))}
    loader = GlobalHydra.instance().config_loader()
    return {name: loader.load_sweep_config(config, job).hydra for name, job in jobs.items() if len(jobs) > 1}


def _by_name(job: list[str]) -> dict[str, str]:
    return dict(text.lstrip("+").split("=", 1) for text in job if "=" in text)


def _why_not(run: Path) -> str | None:
    """Return why a run is not complete; None if it is."""
    if (run / REASON).is_file():
        return (run / REASON).read_text(encoding="utf-8").strip()
    if (run / "summary.json").is_file():
        return None
    if not (run / "trials.jsonl").is_file():
        return "it has not begun"
    lock = FileLock(run / "trials.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return "it still runs"
    lock.release()
    return f"it ended without a word; see {os.path.relpath(run)}"
