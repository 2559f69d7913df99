"""What a candidate of 16 bits costs in each dtype to compute in: `python scripts/bench_compute.py [--suite suites/lm]
[--rounds 9] [--isa all] [--isa AVX2] [--json]`.

Base and experts of a suite are copied in bfloat16. Live models that compute in bfloat16 and in float32 then build the
same candidates, one after the other, round by round, and are run on 8 texts of 96 tokens, as `model.compute` lets a
search do. A row says the median seconds of merge and forward pass in each, what `auto` chooses, how many times as long
a candidate takes in bfloat16 as in what `auto` chooses (median over rounds), and the same of the product of matrices by
which it chooses. Before anything is timed, both models are held against each other: their weights must be equal.

`--isa` limits the instructions that oneDNN uses, as on a processor that has no others: AVX2, or AVX512_CORE, which has
no arithmetic in bfloat16. Each that is given has a row of its own, measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from evomerge.common.names import dtype_name
from evomerge.merging.merger import Merger
from evomerge.merging.methods import Linear
from evomerge.models.computing import choose, computed_in, product_seconds
from evomerge.models.live import LiveModel, load_live
from evomerge.space.groups import make_groups
from evomerge.task_vectors.store import task_vectors
from evomerge.task_vectors.stores import AUTO

CLASS = "AutoModelForCausalLM"
DTYPES = ("bfloat16", "float32")
TEXTS, TOKENS = 8, 96


def copy_in_bfloat16(source: Path, target: Path) -> None:
    """Copy a model directory with a single file of weights."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(source / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, target / "model.safetensors")
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}), encoding="utf-8")


def make_merger(models: Path, live: LiveModel) -> tuple[Merger, tuple[int, int]]:
    """Return what merges the experts beside a base, and the shape of its coefficients."""

    def opened(path: Path) -> Any:
        return live.open(path, cache=models / "cache")

    experts = {path.name: opened(path) for path in sorted((models / "experts").iterdir())}
    vectors = task_vectors(opened(models / "base"), experts, live.parameters, models / "cache", store=AUTO)
    groups = make_groups("layer", vectors.parameters)
    return Merger(live.model, vectors, groups, Linear(), rounded=live.narrow), (len(groups), len(experts))


@torch.inference_mode()
def measure(models: Path, case: str, rounds: int) -> dict[str, Any]:
    """Return a row: `{"case", "isa", "threads", "chosen", "ratio", "product_ratio", "seconds", ...}`."""
    live = {name: computed_in(load_live(models / "base", CLASS, "cpu"), name) for name in DTYPES}
    mergers = {name: make_merger(models, one) for name, one in live.items()}
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, live["float32"].model.config.vocab_size, (TEXTS, TOKENS)))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in DTYPES}
    for _ in range(rounds + 1):
        weight = rng.uniform(0.1, 1, mergers["float32"][1])
        for name, (merger, _) in mergers.items():
            started = time.perf_counter()
            merger.apply({"weight": weight})
            merged = time.perf_counter()
            live[name].model(input_ids=tokens)
            seconds[name].append((merged - started, time.perf_counter() - merged))
        if len(seconds["float32"]) == 1:
            _check_equal(live)
    chosen, _ = choose(load_live(models / "base", CLASS, "cpu"))
    products = product_seconds((torch.bfloat16, torch.float32))
    counted = {name: each[1:] for name, each in seconds.items()}  # the first reads the files
    totals = {name: [merge + forward for merge, forward in each] for name, each in counted.items()}
    ratios = [b / f for b, f in zip(totals["bfloat16"], totals[dtype_name(chosen)], strict=True)]
    return {
        "case": case,
        "isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "all"),
        "threads": torch.get_num_threads(),
        "chosen": dtype_name(chosen),
        "ratio": round(median(ratios), 3),
        "product_ratio": round(products[torch.bfloat16] / products[torch.float32], 3),
        "seconds": {name: round(median(each), 4) for name, each in totals.items()},
        "merge": {name: round(median(merge for merge, _ in each), 4) for name, each in counted.items()},
        "forward": {name: round(median(forward for _, forward in each), 4) for name, each in counted.items()},
        "rounds": rounds,
    }


def _check_equal(live: dict[str, LiveModel]) -> None:
    """Make sure that both models hold the same weights."""
    narrow, wide = (dict(live[name].model.named_parameters()) for name in DTYPES)
    if not all(torch.equal(parameter.float(), wide[name]) for name, parameter in narrow.items()):
        raise SystemExit("The weights in float32 are not those in bfloat16: the times would be of different models.")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", type=Path, default=Path("suites/lm"), help="directory of base/ and experts/")
    parser.add_argument("--rounds", type=int, default=9, help="candidates of each dtype that are timed")
    parser.add_argument("--isa", action="append", help="all, AVX2 or AVX512_CORE: as on such a processor")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.models:
        print(json.dumps(measure(arguments.models, arguments.suite.name, arguments.rounds)))
        return
    if not (arguments.suite / "base").is_dir() or not (arguments.suite / "experts").is_dir():
        parser.error(f"{arguments.suite} holds no base/ and experts/: python scripts/build_suite.py lm makes a suite")
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory)
        for path in [arguments.suite / "base", *sorted((arguments.suite / "experts").iterdir())]:
            copy_in_bfloat16(path, models / path.relative_to(arguments.suite))
        command = [sys.executable, __file__, "--models", str(models), "--suite", str(arguments.suite)]
        for isa in arguments.isa or ["all"]:
            limited = {} if isa == "all" else {"ONEDNN_MAX_CPU_ISA": isa}
            process = subprocess.run(
                [*command, "--rounds", str(arguments.rounds)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | limited,
            )
            row = json.loads(process.stdout)
            print(json.dumps(row) if arguments.json else _line(row), flush=True)


def _line(row: dict[str, Any]) -> str:
    texts = [f"{name} {row['seconds'][name]:.2f} s ({row['merge'][name]:.2f} the merge)" for name in row["seconds"]]
    return (
        f"{row['case']}, {row['threads']} threads, instructions {row['isa']}: {', '.join(texts)}; auto chooses "
        f"{row['chosen']}, bfloat16 takes {row['ratio']:.2f} times as long (a product {row['product_ratio']:.2f} times "
        f"as long as in float32)"
    )


if __name__ == "__main__":
    main()
