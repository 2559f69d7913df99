"""The table at the end of a sweep, as a Hydra callback: one row for each run, from the summaries in the sweep's directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from evomerge.progress import Reporter


class SweepTable(Callback):
    """Prints the runs of a sweep, best first."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read every summary below the sweep's directory and print the table."""
        directory = Path(config.hydra.sweep.dir)
        summaries = [json.loads(path.read_text()) for path in sorted(directory.glob("*/summary.json"))]
        summaries.sort(key=lambda summary: -summary["report"]["winner"]["mean"])
        rows = []
        for summary in summaries:
            winner, difference = summary["report"]["winner"], summary["paired"]["winner_vs_best_constant"]
            rows.append(
                [
                    Path(summary["directory"]).name,
                    f"{winner['mean']:.4f} ± {winner['se']:.4f}",
                    f"{difference['diff']:+.4f} ± {difference['se']:.4f}",
                    f"{summary['report']['best_constant']['mean']:.4f}",
                    str(summary["trials"]),
                ]
            )
        title = f"{len(rows)} runs in {directory}, on the report split"
        Reporter().table(title, ["run", "winner", "- best constant", "best constant", "trials"], rows, Console(soft_wrap=True))
