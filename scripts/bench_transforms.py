"""What transforms cost: `python scripts/bench_transforms.py [--json] [--out FILE] [--cases 'ts*' ...]`.

In: nothing but random models of a Llama shape, 134 M parameters in bfloat16, and adapters of them, which it makes in a
temporary directory. Out: a line for each transform with its usual settings, measured in a process of its own:

    case, experts    which transform, of how many experts; `... of adapters`: of LoRA adapters
    seconds          of processor time, once before a search, files included
    wall_seconds     of the clock, which other work on the machine makes longer
    extra_memory     the largest growth of anonymous memory meanwhile, in bytes
    kept_bytes       of all rows as they are kept; null where not all were made
    measured         the share of the elements that were made; below 1, figures are scaled: each parameter that was not
                     made counts as others of its shape, all else by elements, and the memory by the largest parameter
    error            why there is nothing of that; null if there is

`--of 2 6144` measures on two blocks and that many tokens. A transform that takes more processor time than `--limit`
stops as soon as it has seen all shapes. With `--out`, lines are added to a file, and cases that it holds are left out:
a run that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument("--out", type=Path, metavar="FILE", help="add JSON lines to it, and leave out what it holds")
    parser.add_argument("--cases", nargs="*", default=[], metavar="PATTERN", help="names of cases, such as 'iso*'")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of processor time for each")
    parser.add_argument("--experts", type=int, default=8, help="how many experts, and how many adapters")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--layers", type=int, default=30, help="blocks of the models")
    help = "what is measured on; figures are scaled to the whole model"
    parser.add_argument("--of", type=int, nargs=2, metavar=("LAYERS", "VOCABULARY"), help=help)
    parser.add_argument("--width", type=int, default=576, help="of their hidden states, a multiple of 18")
    parser.add_argument("--vocabulary", type=int, default=49152, help="tokens of their embeddings")
    arguments = parser.parse_args(argv)

    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(arguments.threads))  # before torch
    from merge_bench.models import Shape, write_adapters, write_models
    from merge_bench.transforms import Plan, chosen, measure_apart

    if not (cases := chosen(arguments.cases)):
        parser.error(f"no case is called {' or '.join(arguments.cases)}: {', '.join(c.name for c in chosen([]))}")
    rows = _held(arguments.out)
    with TemporaryDirectory() as directory:
        layers, vocabulary = arguments.of or (arguments.layers, arguments.vocabulary)
        live = write_models(Path(directory), Shape(layers, arguments.width, vocabulary), arguments.experts)
        write_adapters(Path(directory), live, arguments.experts, arguments.rank)
        del live
        plan = Plan(Path(directory), arguments.experts, arguments.layers, arguments.vocabulary, arguments.limit)
        for case in cases:
            if case.name not in rows:
                rows[case.name] = row = measure_apart(plan, case)
                _tell(row, arguments.json)
                if arguments.out:
                    with arguments.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
    return int(any(row["error"] for row in rows.values()))


def _held(file: Path | None) -> dict[str, dict[str, Any]]:
    """Return the lines of a file by case, without those of cases that failed."""
    if file is None or not file.exists():
        return {}
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {row["case"]: row for row in rows if not row["error"]}


def _tell(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(row), flush=True)
    elif row["error"]:
        print(f"{row['case']:<24} {row['error']}", flush=True)
    else:
        scaled = "" if row["measured"] == 1 else f", scaled from {100 * row['measured']:.0f} % of the elements"
        memory = "unknown" if row["extra_memory"] is None else f"{row['extra_memory'] / 1e6:.0f} MB"
        kept = "" if row["kept_bytes"] is None else f", rows of {row['kept_bytes'] / 1e6:.0f} MB"
        print(
            f"{row['case']:<24} {row['seconds']:g} s of processor time, {row['wall_seconds']:g} s, memory {memory}"
            f"{kept}{scaled}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
