"""Workers as processes of this machine: each is a Python of its own, started by name, with a pipe to it.

In: the message from which a worker builds the problem, and the environment of each. Out: a `Crew`. A worker is started
as a program (`python -m evomerge.runs.worker`), so nothing of this process is copied into it or imported again. What it
prints goes to a file. It ends with the process that started it, whatever way that one ends: its pipe is closed then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

from evomerge.search.evaluators.wire import Message, packed, unpacked

MODULE = "evomerge.runs.worker"
"""The program of a worker; see there."""
PATIENCE = 2.0
"""Seconds that workers have to end by themselves."""
TAIL = 2000
"""How many bytes of what a worker printed are looked at for its last words."""


class Processes:
    """A crew of processes.

    Args:
        build: from which each worker builds the problem.
        environments: for each worker, by its number, what is otherwise in its environment.
        directory: where what they print is written to, a file each.
        module: the program of a worker, which is given the number of an open pipe.
        place: the directory in which they work; None for that of this process.

    Attributes:
        size: how many there are.
    """

    def __init__(
        self,
        build: Message,
        environments: Sequence[Mapping[str, str]] | Mapping[int, Mapping[str, str]],
        directory: Path,
        module: str = MODULE,
        place: Path | None = None,
    ) -> None:
        self.size = len(environments)
        self._build, self._environments, self._directory = build, environments, directory
        self._module, self._place = module, place
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._pipes: dict[int, Connection] = {}
        self._ends: dict[int, int] = {}  # descriptors that say when a process has ended, where the system has such
        directory.mkdir(parents=True, exist_ok=True)

    def start(self, worker: int) -> None:
        """Start a worker, or start it anew."""
        ours, theirs = Pipe()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            **self._environments[worker],
        }
        self._processes.pop(worker, None)
        with theirs, contextlib.suppress(OSError), self._output(worker).open("wb") as output:  # then it is gone at once
            self._processes[worker] = subprocess.Popen(
                [sys.executable, "-m", self._module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self._place,
            )
            if hasattr(os, "pidfd_open"):
                self._ends[worker] = os.pidfd_open(self._processes[worker].pid)
        self._pipes[worker] = ours
        self.send(worker, self._build)

    def send(self, worker: int, message: Message) -> None:
        """Send a message."""
        with contextlib.suppress(OSError, KeyError):  # it is gone: `receive` says so
            self._pipes[worker].send_bytes(packed(message))

    def receive(self, seconds: float | None) -> list[tuple[int, Message | None]]:
        """Return what has come, and wait so long for the first of it."""
        ready = set(wait([*self._pipes.values(), *self._ends.values()], seconds))
        found = list[tuple[int, Message | None]]()
        for worker, pipe in list(self._pipes.items()):
            if pipe in ready or (self._ends.get(worker) in ready and pipe.poll()):
                found.append((worker, self._taken(worker)))
            elif self._ends.get(worker) in ready:  # a child of the worker's lives on and holds the pipe open
                self._forget(worker)
                found.append((worker, None))
        return found

    def kill(self, worker: int) -> None:
        """End a worker at once."""
        if worker in self._processes:
            self._processes[worker].kill()

    def last_words(self, worker: int) -> str:
        """Return the signal or the status with which a worker has ended, and the last line that it printed."""
        if worker not in self._processes:
            return "this machine cannot start another process"
        code = self._ended(self._processes[worker])
        lines = self._output(worker).read_bytes()[-TAIL:].decode(errors="replace").strip().splitlines()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{how}{f': {lines[-1].strip()[:200]}' if lines else ''}"

    def close(self) -> None:
        """End all workers: their pipes are closed, and those that do not end by themselves are killed."""
        for worker in list(self._pipes):
            self._forget(worker)
        for process in self._processes.values():
            self._ended(process)

    def _ended(self, process: subprocess.Popen[bytes]) -> int:
        """Return the status of a process whose pipe is closed; it is killed if it lives on."""
        try:
            return process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _taken(self, worker: int) -> Message | None:
        try:
            return unpacked(self._pipes[worker].recv_bytes())
        except (EOFError, OSError):
            self._forget(worker)
            return None

    def _forget(self, worker: int) -> None:
        self._pipes.pop(worker).close()
        if (end := self._ends.pop(worker, None)) is not None:
            os.close(end)

    def _output(self, worker: int) -> Path:
        return self._directory / f"worker-{worker}.log"
