"""The first merge of a method in a process: `python first_use.py METHOD` prints its seconds, of a tiny model.

With the environment variable `XDG_CACHE_HOME` naming an empty directory, that is the first use on a machine: evomerge
compiles a kernel, and sorts magnitudes where the method needs that. The second process finds both there. The clock
starts when evomerge has been imported and the models are open.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

SHAPE = (2, 144, 16384)
"""Layers, width and vocabulary: large enough for kernels, and for orders to be kept on disk."""
METHODS = ("linear", "ties", "dare_ties", "della")


def first_uses() -> Iterator[tuple[str, str, float]]:
    """Yield a method, `first` or `second`, and the seconds of its first merge in such a process."""
    for method in METHODS:
        with TemporaryDirectory() as cache:
            for which in ("first", "second"):
                command, surroundings = [sys.executable, __file__, method], {**os.environ, "XDG_CACHE_HOME": cache}
                done = subprocess.run(command, env=surroundings, check=True, capture_output=True, text=True)
                yield method, which, float(done.stdout)


def _merge(method: str, cache: Path) -> float:
    import numpy as np

    from evomerge.merging import methods
    from evomerge.merging.merger import Merger
    from evomerge.space.groups import make_groups
    from evomerge.task_vectors.store import task_vectors
    from merge_bench.models import BASE, Shape, write_models

    chosen = next(each for each in vars(methods).values() if getattr(each, "name", None) == method)()
    with TemporaryDirectory() as directory:
        live = write_models(Path(directory), Shape(*SHAPE), 3)
        base, *experts = (live.open(Path(directory) / name, cache=cache) for name in (BASE, "0", "1", "2"))
        named = {f"e{k}": expert for k, expert in enumerate(experts)}
        vectors = task_vectors(base, named, live.parameters, cache)
        groups = make_groups("layer", vectors.parameters)
        coefficients = {variable.name: np.full((len(groups), 3), 0.5) for variable in chosen.variables}
        started = time.perf_counter()
        Merger(live.model, vectors, groups, chosen).apply(coefficients)
        return time.perf_counter() - started


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    print(_merge(sys.argv[1], Path(os.environ["XDG_CACHE_HOME"])))
