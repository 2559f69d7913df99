"""The first merge of a method in a process: `python first_use.py METHOD` prints its seconds, of a tiny site.

With the environment variable `XDG_CACHE_HOME` naming an empty directory, that is the first use on a machine: evomerge
writes and compiles a kernel. The second process finds it there. The clock starts when evomerge has been imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from tempfile import TemporaryDirectory

METHODS = ("linear", "ties", "dare_ties", "della")


def first_uses() -> Iterator[tuple[str, str, float]]:
    """Yield a method, `first` or `second`, and the seconds of its first merge in such a process."""
    for method in METHODS:
        with TemporaryDirectory() as cache:
            for which in ("first", "second"):
                command, surroundings = [sys.executable, __file__, method], {**os.environ, "XDG_CACHE_HOME": cache}
                done = subprocess.run(command, env=surroundings, check=True, capture_output=True, text=True)
                yield method, which, float(done.stdout)


def _merge(method: str) -> float:
    import numpy as np
    import torch

    from evomerge.merging import methods
    from evomerge.merging.builder import Builder
    from evomerge.merging.sites import Site
    from evomerge.task_vectors.delta import Delta
    from evomerge.task_vectors.expert import ExpertDelta
    from evomerge.task_vectors.spans import Span

    chosen = next(each for each in vars(methods).values() if getattr(each, "name", None) == method)()
    base = torch.ones(64, dtype=torch.bfloat16)
    deltas: list[Delta] = [ExpertDelta(base, base * 2) for _ in range(3)]
    site = Site(0, Span("p", 0, 64), 64, base.clone(), base, [0, 1, 2], ["a", "b", "c"], deltas)
    coefficients = {variable.name: np.full((1, 3), 0.5) for variable in chosen.variables}
    started = time.perf_counter()
    Builder([site], chosen).build(coefficients)
    return time.perf_counter() - started


if __name__ == "__main__":
    print(_merge(sys.argv[1]))
