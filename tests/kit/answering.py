"""A worker without a model: it answers a unit with numbers that no other pair of point and item has.

As a program it stands in place of `evomerge.runs.worker`: `python -m tests.kit.answering 7`. Its build message may hold
`seconds` that each unit takes, an `ends` with which it ends before it is ready, and the items that it `hangs` at.
"""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.connection import Connection

import numpy as np

from evomerge.fitness.base import Outcome
from evomerge.search.evaluators.units import Scored, Unit
from evomerge.search.evaluators.wire import packed, scored_message, unit_of, unpacked


def units_of(candidates: int, blocks: int, dim: int = 2) -> list[Unit]:
    """Units of candidates in a row, each of its own items."""
    points = [np.full(dim, float(i)) for i in range(candidates)]
    return [Unit(point, {"a": [f"{block}"], "b": [f"{block}0"]}) for point in points for block in range(blocks)]


def outcome_of(unit: Unit) -> Outcome:
    """What comes of a unit."""
    assert isinstance(unit.model, np.ndarray)
    worth = unit.model.sum() / 3
    return Outcome(
        unit.ids, {task: {"m": np.array([worth + int(item) / 7 for item in ids])} for task, ids in unit.ids.items()}
    )


def serve(pipe: Connection) -> None:
    """Answer until nobody asks any more."""
    build = unpacked(pipe.recv_bytes())
    if "ends" in build:
        sys.exit(build["ends"])
    pipe.send_bytes(packed({"kind": "ready", "circumstances": {"fingerprint": {}}, "process": os.getpid()}))
    while True:
        try:
            message = unpacked(pipe.recv_bytes())
        except EOFError:
            return
        unit = unit_of(message)
        hangs = any(item in build.get("hangs", ()) for ids in unit.ids.values() for item in ids)
        time.sleep(3600 if hangs else build.get("seconds", 0))
        pipe.send_bytes(packed(scored_message(message["number"], Scored(outcome_of(unit), 0.1, 0.2, 0.3))))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
