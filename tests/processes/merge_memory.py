"""A merge that watches its own anonymous memory: `python -m tests.processes.merge_memory RECIPE OUT` prints as JSON
what it held before and at most, in bytes.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import torch

from evomerge.cli.progress import Reporter
from evomerge.models.live import load_skeleton
from evomerge.recipes.model import write_model
from evomerge.recipes.recipe import Recipe
from tests.kit.vectors import anonymous_memory

if __name__ == "__main__":
    torch.set_num_threads(1)
    path, out = map(Path, sys.argv[1:])
    recipe = Recipe.from_yaml(path.read_text())
    load_skeleton(Path(recipe.base.path), recipe.auto_class)  # imports what transformers has for it
    before = anonymous_memory()
    held, done = [before], threading.Event()

    def watch() -> None:
        while not done.is_set():
            held.append(anonymous_memory())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    write_model(recipe, path.parent, out, reporter=Reporter())
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    print(json.dumps({"before": before, "peak": max(held), "samples": len(held), "seconds": seconds}))
