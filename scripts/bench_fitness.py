"""What a candidate costs beyond the model's forward passes: `python scripts/bench_fitness.py [--suite suites/text]
[--items 64] [--json]`.

A real search runs with its log on disk. After every candidate the same batches go through the same live model once
more, plainly: tensors in, one forward pass each, nothing else. A candidate's time is all of the loop: ask, decode,
merge, fitness, objective, the durable line in the log, tell. The overhead is the median, over pairs of neighbours, of
(candidate - plain) / plain; on a shared machine only such a ratio means something.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from evomerge.assembly import assemble, make_searcher
from evomerge.config import CONF, plain, register
from evomerge.errors import EvomergeError
from evomerge.evaluator import Scorer, SerialEvaluator
from evomerge.fingerprint import fingerprint
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.identity import describe
from evomerge.progress import Reporter
from evomerge.search import search
from evomerge.stopping import Budget
from evomerge.trials import Batch, Trial, TrialLog


def measure(suite: Path, items: int, pairs: int, searcher: str, space: str) -> dict[str, Any]:
    """Run a search of `pairs` candidates and return `{"case", "items", "overhead", "overhead_seconds", ...}`."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "search",
            [f"model.suite={suite}", "model=text", f"fitness.items={items}", f"searcher={searcher}", f"space={space}"],
        )
    settings = plain(config)
    assembly = assemble(settings, Reporter())
    propose = make_searcher(settings, assembly.space, assembly.vectors.parameters)
    subset = Subset(assembly.items["search"], items, 1)
    score = Scorer(
        assembly.live.model,
        assembly.fitness,
        assembly.fitness.prepare(assembly.live.processor, assembly.items["search"]),
    )
    ids = subset(0)
    score(ids)
    batches = [batch.inputs for batch in score.prepared.batches]
    evaluate = SerialEvaluator(assembly.space, assembly.merger, score, subset, Objective("log_probability"))
    bare: list[float] = []
    candidates: list[float] = []

    def interleaved(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        nonlocal mark
        for index in missing:
            yield from evaluate(batch, [index])  # the loop appends the trial to the log before it asks for the next one
            candidates.append(time.perf_counter() - mark)
            started = time.perf_counter()
            with torch.inference_mode():
                for inputs in batches:
                    assembly.live.model(**inputs)
            mark = time.perf_counter()
            bare.append(mark - started)

    identity = describe(assembly, settings)
    with (
        tempfile.TemporaryDirectory() as directory,
        TrialLog(Path(directory) / "trials.jsonl", identity, fingerprint()) as log,
    ):
        mark = time.perf_counter()
        search(propose, interleaved, log, Budget(pairs + 3))
    candidates, bare = candidates[3:], bare[3:]  # the first ones warm up
    return {
        "case": f"{suite.name} {searcher} {space}",
        "items": sum(map(len, ids.values())),
        "overhead": round(statistics.median(c / p - 1 for c, p in zip(candidates, bare, strict=True)), 4),
        "overhead_seconds": round(statistics.median(c - p for c, p in zip(candidates, bare, strict=True)), 4),
        "forward_seconds": round(statistics.median(bare), 4),
        "pairs": len(bare),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", type=Path, default=Path("suites/text"))
    parser.add_argument("--items", type=int, default=64, help="search items of a candidate, in all")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    for searcher, space in (("cmaes", "layer"), ("tpe", "layer"), ("cmaes", "tensor")):
        try:
            row = measure(arguments.suite, arguments.items, arguments.pairs, searcher, space)
        except EvomergeError as error:
            raise SystemExit(str(error)) from None
        text = "{case}, {items} items: {overhead:.1%} ({overhead_seconds:.3f} s) beyond {forward_seconds:.3f} s forward"
        print(json.dumps(row) if arguments.json else text.format(**row), flush=True)


if __name__ == "__main__":
    main()
