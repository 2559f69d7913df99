"""What a command costs before and beside its work: `python scripts/bench_startup.py [--times 5]`.

Each row is the processor time (user and system) of a whole command, in a process of its own: the median of several
starts after one that is not counted. The search is that of `experiment=smoke`, each time into a new directory, with its
models there; the report is that of such a run. Other work on the machine makes all rows longer, by half and more.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = ("-m", "evomerge")
SMOKE = (*COMMAND, "search", "experiment=smoke")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="starts of each command (default: 5)")
    times: int = parser.parse_args().times
    with tempfile.TemporaryDirectory() as place:
        seconds([*SMOKE, "hydra.run.dir=run"], place)
        rows = {
            "import evomerge": ["-c", "import evomerge"],
            "evomerge --help": [*COMMAND, "--help"],
            "evomerge search --help": [*COMMAND, "search", "--help"],
            "evomerge report RUN": [*COMMAND, "report", "run"],
            "evomerge search experiment=smoke": [*SMOKE, "hydra.run.dir=again/{}"],
        }
        for what, arguments in rows.items():
            _, *found = [seconds([part.format(i) for part in arguments], place) for i in range(times + 1)]
            print(f"{what:<34} {statistics.median(found):6.2f} s   ({min(found):.2f} to {max(found):.2f})", flush=True)


def seconds(arguments: list[str], place: str) -> float:
    """Return the processor time of one start of Python.

    Args:
        arguments: what follows `python`.
        place: the directory in which it runs.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *arguments], cwd=place, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
