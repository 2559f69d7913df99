"""In which dtype a run computes: it is chosen when the run begins, and kept whenever it goes on.

In: a run directory, and the settings of its search. Out: the dtype that the header of its log holds, and sentences. A
log without one, which is what all were once, is of a run that computes in the dtype of its checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.common.errors import ConfigError
from evomerge.common.limits import AUTO
from evomerge.common.names import dtype_name
from evomerge.models.computing import choose
from evomerge.models.live import LiveModel
from evomerge.search.journal import read_log


@dataclass(frozen=True)
class Begun:
    """How a run began.

    Attributes:
        path: its directory.
        compute: the name of the dtype that it computes in; None for that of the checkpoint.
        blocks: into how many the items of a candidate are cut.
        threads: that torch had.
        approximate: the dtype in which search items are scored; None for that of the model.
    """

    path: Path
    compute: str | None
    blocks: int = 1
    threads: int | None = None
    approximate: str | None = None


def begun(directory: Path, name: str = "trials.jsonl") -> Begun | None:
    """Return how the run of a directory began, by the header of its log; None if it has not."""
    log = directory / name
    header = next(read_log(log), {}) if log.exists() else {}
    if "identity" not in header:
        return None
    identity, threads = header["identity"], header.get("fingerprint", {}).get("threads")
    how = identity.get("compute"), identity.get("blocks", 1), threads, identity.get("approximate")
    return Begun(directory, *how)


def kept(settings: Mapping[str, Any], before: Begun | None) -> dict[str, Any]:
    """Return the settings of a search, in which the choice of a run that has begun stands in place of `auto`."""
    model = settings["model"]
    if before is None or model.get("compute") != AUTO:
        return dict(settings)
    return {**settings, "model": {**model, "compute": before.compute}}


def check_kept(live: LiveModel, before: Begun | None) -> None:
    """Refuse to go on with a run in another dtype than it began in.

    Raises:
        ConfigError: that was asked for.
    """
    now = live.compute and dtype_name(live.compute)
    if before is None or before.compute == now:
        return
    own = dtype_name(live.dtype)
    raise ConfigError(
        f"The run {before.path} computes in {before.compute or own}, and here it would go on in {now or own}, which "
        f"mixes two searches. Write model.compute=auto, which keeps what it began in (in Python "
        f"Family(..., compute={before.compute or own!r})), or choose another run directory "
        f"(hydra.run.dir=runs/another)."
    )


def said(live: LiveModel, asked: str | None, before: Begun | None) -> list[str]:
    """Return in what a run computes, as a sentence for preflight; nothing where there was no choice.

    Args:
        live: the model.
        asked: the setting `model.compute`.
        before: how the run began, if it goes on.
    """
    own = dtype_name(live.dtype)
    how = f"weights rounded to {own}, scored in {dtype_name(live.compute)}" if live.compute else own
    if before is None or asked != AUTO:
        return [f"{how}{f': {live.why}' * bool(live.why)}"] if live.compute or live.why else []
    faster, why = choose(live)
    if faster == (live.compute or live.dtype):
        return [f"{how}, as this run began: {why}"] if why else []
    return [f"{how}, as this run began, although {dtype_name(faster)} is faster on this machine: {why}"]
