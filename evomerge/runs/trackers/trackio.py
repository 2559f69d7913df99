"""Trackio, which has the interface of wandb: a run of a project for each run directory.

It adds whatever it is sent to a run that goes on, so `trackio.json` in the run directory holds what it has: delete that
file to send all of the search again.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from evomerge.common.files import write_atomically
from evomerge.runs.trackers.base import Tracked, need


class Trackio:
    """Shows a search as a run of Trackio; one that goes on is the same run.

    Args:
        project: where runs are shown.
        space_id: a Space of the Hugging Face hub that shows it; this machine's own when left out.
    """

    def __init__(self, project: str = "evomerge", space_id: str | None = None) -> None:
        need("trackio", "trackio")
        self._about = {"project": project, "space_id": space_id}

    def open(self, run: Tracked) -> int:
        """Begin a run, or go on with it."""
        trackio: Any = importlib.import_module("trackio")

        name = f"{run.name}-{run.id[:6]}"
        self._file, self._sent = run.directory / "trackio.json", {"run": name, "generations": 0, "end": {}}
        with suppress(FileNotFoundError, ValueError):
            sent = json.loads(self._file.read_text(encoding="utf-8"))
            self._sent = sent if sent["run"] == name else self._sent
        self._run: Any = trackio.init(**self._about, name=name, resume="allow", config=dict(run.settings), embed=False)
        return self._sent["generations"]

    def log(self, generation: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of a generation."""
        self._run.log(dict(numbers), step=generation)
        self._note(generations=generation + 1)

    def close(self, generation: int, numbers: Mapping[str, float]) -> None:
        """Send what is known at the end, and end the run."""
        if numbers and numbers != self._sent["end"]:
            self._run.log(dict(numbers), step=generation)
            self._note(end=dict(numbers))
        self._run.finish()

    def _note(self, **sent: Any) -> None:
        self._sent |= sent
        write_atomically(self._file, json.dumps(self._sent))
