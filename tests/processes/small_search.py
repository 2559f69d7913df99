"""A small search through the real log and the real loop, for tests that run it in processes of their own and kill them.

`play` is the search; `attempt` is what a child process runs, with the accidents that it is to meet; as a script it
plays in a fresh interpreter, `python -m tests.processes.small_search DIRECTORY SEARCHER...`, and the log of each is
DIRECTORY/SEARCHER.jsonl.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch

from evomerge.common.errors import EvomergeError
from evomerge.common.machine import fingerprint
from evomerge.search.log import TrialLog
from evomerge.search.loop import search
from evomerge.search.stopping import Budget, Interrupt
from evomerge.trials import Batch, StopReason, Trial
from tests.kit.helpers import box, sphere
from tests.kit.searching import SEARCHERS

NAMES = tuple(name for name in SEARCHERS if "-" not in name)
"""Every searcher once, without the variants of its settings."""
TRIALS = 48

optuna.logging.disable_default_handler()


class Evaluator:
    """Scores points with the sphere, and gives its gradient where it is asked for; every ninth candidate fails.

    Args:
        seconds: how long a candidate takes, so that a kill from outside finds one at work.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds

    def __call__(self, batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        for index in missing:
            if self._seconds:
                time.sleep(self._seconds)
            if (7 * batch.index + index) % 9 == 8:
                yield Trial(batch.index, index, "failed", None, items={"t": ["a", "b"]}, error="RuntimeError: no luck")
            else:
                x = batch.points[index]
                value, gradient = sphere(x), (-2 * (x - 0.7)).tolist() if batch.gradient else None
                yield Trial(
                    batch.index,
                    index,
                    "ok",
                    (value,),
                    scores={"t": {"m": value}},
                    items={"t": ["a", "b"]},
                    results={"t": {"m": [value - 0.1, value + 0.1]}},
                    gradient=gradient,
                )


def play(
    path: Path,
    name: str,
    trials: int = TRIALS,
    seconds: float = 0.0,
    machine: Mapping[str, Any] | None = None,
) -> StopReason:
    """Run a small search with the log at `path`, or go on with it; on this machine, or as if it were another."""
    searcher = SEARCHERS[name](box(4), 3)
    torch.set_num_threads(1)  # as in the session that the logs are compared with: threads are part of the fingerprint
    log = TrialLog(path, {"searcher": name}, fingerprint() if machine is None else machine)
    with Interrupt() as interrupt, log:
        return search(searcher, interrupt.wrap(Evaluator(seconds)), log, Budget(trials, interrupt=interrupt))


def attempt(path: Path, name: str, seconds: float, death: tuple[int, float] | None, limit: int | None) -> None:
    """Play in a child process; what it says goes to a file beside the log, and a user's error is exit code 2.

    Args:
        path: the log.
        name: the searcher.
        seconds: how long a candidate takes.
        death: (n, share): the process is killed within its n-th write, when that share of the line is on the disk.
        limit: no file may become larger than so many bytes.
    """
    os.dup2(os.open(path.with_suffix(".said"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    if death is not None:
        _die_while_writing(*death)
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        play(path, name, seconds=seconds)
    except EvomergeError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def _die_while_writing(number: int, share: float) -> None:
    """Replace `os.write` by one that is killed within its `number`-th call."""
    write, calls = os.write, iter(range(1, 10**9))

    def dying(file: int, data: Any) -> int:
        if next(calls) < number:
            return write(file, data)
        write(file, data[: round(share * len(data))])
        os.fsync(file)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    os.write = dying


if __name__ == "__main__":
    for searcher in sys.argv[2:]:
        play(Path(sys.argv[1]) / f"{searcher}.jsonl", searcher)
