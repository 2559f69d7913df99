"""The command in a process of its own that does not have to load torch and transformers first: it is forked from a
server that has. What depends on the environment while they are imported needs a process that starts from nothing.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from evomerge.cli.main import main
from tests.processes.waiting import forked


@dataclass(frozen=True)
class Running:
    """A command at work.

    Attributes:
        arguments: what stands behind `evomerge`.
        process: its process.
        printed: the files that take its standard output and its standard error.
        encoding: of both.
    """

    arguments: Sequence[str]
    process: ForkServerProcess
    printed: tuple[Path, Path]
    encoding: str

    def end(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait for the end; return the status and all that was printed."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(list(self.arguments), timeout)
        out, err = (path.read_text(encoding=self.encoding) for path in self.printed)
        return subprocess.CompletedProcess(list(self.arguments), self.process.exitcode, out, err)


@contextmanager
def begun(*arguments: str, cwd: Path, encoding: str = "utf-8", syncs: bool = True) -> Iterator[Running]:
    """Start `evomerge ARGUMENTS` in a directory, with one thread and streams of an encoding; it does not outlive the
    context. Without `syncs` it does not wait for the disk: nobody cuts the power.
    """
    with tempfile.TemporaryDirectory() as directory:
        printed = Path(directory) / "stdout", Path(directory) / "stderr"
        with forked(_run, arguments, str(cwd), [str(path) for path in printed], encoding, syncs) as process:
            yield Running(arguments, process, printed, encoding)


def evomerge(
    *arguments: str, cwd: Path, timeout: float = 300, encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    """Run `evomerge ARGUMENTS` to its end."""
    with begun(*arguments, cwd=cwd, encoding=encoding, syncs=False) as running:
        return running.end(timeout)


def _run(arguments: Sequence[str], cwd: str, printed: Sequence[str], encoding: str, syncs: bool) -> None:
    gc.freeze()  # what was inherited is not walked through, and so not copied
    if not syncs:
        os.fsync = lambda descriptor: None
    for number, path in zip((1, 2), printed, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding=encoding, closefd=False) for number in (1, 2))
    os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    os.chdir(cwd)
    sys.path.insert(0, "")  # as `python -c` has it
    sys.argv = ["evomerge", *arguments]
    torch.set_num_threads(1)
    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def write_loaded(path: Path) -> None:
    """Write the names of all modules that are there once everything of the package is imported."""
    from tests.processes.preloaded import LOADED  # by the server

    path.write_text("\n".join(LOADED), encoding="utf-8")
