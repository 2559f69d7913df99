"""A candidate may be broken off anywhere: whatever a fitness keeps for the next one is whole, or not there."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge import fitness as package
from evomerge.cli.progress import Reporter
from evomerge.common.limits import Overdue, _in_passing
from evomerge.fitness.classification import Classification
from evomerge.fitness.items import Task
from evomerge.fitness.perplexity import Perplexity
from evomerge.problem import Problem
from evomerge.runs.config import plain
from evomerge.runs.learning import find_learning
from evomerge.runs.sources import make_heads
from evomerge.search.evaluators.gradient import GradientEvaluator
from evomerge.trials import Batch
from tests.kit.evaluations import under
from tests.kit.helpers import compose
from tests.kit.language import TASKS, documents, read, write_jsonl, write_task

PLACES = 12
"""How often each is broken off."""


def broken_off(compute: Callable[[], Any], line: int | None) -> int:
    """Compute until so many lines of our own code have run, where an alarm then rings; return how many have."""
    own, count, old = str(Path(package.__file__).parents[1]), 0, sys.gettrace()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(own):
            return None
        if event == "line":
            count += 1
            if line is not None and count >= line and not _in_passing(frame):
                sys.settrace(None)
                raise Overdue
        return trace

    sys.settrace(trace)
    try:
        compute()
    except Overdue:
        pass
    finally:
        sys.settrace(old)
    return count


def places(compute: Callable[[], Any]) -> list[int]:
    """Lines at which to break it off: the first, the last ones, and some between."""
    count = broken_off(compute, None)
    return [1, *sorted(random.Random(0).sample(range(2, count - 3), PLACES)), count - 2, count - 1, count]


@pytest.fixture(params=["classification", "lm_eval", "perplexity"])
def parts(request: Any, problem: Problem, language_family: Path, tmp_path: Path) -> tuple[Any, Any, Any, Any]:
    """A fitness, a model, a processor, and a few items of each task."""
    if request.param == "classification":
        items = {task: chosen[:6] for task, chosen in problem.items["search"].items()}
        fitness = Classification(make_heads(problem.sources, problem.vectors.parameters), batch_size=5)
        return fitness, problem.live.model, problem.live.processor, items
    model: Any = AutoModelForCausalLM.from_pretrained(language_family / "base").eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(language_family / "base")
    if request.param == "lm_eval":
        fitness, splits = read({name: write_task(tmp_path, name) for name in TASKS}, batch_size=5)
    else:
        file = write_jsonl(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in documents(40)])
        fitness = Perplexity(batch_size=5, window=16)
        splits = fitness.read({"texts": Task("texts", file, None, None, ())}, {})
    return fitness, model, tokenizer, {task: chosen[:4] for task, chosen in splits["search"].items()}


def test_a_fitness_that_was_broken_off_scores_as_ever(parts: Any) -> None:
    fitness, model, processor, items = parts
    ids = {task: [item.id for item in chosen] for task, chosen in items.items()}
    some = {task: chosen[:2] for task, chosen in ids.items()}
    expected = fitness(model, fitness.prepare(processor, items), ids)

    for line in places(lambda: fitness(model, fitness.prepare(processor, items), ids)):
        prepared = fitness.prepare(processor, items)
        fitness(model, prepared, some)  # so that there is something else to be mistaken for it
        broken_off(lambda: fitness(model, prepared, ids), line)  # noqa: B023
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        outcome = fitness(model, prepared, ids)
        assert outcome.items == expected.items
        for task, metrics in expected.results.items():
            for metric, values in metrics.items():
                np.testing.assert_array_equal(outcome.results[task][metric], values, err_msg=f"{line}: {task} {metric}")


def test_a_step_that_was_broken_off_leaves_nothing_behind(problem: Problem, tmp_path: Path) -> None:
    settings = plain(compose("model=pico", f"model.cache={tmp_path}", "loss.inputs=6", "fitness.batch_size=4"))
    batch = Batch(3, np.full((1, problem.space.dim), 0.4), gradient=True)

    def make() -> GradientEvaluator:
        return GradientEvaluator(under(problem, settings), find_learning(problem, settings, Reporter()))

    evaluate = make()
    expected = next(evaluate(batch, [0]))
    for line in places(lambda: next(make()(batch, [0]))):
        evaluate = make()
        broken_off(lambda: next(evaluate(batch, [0])), line)  # noqa: B023
        assert torch.is_grad_enabled()
        assert not any(p.requires_grad or p.grad is not None for p in problem.live.model.parameters())
        assert next(evaluate(batch, [0])) == expected
    problem.merger.restore()
