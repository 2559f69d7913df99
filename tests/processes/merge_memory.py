"""A merge that watches its own anonymous memory, in bytes."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import torch

from evomerge.cli.progress import Reporter
from evomerge.models.live import load_skeleton
from evomerge.recipes.model import write_model
from evomerge.recipes.recipe import Recipe
from tests.kit.vectors import anonymous_memory


def merge(path: Path, out: Path, held: Path) -> None:
    """Write the merged model of a recipe, and to `held` what was held before, at most, and how often it was looked."""
    torch.set_num_threads(1)
    recipe = Recipe.from_yaml(path.read_text())
    load_skeleton(Path(recipe.base.path), recipe.auto_class)  # imports what transformers has for it
    before = anonymous_memory()
    seen, done = [before], threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(anonymous_memory())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    write_model(recipe, path.parent, out, reporter=Reporter())
    done.set()
    watcher.join()
    held.write_text(json.dumps({"before": before, "peak": max(seen), "samples": len(seen)}))
