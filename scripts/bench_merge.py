"""What a merge of 16-bit experts needs: `python scripts/bench_merge.py [--suite suites/lm] [--pairs 15] [--json]`.

Base and experts of a suite are copied in bfloat16. Then the same linear merge is made twice, of the same bits: with the
experts kept as they are (what a search does), and with task vectors in float32 from a cache (what other methods need).
Of each, in a process of its own:

    held       bytes of the task vectors, memory-mapped: the system may drop and read them again as it likes
    disk       bytes of what was written beside the models
    anonymous  growth of the process's anonymous memory (RssAnon) from before the model was loaded to after its merges:
               what nobody can take away; the model itself is in it, since a merge overwrites it

and the time of a merge, in pairs, in one process: `seconds_ratio` is kept / cached.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from evomerge.merging.merger import Merger
from evomerge.merging.methods import Linear
from evomerge.models.live import LiveModel, load_live
from evomerge.space.groups import make_groups
from evomerge.task_vectors.store import TaskVectors, task_vectors

CLASS = "AutoModelForCausalLM"
FORMS = {"kept": True, "cached": False}


def copy_in_bfloat16(source: Path, target: Path) -> None:
    """Copy a model directory with a single file of weights."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(source / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, target / "model.safetensors")
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}), encoding="utf-8")


def make_merger(models: Path, live: LiveModel, keep: bool) -> tuple[Merger, TaskVectors, int]:
    """Return what merges the experts beside a base, its task vectors, and the number of groups."""

    def opened(path: Path) -> Any:
        return live.open(path, cache=models / "cache")

    experts = {path.name: opened(path) for path in sorted((models / "experts").iterdir())}
    cache = models / ("kept" if keep else "cached")
    vectors = task_vectors(opened(models / "base"), experts, live.parameters, cache, keep=keep)
    groups = make_groups("layer", vectors.parameters)
    return Merger(live.model, vectors, groups, Linear()), vectors, len(groups)


def coefficients(groups: int, experts: int) -> dict[str, np.ndarray]:
    """Draw coefficients."""
    return {"weight": np.random.default_rng(0).uniform(0.1, 1, (groups, experts))}


def measure_memory(models: Path, form: str) -> dict[str, int]:
    """Merge in this process and return its bytes."""
    before = _anonymous()
    live = load_live(models / "base", CLASS, "cpu")
    merger, vectors, groups = make_merger(models, live, FORMS[form])
    for _ in range(2):
        merger.apply(coefficients(groups, len(vectors.experts)))
    return {
        "model": sum(parameter.nbytes for parameter in live.model.parameters()),
        "held": vectors.nbytes,
        "disk": sum(file.stat().st_size for file in (models / form).iterdir()),
        "anonymous": _anonymous() - before,
    }


def measure_time(models: Path, pairs: int) -> dict[str, list[float]]:
    """Return the seconds of merges by form, in turn."""
    live = load_live(models / "base", CLASS, "cpu")
    mergers = {form: make_merger(models, live, keep) for form, keep in FORMS.items()}
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(pairs + 1):
        for form, (merger, vectors, groups) in mergers.items():
            started = time.perf_counter()
            merger.apply(coefficients(groups, len(vectors.experts)))
            seconds[form].append(time.perf_counter() - started)
    return {form: each[1:] for form, each in seconds.items()}  # the first reads the files


def measure(suite: Path, pairs: int) -> dict[str, Any]:
    """Return one row: `{"case", "experts", "model", "kept", "cached", "seconds", "seconds_ratio"}`."""
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory)
        for path in [suite / "base", *sorted((suite / "experts").iterdir())]:
            copy_in_bfloat16(path, models / path.relative_to(suite))
        row: dict[str, Any] = {"case": f"{suite.name} bfloat16", "experts": len(list((models / "experts").iterdir()))}
        for form in FORMS:
            command = [sys.executable, __file__, "--models", str(models), "--form", form]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            row["model"] = found.pop("model")
            row[form] = found
        seconds = measure_time(models, pairs)
    row["seconds"] = {form: round(median(each), 4) for form, each in seconds.items()}
    ratios = [kept / cached for kept, cached in zip(seconds["kept"], seconds["cached"], strict=True)]
    return row | {"seconds_ratio": round(median(ratios), 3), "pairs": pairs}


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", type=Path, default=Path("suites/lm"), help="directory of base/ and experts/")
    parser.add_argument("--pairs", type=int, default=15, help="merges of each form that are timed")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--form", choices=sorted(FORMS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.form:
        print(json.dumps(measure_memory(arguments.models, arguments.form)))
        return
    if not (arguments.suite / "base").is_dir() or not (arguments.suite / "experts").is_dir():
        parser.error(f"{arguments.suite} holds no base/ and experts/: python scripts/build_suite.py lm makes a suite")
    row = measure(arguments.suite, arguments.pairs)
    if arguments.json:
        print(json.dumps(row))
        return
    print(f"{row['case']}: model {row['model'] / 1e6:.0f} MB, {row['experts']} experts")
    for form in FORMS:
        held, disk, anonymous = (row[form][name] / 1e6 for name in ("held", "disk", "anonymous"))
        text = f"{held:.0f} MB held, {disk:.0f} MB written to disk, {anonymous:.0f} MB anonymous"
        print(f"  {form:>6}: {text}, {row['seconds'][form]:.3f} s a merge")


if __name__ == "__main__":
    main()
