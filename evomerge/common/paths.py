"""Paths of a home directory, and the directory in which a search was started.

A search records that directory beside its settings (`started.json`): as it is, and as it is seen from the run
directory, so that runs can be looked at from anywhere, also after all of it has moved. Nothing of it enters the log or
the identity.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from evomerge.common.files import write_atomically

RECORD = "started.json"


def at_home(text: str) -> str:
    """Return a path whose `~` is spelled out."""
    return os.path.expanduser(text) if text.startswith("~") else text


def record_start(run: Path) -> None:
    """Write into a run directory where its search is started, which is here."""
    here = {"directory": os.getcwd(), "seen_from_here": os.path.relpath(os.getcwd(), run)}
    write_atomically(run / RECORD, json.dumps(here) + "\n")


def started_in(run: Path) -> list[Path]:
    """Return the directories in which the search of a run may have been started, the likeliest first.

    Args:
        run: its directory; one without a record gives none.
    """
    try:
        record = json.loads((run / RECORD).read_text(encoding="utf-8"))
        return [run / record["seen_from_here"], Path(record["directory"])]
    except (OSError, ValueError, KeyError, TypeError):
        return []
