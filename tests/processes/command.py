"""The command in a process of its own that does not have to load torch and transformers first: it is forked from a
server that has. What depends on the environment while they are imported needs a process that starts from nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from evomerge.cli.main import VERBS, main
from tests.processes.waiting import forked

for verb in VERBS:  # what they need is loaded before the fork
    import_module(f"evomerge.cli.{verb}")
import_module("evomerge.runs.run")


def evomerge(
    *arguments: str, cwd: Path, timeout: float = 300, encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    """Run `evomerge ARGUMENTS` in a directory, with one thread and streams of an encoding; return its status and
    all that it printed.
    """
    with tempfile.TemporaryDirectory() as directory:
        printed = [Path(directory) / name for name in ("stdout", "stderr")]
        with forked(_run, arguments, str(cwd), [str(path) for path in printed], encoding) as process:
            process.join(timeout)
            if process.exitcode is None:
                raise subprocess.TimeoutExpired(list(arguments), timeout)
            status = process.exitcode
        out, err = (path.read_text(encoding=encoding) for path in printed)
    return subprocess.CompletedProcess(list(arguments), status, out, err)


def _run(arguments: Sequence[str], cwd: str, printed: Sequence[str], encoding: str) -> None:
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
