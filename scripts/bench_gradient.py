"""What a step of the gradient search costs: `python scripts/bench_gradient.py [--suite suites/text] [--experts 4]
[--inputs 16] [--pairs 25] [--json]`. Status 1 if the ways below do not find the same gradient.

All ways go over the same batches of the same model at the same point, on the CPU: cross-entropy on search items,
`inputs` of each task, a batch for each task.

    step       all of a step of a real search with its log on disk: ask, decode, merge, each batch forward and backward
               with its inner products, pullback, the durable lines, tell (Adam)
    plain      each batch forward and backward with ordinary gradients of the parameters that have a coefficient to
               learn, dropped after each batch; no merge: what any gradient costs at least
    textbook   the task vectors of all experts stacked in memory, θ = θ₀ + (λ · stack).sum(0) with autograd through the
               merge for each of those parameters, and `torch.func.functional_call`; the merge's graph is built once a
               step and walked once a task; torch's Adam
    published  textbook with θ₀ + λ₁τ₁ + λ₂τ₂ + ..., expert by expert, as AdaMerging's followers have it
    lean       textbook with one `torch.tensordot` instead of product and sum: without waste in time or memory
    at once    lean with one backward pass of the sum of all losses: walks the merge once, and holds the activations of
               all tasks

They alternate, in one order and the other. Ratios are medians over neighbours: on a shared machine only these mean
something. `step_ratio` is step / plain, `extra_ratios` are (step - plain) / (way - plain), and
`textbook_extra_ratio` is the textbook's. A step of a search follows a step of the same search; so before each way, what
its merge reads is read once outside the time, to be as near to the processor as its own last step would have left it.

Bytes are those of tensors that operators made in a step and that still live, whoever holds them; so model, base, deltas
and stack, which were there before, do not count, nor what an operator needs within itself. The extra of a way is its
peak minus the activations: what lives at the end of a plain forward pass, for the batch with the most.
`extra_bytes_ratio` is the extra of a step over the textbook's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from gradient_ways import LiveBytes, Plain, Textbook, Work, one_by_one, tensordot
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.common.machine import fingerprint
from evomerge.fitness.objectives import task_weights
from evomerge.runs.build import build_problem, find_start, make_searcher
from evomerge.runs.config import CONF, plain, register
from evomerge.runs.identity import search_identity
from evomerge.runs.learning import find_learning
from evomerge.runs.sources import make_heads
from evomerge.runs.suite import load_suite
from evomerge.search.evaluators.gradient import GradientEvaluator
from evomerge.search.log import TrialLog
from evomerge.search.loop import search
from evomerge.search.stopping import Budget
from evomerge.trials import Batch, Trial

WARM = 3
"""Steps before the first pair: in all of them gradients are compared, in the last bytes are counted."""
FORMS: dict[str, dict[str, Any]] = {
    "textbook": {},
    "published": {"merge": one_by_one},
    "lean": {"merge": tensordot},
    "at_once": {"merge": tensordot, "at_once": True},
}
"""The ways through a merge with a graph, as `Textbook` is asked for them."""
AGREE = 1e-4
"""How much the gradients of two ways may differ, relative to their length."""


class Recorder:
    """Passes on the logits of a fitness, and keeps the batches that they were made of."""

    def __init__(self, fitness: Any) -> None:
        self._fitness = fitness
        self.batches: list[Any] = []

    def logits(self, model: nn.Module, prepared: Any, ids: Mapping[str, Sequence[str]]) -> Iterator[Any]:
        """Yield what the fitness yields."""
        yield from self._fitness.logits(model, prepared, ids)
        self.batches += prepared.batches


class Bench:
    """An evaluator: takes the steps of a search, and measures the other ways after each.

    Args:
        settings: of the search.

    Attributes:
        problem: what is searched.
        seconds: of each step, by way; `merge` is a part of the step.
        bytes: the extra bytes by way.
        error: how much the gradient of a way differed from that of the step at most, relative to its length.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.problem = problem = build_problem(settings, Reporter())
        learning = find_learning(problem, settings, Reporter())
        self._recorder, self._loss = Recorder(learning.fitness), learning.loss
        self.seconds: list[dict[str, float]] = []
        self.bytes: dict[str, int] = {}
        self.error = 0.0
        self._merges: list[float] = []
        learning = replace(learning, fitness=self._recorder)
        self._evaluate = GradientEvaluator(problem, learning, lambda timing: self._merges.append(timing.merge))
        self._heads = make_heads(problem.sources, problem.vectors.parameters)
        self._share = task_weights(problem.goal.weights, learning.items)
        space, vectors, moves = problem.space, problem.vectors, problem.space.moves("weight")
        self._rows = {
            span.parameter: g
            for g, group in enumerate(space.groups)
            for span in group.spans
            if any(moves[g, k] and span.parameter in vectors.deltas[row] for k, row in enumerate(space.rows))
        }
        parameters = dict(problem.live.model.named_parameters())
        self._plain = Plain(problem.live.model, {name: parameters[name] for name in self._rows})
        self._textbook = Textbook(problem, self._rows)
        self._mark = time.perf_counter()

    def __call__(self, batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        """Yield the trial of a step, and measure the other ways when it is in the log."""
        number = len(self.seconds)
        self._recorder.batches.clear()
        with LiveBytes() if number == WARM - 1 else nullcontext() as counter:
            (trial,) = self._evaluate(batch, missing)
        yield trial
        seconds = {"step": time.perf_counter() - self._mark, "merge": self._merges[-1]}
        work = [self._work(made, trial.items) for made in self._recorder.batches]
        self._weights = torch.from_numpy(self.problem.space.decode(batch.points[0])["weight"])
        if number < WARM:
            self._compare(work, -np.array(trial.gradient), batch.points[0])
        if counter is not None:
            self._count(work, counter.peak)
        ways: list[tuple[str, Callable[..., None]]] = [("plain", self._plain)]
        ways += [(name, partial(self._textbook, **form)) for name, form in FORMS.items()]
        for name, way in ways[:: -1 if number % 2 else 1]:
            seconds[name] = self._run(way, work)
        self.seconds.append(seconds)
        held = self.problem.vectors
        _read(held.base.tensor(name) for name in self._rows)
        _read(deltas[name].dense() for deltas in held.deltas.values() for name in self._rows if name in deltas)
        self._mark = time.perf_counter()

    def _work(self, made: Any, items: Mapping[str, Sequence[str]]) -> Work:
        """Return a batch of the fitness as what the other ways go over."""

        def loss(output: Any) -> Tensor:
            parts = []
            for task, (rows, _, labels) in made.tasks.items():
                logits = self._heads[task].logits(output, made.inputs.get("attention_mask"), rows)
                parts.append(self._loss(logits, labels).sum() * (self._share[task] / len(items[task])))
            return torch.stack(parts).sum()

        return Work(made.inputs, loss)

    def _run(self, way: Callable[..., None], work: Sequence[Work], **arguments: Any) -> float:
        """Go over the batches in one of the ways, at the point of the step, and return the seconds."""
        self._textbook.weights.data.copy_(self._weights)
        if way is not self._plain:
            _read(each for operands in self._textbook.operands.values() for each in operands)
        with self._plain.gradients():
            started = time.perf_counter()
            way(work, **arguments)
            return time.perf_counter() - started

    def _compare(self, work: Sequence[Work], ours: np.ndarray, point: np.ndarray) -> None:
        """Hold the gradients of the other ways against that of the step, (dim,), at its point."""
        vectors, sums = self.problem.vectors, torch.zeros_like(self._weights)

        def take() -> None:
            for name, parameter in self._plain.learned.items():
                for k, row in enumerate(vectors.rows):
                    if (delta := vectors.dense(row, name)) is not None and parameter.grad is not None:
                        sums[self._rows[name], k] += (parameter.grad.double() * delta).sum()

        self._run(self._plain, work, done=take)
        others = [sums]
        for form in FORMS.values():
            self._run(self._textbook, work, **form)
            others.append(self._textbook.weights.grad.double())  # pyright: ignore[reportOptionalMemberAccess]
        for other in others:
            gradient = self.problem.space.pullback({"weight": other.numpy()}, point)
            self.error = max(self.error, float(np.linalg.norm(gradient - ours) / np.linalg.norm(gradient)))

    def _count(self, work: Sequence[Work], peak: int) -> None:
        """Note the extra bytes of each way; `peak` is that of the step."""
        activations: list[int] = []
        with LiveBytes() as counter:
            self._run(self._plain, work, seen=lambda: activations.append(counter.now))
        peaks = {"step": peak, "plain": counter.peak}
        for name, form in FORMS.items():
            with LiveBytes() as counter:
                self._run(self._textbook, work, **form)
            peaks[name] = counter.peak
        self.bytes = {name: each - max(activations) for name, each in peaks.items()}


def _read(tensors: Iterable[Tensor]) -> None:
    """Read tensors once."""
    for tensor in tensors:
        tensor.sum()


def compose_settings(suite: Path, experts: int, inputs: int, steps: int, space: str) -> dict[str, Any]:
    """Return the settings of a gradient search with the first experts of a suite.

    Raises:
        ConfigError: the suite has fewer.
    """
    names = list(load_suite(suite).experts)
    if not 1 <= experts <= len(names):
        raise ConfigError(f"--experts is {experts}, but {suite} has {len(names)}: write a number from 1 to that.")
    register()
    overrides = ["model=text", f"model.suite={suite}", f"model.experts=[{','.join(names[:experts])}]", "start=0.4"]
    overrides += ["searcher=gradient", f"searcher.steps={steps}", f"space={space}", "model.device=cpu"]
    overrides += [f"loss.inputs={inputs}", f"fitness.batch_size={inputs}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plain(compose("search", overrides))


def measure(suite: Path, experts: int, inputs: int, pairs: int, space: str) -> dict[str, Any]:
    """Run a search of so many steps, the other ways in between, and return `{"case", "step_ratio", ...}`."""
    settings = compose_settings(suite, experts, inputs, pairs + WARM, space)
    bench = Bench(settings)
    searcher = make_searcher(settings, bench.problem.space, find_start(settings, bench.problem, Reporter()))
    identity = search_identity(bench.problem, settings)
    with (
        tempfile.TemporaryDirectory() as directory,
        TrialLog(Path(directory) / "trials.jsonl", identity, fingerprint()) as log,
    ):
        search(searcher, bench, log, Budget(pairs + WARM))
    rows = bench.seconds[WARM:]
    extra = {name: median((row["step"] - row["plain"]) / (row[name] - row["plain"]) for row in rows) for name in FORMS}
    return {
        "case": f"{suite.name} K={experts} {space} cross_entropy",
        "step_ratio": round(median(row["step"] / row["plain"] for row in rows), 4),
        "textbook_extra_ratio": round(extra["textbook"], 4),
        "extra_bytes_ratio": round(bench.bytes["step"] / bench.bytes["textbook"], 4),
        "extra_ratios": {name: round(each, 4) for name, each in extra.items()},
        "seconds": {name: round(median(row[name] for row in rows), 4) for name in ("step", "merge", "plain", *extra)},
        "extra_bytes": bench.bytes,
        "gradient_error": float(f"{bench.error:.1e}"),
        "inputs": inputs,
        "pairs": len(rows),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", type=Path, default=Path("suites/text"))
    parser.add_argument("--experts", type=int, default=4, help="K, the first ones of the suite")
    parser.add_argument("--inputs", type=int, default=16, help="of each task in a step")
    parser.add_argument("--pairs", type=int, default=25, help="how many steps")
    parser.add_argument("--spaces", nargs="+", default=["tensor", "layer"], help="the cases")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    if arguments.pairs < 1:
        parser.error(f"--pairs is {arguments.pairs}: write at least 1, and 25 for figures to rely on")
    text = (
        "{case}: a step takes {step_ratio:.2f} of plain; its extra is {textbook_extra_ratio:.2f} of the textbook's in "
        "time, {extra_bytes_ratio:.2f} in bytes"
    )
    for space in arguments.spaces:
        try:
            row = measure(arguments.suite, arguments.experts, arguments.inputs, arguments.pairs, space)
        except EvomergeError as error:
            raise SystemExit(str(error)) from None
        print(json.dumps(row) if arguments.json else text.format(**row), flush=True)
        if not row["gradient_error"] <= AGREE:
            raise SystemExit(f"The gradients of two ways differ by {row['gradient_error']} of their length.")


if __name__ == "__main__":
    main()
