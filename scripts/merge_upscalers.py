"""Merges upscalers that others trained: `python scripts/merge_upscalers.py --weights DIR --out DIR [--cache DIR]`.

In: a directory of waifu2x's UpCUNet in the form of ncnn: `scale2.0x_model.bin`, the base, and the models that were
trained on from it for pictures with light and with heavy JPEG noise (`noise1_scale2.0x_model.bin`, `noise3_...`). Out:
base, experts and merge as directories of transformers; the table of `Family`; what each scores on pictures that the
search did not see, as transformers loads it; and how far the merge is from either expert on the same pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MODELS = {"base": "scale2.0x_model.bin", "light": "noise1_scale2.0x_model.bin", "heavy": "noise3_scale2.0x_model.bin"}
QUALITIES = {"light": 80, "heavy": 40}
"""The JPEG quality of each expert's task; `between` is of none, and is scored at the end alone."""
BETWEEN = {"between": 60}
START = "heavy"
"""The expert that is best over both tasks: weights in between are worse than either, so the search begins at one."""


def main(argv: list[str] | None = None) -> None:
    """Convert, inspect, search, merge, load, and print what is found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, metavar="DIR", help="where the .bin files are")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the models and the run")
    parser.add_argument("--cache", type=Path, default=Path(".cache/packages"), metavar="DIR", help="of downloads")
    parser.add_argument("--pictures", type=int, default=80, metavar="N")
    parser.add_argument("--budget", type=int, default=26, metavar="N", help="candidates")
    parser.add_argument("--items", type=int, default=24, metavar="N", help="search items that a candidate sees")
    parser.add_argument("--space", default="layer", help="which coefficients there are")
    arguments = parser.parse_args(argv)

    from transformers.utils import logging
    from upscalers import pictures, weights

    import evomerge as em  # here, since torch comes with it: --help should not wait

    logging.disable_progress_bar()

    for name, file in MODELS.items():
        weights.read(arguments.weights / file).save_pretrained(arguments.out / name)
    family = em.Family(arguments.out / "base", {name: arguments.out / name for name in QUALITIES})
    print(family, flush=True)
    emoji = pictures.emoji(arguments.cache, arguments.pictures)
    score = pictures.fitness_of(emoji)
    candidate = em.Candidate(family, space=arguments.space, sum=1.0)
    result = em.search(
        candidate,
        score,
        pictures.tasks_of(emoji, QUALITIES),
        searcher=em.cmaes(sigma=0.05),  # small steps, since it begins at an expert
        budget=arguments.budget,
        items=arguments.items,
        start=start_of(arguments.out),
        run=arguments.out / "run",
    )
    print(result, result.coefficients["weight"], sep="\n\n", flush=True)
    result.save(arguments.out / "merged")

    tasks = {name: items["report"] for name, items in pictures.tasks_of(emoji, QUALITIES | BETWEEN).items()}
    compare(arguments.out, tasks, score)


def start_of(out: Path) -> Path:
    """Write the merge at which the search begins, the expert for heavy noise, as a YAML of mergekit's."""
    weighted = (f"  - model: {out / name}\n    parameters: {{weight: {float(name == START)}}}\n" for name in QUALITIES)
    models, file = "".join(weighted), out / "start.yml"
    file.write_text(f"merge_method: task_arithmetic\nbase_model: {out / 'base'}\nmodels:\n{models}dtype: float32\n")
    return file


def compare(out: Path, tasks: Mapping[str, Sequence[Any]], score: Callable[[Any, Sequence[Any]], list[float]]) -> None:
    """Print what each model scores on each task as transformers loads it, and how far the merge is from each expert."""
    import numpy as np
    from transformers import AutoModel

    print("", "| model | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|", sep="\n")
    found = {}
    for name in (*MODELS, "merged"):
        model = AutoModel.from_pretrained(out / name).eval()
        found[name] = {task: score(model, items) for task, items in tasks.items()}
        print(f"| {name} | " + " | ".join(f"{np.mean(row):.2f}" for row in found[name].values()) + " |", flush=True)
    for name in QUALITIES:
        apart = [np.subtract(found["merged"][task], found[name][task]) for task in QUALITIES]
        error = np.std(apart, ddof=1) / np.size(apart) ** 0.5
        print(f"merged - {name}, on both tasks: {np.mean(apart):+.3f} ± {error:.3f} (paired)", flush=True)


if __name__ == "__main__":
    main()
