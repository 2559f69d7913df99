"""Checks everything that needs a GPU, in about five minutes: `python scripts/check_gpu.py [--out FILE]`.

The part of the kernels needs torch, triton, numpy, safetensors and transformers alone, and no installation:

    kernels    Triton's kernel against the plain form on a CPU, by form, dtype and kind of rows: elements that differ
               (none in float32), and by how many units in the last place at most (1 in 16 bits)
    bandwidth  bytes a second of each form, beside those of a plain copy on the same card
    layers     the seconds of a merge of as many layers of a model of 7 B parameters (bfloat16, 3 experts) as fit, and,
               marked as scaled, of all 32
    search     a search and a gradient on pico models; that search over all cards (model.device_map=auto), and whether
               its trials are the same; skipped, with the reason, where something that they need is missing

It writes one JSON and says by its exit status whether the kernels agree. With `--interpret`, the first part alone is
done on a CPU, by Triton's interpreter and with tiny sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def main(argv: list[str] | None = None) -> int:
    """Check, write, and return the exit status."""
    parser = argparse.ArgumentParser(description="Check kernels, bandwidth, a search and a gradient on one GPU.")
    parser.add_argument("--out", type=Path, default=Path("check_gpu.json"), help="where the JSON is written")
    parser.add_argument("--interpret", action="store_true", help="the kernels alone, on a CPU, with tiny sizes")
    arguments = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))  # evomerge need not be installed
    if arguments.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    device = "cpu" if arguments.interpret else "cuda"
    try:
        import torch
        from gpu_check.agreement import agreement

        if device == "cuda" and not torch.cuda.is_available():
            parser.error("torch finds no CUDA device here: write --interpret to compare the kernels on a CPU")
        found: dict[str, Any] = {"machine": _machine(device), "kernels": agreement(device)}
    except ImportError as error:
        parser.error(f"{error}: the part of the kernels needs torch, triton, numpy, safetensors and transformers")
    if arguments.interpret:
        found |= {part: {"skipped": "--interpret checks kernels alone"} for part in ("bandwidth", "layers", "search")}
    else:
        from gpu_check.searching import search
        from gpu_check.speed import bandwidth, layers

        found |= {"bandwidth": bandwidth(), "layers": layers(), "search": search()}
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    wrong = [case for case in found["kernels"] if not case["agrees"]]
    print(f"{len(found['kernels'])} kernels compared, {len(wrong)} disagree; see {arguments.out}")
    return 1 if wrong else 0


def _machine(device: str) -> dict[str, str]:
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else "none: Triton's interpreter on a CPU"
    return {"device": name, "torch": torch.__version__, "triton": version("triton")}


if __name__ == "__main__":
    sys.exit(main())
