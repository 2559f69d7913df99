"""A simulated worker: it waits as long as its items take, and longer where it is given another candidate.

In: the messages of a pool (`evomerge/search/evaluators/wire.py`). Out: answers to them. An item's id says how many
seconds it takes, `17:0.012`; its result is minus the squared distance of the point to the middle of the box.
"""

from __future__ import annotations

import json
import sys
import time
from multiprocessing.connection import Connection
from typing import Any


def seconds_of(ids: dict[str, list[str]]) -> float:
    """Return how long items take."""
    return sum(float(item.partition(":")[2]) for chosen in ids.values() for item in chosen)


def answer(message: dict[str, Any], merge: float, forward: float) -> dict[str, Any]:
    """Return the answer to a unit that has taken so long to merge and to score."""
    value = -sum((x - 0.75) ** 2 for x in message["model"]["point"])
    results = {task: {"m": [value] * len(chosen)} for task, chosen in message["ids"].items()}
    times = {"merge": merge, "forward": forward, "total": merge + forward}
    return {
        "kind": "scored",
        "number": message["number"],
        "items": message["ids"],
        "results": results,
        "seconds": None,
    } | times


def main() -> None:
    """Answer until the pipe is closed."""
    pipe, last = Connection(int(sys.argv[1])), None
    merging = json.loads(pipe.recv_bytes())["merge"]
    pipe.send_bytes(json.dumps({"kind": "ready", "circumstances": {"fingerprint": {}}}).encode())
    while True:
        try:
            message = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        started = time.perf_counter()
        if message["model"] != last:
            last = message["model"]
            time.sleep(merging)
        merged = time.perf_counter()
        time.sleep(seconds_of(message["ids"]))
        pipe.send_bytes(json.dumps(answer(message, merged - started, time.perf_counter() - merged)).encode())


if __name__ == "__main__":
    main()
