"""TensorBoard: event files below the run directory; `tensorboard --logdir runs` shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from evomerge.runs.trackers.base import Tracked, need


class TensorBoard:
    """Writes event files to `tensorboard/` in the run directory.

    A search that goes on is written from its beginning, and TensorBoard drops what earlier files hold.
    """

    def __init__(self) -> None:
        need("tensorboard", "tensorboard")

    def open(self, run: Tracked) -> int:
        """Begin a file that stands for all that came before."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.directory / "tensorboard"), purge_step=0)
        settings = json.dumps(run.settings, indent=2, ensure_ascii=False)
        self._writer.add_text("settings", f"```\n{settings}\n```", 0)
        return 0

    def log(self, generation: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of a generation."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, generation)
        self._writer.flush()

    def close(self, generation: int, numbers: Mapping[str, float]) -> None:
        """Write what is known at the end, and close the file."""
        self.log(generation, numbers)
        self._writer.close()
