"""Weights & Biases: a run of a project for each run directory."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from evomerge.runs.trackers.base import Tracked, need


class Wandb:
    """Shows a search as a run of Weights & Biases; one that goes on is the same run.

    Args:
        project: where runs are shown.
        entity: a user or a team; the usual one when left out.
        mode: `online`, `offline` (files for `wandb sync`) or `disabled`; as wandb is set up when left out.
    """

    def __init__(self, project: str = "evomerge", entity: str | None = None, mode: str | None = None) -> None:
        need("wandb", "wandb")
        self._about = {"project": project, "entity": entity, "mode": mode}

    def open(self, run: Tracked) -> int:
        """Begin a run, or go on with it."""
        wandb: Any = importlib.import_module("wandb")

        self._run: Any = wandb.init(
            **self._about,
            id=run.id,
            name=run.name,
            resume="allow",
            dir=str(run.directory),
            config=dict(run.settings),
            settings=wandb.Settings(console="off", login_timeout=1),  # nobody is asked for a key during a search
        )
        return self._run.step

    def log(self, generation: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of a generation."""
        self._run.log(dict(numbers), step=generation)

    def close(self, generation: int, numbers: Mapping[str, float]) -> None:
        """Put what is known at the end beside the run, and end it."""
        self._run.summary.update(dict(numbers))
        self._run.finish()
