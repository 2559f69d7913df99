"""A tracker follows the trial log of a run, in a thread of its own, so that it can neither stop nor delay a search.

In: a tracker and a run directory. Out: what the tracker shows. All of it is read from the log, from its first line on,
so a run that goes on, or that had no tracker before, is shown as a whole. An error ends the tracking, and is said once;
a tracker that hangs is waited for a little at the end, and then left alone.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evomerge.common.digests import digest
from evomerge.runs.directory import read_summary
from evomerge.runs.trackers.base import Tracked, Tracker
from evomerge.runs.trackers.generations import Generations, at_the_end

EVERY = 2.0
"""Seconds between two looks at the log."""
PATIENCE = 30.0
"""Seconds that a tracker may take to end."""
logger = logging.getLogger(__name__)


@contextmanager
def tracking(tracker: Tracker | None, directory: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Show a run in a tracker while the block runs, and what came out of it at its end.

    Args:
        tracker: shows it; None for nothing.
        directory: of the run.
        settings: of its search.
    """
    if tracker is None:
        yield
        return
    over = threading.Event()
    follow = threading.Thread(
        target=_follow, args=(tracker, directory, settings, over), name="evomerge tracker", daemon=True
    )
    follow.start()
    try:
        yield
    finally:
        over.set()
        follow.join(PATIENCE)
        if follow.is_alive():
            logger.warning(
                "The tracker has not ended after %g seconds, and evomerge waits no longer: it may lack the end of the "
                "search. The same command again shows all of it.",
                PATIENCE,
            )


def _follow(tracker: Tracker, directory: Path, settings: Mapping[str, Any], over: threading.Event) -> None:
    try:
        _track(tracker, directory, settings, over)
    except BaseException as error:  # whatever another program raises: it is no business of the search
        logger.warning(
            "The tracker has failed, and the search goes on without it (%s: %s). The same command again shows all of "
            "it.",
            type(error).__name__,
            next(iter(str(error).splitlines()), ""),
        )


def _track(tracker: Tracker, directory: Path, settings: Mapping[str, Any], over: threading.Event) -> None:
    named = settings.get("objective", {}).get("values")
    generations, first = Generations(settings["fitness"]["metric"], named), None
    for line in _lines(directory / "trials.jsonl", over):
        if line["kind"] == "header" and first is None:
            name = directory.resolve().name
            first = tracker.open(Tracked(name, digest([name, line["identity"]])[:16], directory, settings))
        numbers = generations.take(line)
        if numbers and first is not None and generations.last >= first:
            tracker.log(generations.last, numbers)
    if first is None:
        return
    summary = read_summary(directory)
    ended = summary if summary and summary.trials >= generations.trials else None
    tracker.close(generations.last, at_the_end(ended) if ended else {})


def _lines(path: Path, over: threading.Event) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log as they come, and those that are there once it is over."""
    read, last = 0, False
    while not last:
        last = over.is_set()  # before the look, so that nothing is missed
        if path.is_file():
            with path.open("rb") as file:
                file.seek(read)
                for line in file:
                    if not line.endswith(b"\n"):  # it is being written
                        break
                    read += len(line)
                    yield json.loads(line)
        over.wait(0 if last else EVERY)
