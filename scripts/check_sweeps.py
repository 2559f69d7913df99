#!/usr/bin/env python
"""Kill a sweep in the middle, run it again, and hold what comes of it against a sweep that nobody killed.

    python scripts/check_sweeps.py                                  # six members over two slots
    python scripts/check_sweeps.py --launcher submitit_local        # the same as jobs of submitit, without Slurm
    python scripts/check_sweeps.py --signal SIGTERM                 # asked to stop, in place of killed

In: nothing; it makes the toy suite in a temporary directory. Out: a JSON line with the figures; exit status 1 if a run
is missing, if a candidate stands twice in a log, if what was there before the kill has changed, or if a log differs by
a byte from that of the sweep that nobody killed. One member is meant to fail, and must be named.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.demo.pico import build_pico
from evomerge.search.journal import read_log

PATIENCE = 1200.0
"""Seconds after which a sweep counts as hanging."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launcher", default="slots", help="hydra/launcher")
    parser.add_argument("--members", type=int, default=6, help="searches of the sweep")
    parser.add_argument(
        "--slots", type=int, default=2, help="searches at a time, where the launcher knows such a number"
    )
    parser.add_argument("--budget", type=int, default=60, help="candidates of each search")
    parser.add_argument("--signal", default="SIGKILL", choices=("SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1"))
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        found = check(Path(place), given)
    print(json.dumps(found))
    return 1 if found["wrong"] else 0


def check(place: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Run a sweep that is killed, the same again, and the same in peace; return the figures and what is wrong."""
    build_pico(place / "suites" / "pico")
    killed, again, whole = (_command(given, name) for name in ("runs", "runs", "whole"))
    first = Sweep(killed, place)
    _wait(lambda: _enough(place / "runs", given), first.process)
    before = {log: log.read_bytes() for log in (place / "runs").glob("*/trials.jsonl")}
    complete = len([*(place / "runs").glob("*/summary.json")])
    first.end(getattr(signal, given.signal))
    second, peace = Sweep(again, place), None
    second.wait()
    peace = Sweep(whole, place)
    peace.wait()
    logs = {log.parent.name: log for log in (place / "runs").glob("*/trials.jsonl")}
    wrong = [
        *(f"{name}: a candidate stands twice" for name, log in logs.items() if _twice(log)),
        *(f"{log.parent.name}: what was there has changed" for log, old in before.items() if not _goes_on(log, old)),
        *(f"{log.parent.name}: another log" for log in (place / "whole").glob("*/trials.jsonl") if _differs(log, logs)),
    ]
    for sweep, name in ((second, "again"), (peace, "in peace")):
        table = f"{given.members} of {given.members + 1} runs are complete"
        wrong += [] if table in sweep.out() else [f"{name}: no table of {given.members} complete runs"]
        wrong += [] if sweep.status == 1 and "start=nonsense" in sweep.err() else [f"{name}: who failed is not named"]
    return {
        "launcher": given.launcher,
        "members": given.members,
        "ended by": given.signal,
        "status": first.status,
        "complete at the end": complete,
        "begun at the end": len(before),
        "candidates at the end": sum(map(_trials, before.values())),
        "candidates in all": sum(_trials(log.read_bytes()) for log in logs.values()),
        "seconds": [round(sweep.seconds, 1) for sweep in (first, second, peace)],
        "wrong": wrong,
    }


class Sweep:
    """A sweep at work, in a group of its own."""

    def __init__(self, command: Sequence[str], place: Path) -> None:
        self._files = [Path(tempfile.mkstemp(dir=place)[1]) for _ in range(2)]
        self._begun, self.seconds, self.status = time.monotonic(), 0.0, 0
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self.process = subprocess.Popen(command, cwd=place, stdout=out, stderr=err, start_new_session=True)

    def wait(self) -> None:
        """Wait for its end."""
        self.status = self.process.wait(PATIENCE)
        self.seconds = time.monotonic() - self._begun

    def end(self, number: int) -> None:
        """Send its whole group a signal, and wait until no process of the sweep is left."""
        os.killpg(self.process.pid, number)
        self.wait()
        time.sleep(1.0)  # members notice within .2 s that their sweep has been killed

    def out(self) -> str:
        """Return what it wrote on standard output."""
        return self._files[0].read_text(encoding="utf-8")

    def err(self) -> str:
        """Return what it wrote on standard error."""
        return self._files[1].read_text(encoding="utf-8")


def _command(given: argparse.Namespace, runs: str) -> list[str]:
    own = [f"hydra.launcher.slots={given.slots}", "hydra.launcher.threads=1"] if given.launcher == "slots" else []
    starts = ",".join(["nonsense", *(f"{i / 10}" for i in range(given.members))])
    small = ["experiment=smoke", "searcher=random", f"budget={given.budget}", "fitness.select_items=12"]
    where = [f"hydra.sweep.dir={runs}", "model.cache=cache", f"hydra/launcher={given.launcher}"]
    return [sys.executable, "-m", "evomerge", "search", "-m", *small, f"start={starts}", *where, *own]


def _enough(runs: Path, given: argparse.Namespace) -> bool:
    """Whether a run is complete and another one under way, or all are far enough where all run at once."""
    begun = {log.parent for log in runs.glob("*/trials.jsonl") if _trials(log.read_bytes()) > given.budget // 4}
    complete = {summary.parent for summary in runs.glob("*/summary.json")}
    return (len(complete) > 1 and bool(begun - complete)) or len(begun - complete) > given.members // 2


def _wait(condition: Any, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit("the sweep ended before it could be killed: raise --budget")
        time.sleep(0.02)


def _trials(log: bytes) -> int:
    return log.count(b'{"kind":"trial",')


def _twice(log: Path) -> bool:
    trials = [(line["batch"], line["index"]) for line in read_log(log) if line["kind"] == "trial"]
    return len(set(trials)) < len(trials)


def _goes_on(log: Path, old: bytes) -> bool:
    whole = old[: old.rfind(b"\n") + 1]  # the last line may have been cut off
    return log.read_bytes().startswith(whole)


def _differs(log: Path, logs: dict[str, Path]) -> bool:
    return log.parent.name not in logs or logs[log.parent.name].read_bytes() != log.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
