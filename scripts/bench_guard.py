"""What the guard of the live model costs: `python scripts/bench_guard.py [--suite suites/text] [--calls 100] [--json]`.

The check is what happens around every call of a fitness (`evomerge/models/guard.py`): the model is noted before and
looked at after. It is timed alone, many times; so is a candidate, a forward pass of 64 items of 48 tokens. What is
printed is the median of each, and their ratio; one ratio is taken of neighbours in time, since a shared machine is now
faster, now slower. The model is the base of the suite `text` where it is built, else a random BERT of MiniLM's size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from evomerge.models.guard import Guard
from evomerge.models.live import load_live

ITEMS, TOKENS, BATCH = 64, 48, 32
MINI = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)


def measure(model: Any, calls: int, candidates: int) -> dict[str, Any]:
    """Return the seconds of a check, of a candidate, and their ratio, all medians.

    Args:
        model: the live model, in eval mode.
        calls: how often the check is timed.
        candidates: how often a candidate is; the calls are spread over them.
    """
    guard = Guard(model, lambda: None, [name for name, _ in model.named_parameters()])
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (ITEMS, TOKENS), generator=generator)
    batches = tokens.to(next(model.parameters()).device).split(BATCH)

    @torch.inference_mode()
    def score() -> None:
        for batch in batches:
            model(input_ids=batch, attention_mask=torch.ones_like(batch))
        if batches[0].is_cuda:
            torch.cuda.synchronize()

    def check() -> None:
        with guard:
            pass

    for warm in (score, check):
        warm()
    checks, scores, ratios = [], [], []
    for _ in range(candidates):
        scores.append(_seconds(score))
        some = [_seconds(check) for _ in range(max(1, calls // candidates))]
        checks += some
        ratios.append(statistics.median(some) / scores[-1])
    return {
        "parameters": len(list(model.parameters())),
        "elements": sum(parameter.numel() for parameter in model.parameters()),
        "calls": len(checks),
        "check_seconds": statistics.median(checks),
        "candidate_seconds": statistics.median(scores),
        "ratio": statistics.median(ratios),
    }


def _seconds(compute: Callable[[], Any]) -> float:
    started = time.perf_counter()
    compute()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", type=Path, default=Path("suites/text"))
    parser.add_argument("--calls", type=int, default=100, help="of the check")
    parser.add_argument("--candidates", type=int, default=20, help="between which they are spread")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    if (arguments.suite / "suite.json").is_file():
        case, model = arguments.suite.name, load_live(arguments.suite / "base", device=arguments.device).model
    else:
        case, model = "random MiniLM", BertModel(MINI).eval().requires_grad_(False)
    row = {"case": case, **measure(model, arguments.calls, arguments.candidates)}
    text = "{case}, {parameters} parameters of {elements:,} elements: the check takes {check_seconds:.5f} s (median of "
    text += "{calls}), a candidate {candidate_seconds:.3f} s; ratio {ratio:.4f}"
    print(json.dumps(row) if arguments.json else text.format(**row))


if __name__ == "__main__":
    main()
