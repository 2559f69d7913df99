"""What a candidate costs beyond the model's forward passes: `python scripts/bench_fitness.py [text] [lm] [--items 64]
[--json]`.

A real search runs with its log on disk. After every candidate the same batches go through the same live model once
more, plainly: tensors in, forward passes, nothing else. A candidate's time is all of the loop: ask, decode, merge,
fitness, objective, the durable line in the log, tell. The overhead is the median, over pairs of neighbours, of
(candidate - plain) / plain; on a shared machine only such a ratio means something.

The case `lm` scores the multiple-choice tasks of a suite of language models by lm-eval, and now and then lets
`lm_eval.simple_evaluate` score the same items of the same live model, its tasks and its wrapper of the model made
beforehand; the ratio of a candidate's time to its time is `simple_evaluate_ratio`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_dir

from evomerge.cli.progress import Reporter
from evomerge.common.errors import EvomergeError
from evomerge.common.machine import fingerprint
from evomerge.fitness.likelihood import forward
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.problem import Problem
from evomerge.runs.build import build_problem, find_start, make_searcher
from evomerge.runs.config import CONF, plain, register
from evomerge.runs.identity import search_identity
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.evaluators.values import ValueEvaluator
from evomerge.search.log import TrialLog
from evomerge.search.loop import search
from evomerge.search.stopping import Budget
from evomerge.trials import Batch, Trial

WARM = 3
"""Candidates that are not counted."""


def measure(suite: Path, items: int, pairs: int, searcher: str, space: str) -> dict[str, Any]:
    """Run a search of texts and return `{"case", "items", "overhead", "overhead_seconds", ...}`."""
    settings, problem = _assembled(
        [f"model.suite={suite}", "model=text", f"fitness.items={items}", f"searcher={searcher}", f"space={space}"]
    )
    score, subset = _scorer(problem, settings)
    score(subset(0))
    batches = [batch.inputs for batch in score.prepared.batches]

    def plainly() -> None:
        for inputs in batches:
            problem.live.model(**inputs)

    candidates, bare = _interleave(settings, problem, score, subset, plainly, pairs)
    return {"case": f"{suite.name} {searcher} {space}", "items": subset.size, **_overhead(candidates, bare)}


def measure_lm(directory: Path, items: int, pairs: int, device: str = "auto") -> dict[str, Any]:
    """Run a search of language models and return the same, and `simple_evaluate_ratio`.

    Args:
        directory: holds base/, experts/<name>/ and tasks/<name>.yaml.
        items: that a candidate is scored on, of the multiple-choice tasks.
        pairs: candidates; every fifth is followed by lm-eval's own evaluation.
        device: of the live model.
    """
    files = {file.stem: file for file in sorted((directory / "tasks").glob("*.yaml"))}
    kinds = {name: yaml.safe_load(file.read_text(encoding="utf-8"))["output_type"] for name, file in files.items()}
    chosen = ", ".join(f"{name}: {file}" for name, file in files.items() if kinds[name] == "multiple_choice")
    experts = ", ".join(str(path) for path in sorted((directory / "experts").iterdir()) if path.is_dir())
    sources = [f"model.base={directory / 'base'}", f"model.experts=[{experts}]", f"fitness.tasks={{{chosen}}}"]
    settings, problem = _assembled(
        [*sources, "fitness=lm_eval", f"fitness.items={items}", "space=blocks", "space.n=2", f"model.device={device}"]
    )
    score, subset = _scorer(problem, settings)
    score(subset(0))
    model = problem.live.model

    def plainly() -> None:
        for batch in score.prepared.plan.batches:
            for _ in forward(model, batch):
                pass

    theirs: list[float] = []
    evaluate = _simple_evaluate(problem, score, subset(0), settings["fitness"]["batch_size"])

    def now_and_then(number: int) -> None:
        if number >= WARM and (number - WARM) % 5 == 0:
            started = time.perf_counter()
            evaluate()
            theirs.append(time.perf_counter() - started)

    candidates, bare = _interleave(settings, problem, score, subset, plainly, pairs, now_and_then)
    ratios = [candidates[5 * i] / seconds for i, seconds in enumerate(theirs)]
    ratio = {"simple_evaluate_ratio": round(statistics.median(ratios), 4)}
    return {"case": "lm", "items": subset.size, **_overhead(candidates, bare), **ratio}


def _assembled(overrides: Sequence[str]) -> tuple[dict[str, Any], Problem]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = plain(compose("search", list(overrides)))
    return settings, build_problem(settings, Reporter())


def _scorer(problem: Problem, settings: dict[str, Any]) -> tuple[LiveFitness, Subset]:
    items = problem.items["search"]
    prepared = problem.fitness.prepare(problem.live.processor, items)
    score = LiveFitness(problem.live.model, problem.fitness, prepared, problem.merger.guard)
    return score, Subset(items, settings["fitness"]["items"], 1)


def _interleave(
    settings: dict[str, Any],
    problem: Problem,
    score: LiveFitness,
    subset: Subset,
    plainly: Callable[[], None],
    pairs: int,
    after: Callable[[int], None] = lambda number: None,
) -> tuple[list[float], list[float]]:
    """Return the seconds of candidates, and of the plain forward passes that follow each of them."""
    evaluate = ValueEvaluator(SerialScorer(problem, {"search": score}), subset, Objective("log_probability"))
    bare: list[float] = []
    candidates: list[float] = []

    def interleaved(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        nonlocal mark
        for index in missing:
            yield from evaluate(batch, [index])  # the loop appends the trial to the log before it asks for the next one
            candidates.append(time.perf_counter() - mark)
            started = time.perf_counter()
            with torch.inference_mode():
                plainly()
            bare.append(time.perf_counter() - started)
            after(len(bare) - 1)
            mark = time.perf_counter()

    identity = search_identity(problem, settings)
    propose = make_searcher(settings, problem.space, find_start(settings, problem, Reporter()))
    with (
        tempfile.TemporaryDirectory() as directory,
        TrialLog(Path(directory) / "trials.jsonl", identity, fingerprint()) as log,
    ):
        mark = time.perf_counter()
        search(propose, interleaved, log, Budget(pairs + WARM))
        if log.errors:
            raise EvomergeError(f"{len(log.errors)} of {log.trials} candidates failed, so their times mean nothing.")
    return candidates[WARM:], bare[WARM:]


def _overhead(candidates: Sequence[float], bare: Sequence[float]) -> dict[str, Any]:
    return {
        "overhead": round(statistics.median(c / p - 1 for c, p in zip(candidates, bare, strict=True)), 4),
        "overhead_seconds": round(statistics.median(c - p for c, p in zip(candidates, bare, strict=True)), 4),
        "forward_seconds": round(statistics.median(bare), 4),
        "pairs": len(bare),
    }


def _simple_evaluate(
    problem: Problem, score: LiveFitness, ids: dict[str, list[str]], batch_size: int
) -> Callable[[], object]:
    """Return what scores the same items of the live model by `lm_eval.simple_evaluate`, as well as it can be called."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from evomerge.fitness.lm_eval.loading import load_tasks, undisturbed

    tasks, samples = [], {}
    for name, chosen in ids.items():
        (task,) = load_tasks(str(problem.sources.tasks[name].items), (), name)
        documents = [score.prepared.queries[name, item].document for item in chosen]
        split = next(key for key in task.dataset if documents[0].doc in task.dataset[key])
        task.config.test_split = split  # lm-eval scores no other
        tasks.append(task)
        samples[task.config.task] = sorted(document.number for document in documents)
    with undisturbed():
        make: Any = HFLM
        wrapped = make(pretrained=problem.live.model, tokenizer=problem.live.processor, batch_size=batch_size)
        manager = TaskManager(include_defaults=False)
    simple_evaluate: Any = lm_eval.simple_evaluate  # typed otherwise by its decorator
    unseeded: Any = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed"))

    def evaluate() -> object:
        with undisturbed():
            return simple_evaluate(
                model=wrapped, tasks=tasks, task_manager=manager, samples=samples, bootstrap_iters=0, **unseeded
            )

    return evaluate


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", help="text, lm; without any, those whose suites are there")
    parser.add_argument("--suite", type=Path, default=Path("suites/text"))
    parser.add_argument("--lm", type=Path, default=Path("suites/lm"), help="directory of base/, experts/ and tasks/")
    parser.add_argument("--items", type=int, help="search items of a candidate, in all (text 64, lm 60)")
    parser.add_argument("--pairs", type=int, help="candidates (text 40, lm 25)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    if strange := set(arguments.cases) - {"text", "lm"}:
        parser.error(f"there is no case {min(strange)}: write text or lm")
    there = [
        name for name, path in (("text", arguments.suite), ("lm", arguments.lm)) if (path / "suite.json").is_file()
    ]
    cases = arguments.cases or there or ["text"]  # without a suite, whose error says how to build it
    items, pairs = arguments.items, arguments.pairs
    runs: list[Callable[[], dict[str, Any]]] = []
    if "text" in cases:
        for searcher, space in (("cmaes", "layer"), ("tpe", "layer"), ("cmaes", "tensor")):
            runs.append(lambda s=searcher, g=space: measure(arguments.suite, items or 64, pairs or 40, s, g))
    if "lm" in cases:
        runs.append(lambda: measure_lm(arguments.lm, items or 60, pairs or 25))
    for run in runs:
        try:
            row = run()
        except EvomergeError as error:
            raise SystemExit(str(error)) from None
        text = "{case}, {items} items: {overhead:.1%} ({overhead_seconds:.3f} s) beyond {forward_seconds:.3f} s forward"
        text += "; {simple_evaluate_ratio:.2f} of simple_evaluate" if "simple_evaluate_ratio" in row else ""
        print(json.dumps(row) if arguments.json else text.format(**row), flush=True)


if __name__ == "__main__":
    main()
