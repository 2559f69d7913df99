"""Where memory does not suffice: smaller batches, the same results, and what cannot be helped."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.cli.progress import Reporter
from evomerge.common.machine import memory_limit
from evomerge.fitness.classification import Classification
from evomerge.fitness.items import Task
from evomerge.fitness.perplexity import Perplexity
from evomerge.problem import Problem
from evomerge.runs.config import plain
from evomerge.runs.learning import find_learning
from evomerge.runs.sources import make_heads
from evomerge.search.evaluators.gradient import GradientEvaluator
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.memory import Halving, bare, lacks_memory
from evomerge.trials import Batch
from tests.kit.evaluations import under
from tests.kit.helpers import compose
from tests.kit.language import TASKS, documents, read, write_jsonl, write_task

LACKS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("could not create a primitive"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
)


@contextmanager
def room_for(rows: int, model: torch.nn.Module, error: BaseException = LACKS[0]) -> Iterator[list[int]]:
    """As if there were memory for so many rows in a forward pass; gives the rows of each that was tried."""
    tried: list[int] = []

    def before(module: Any, args: Any, kwargs: Any) -> None:
        tried.append(len(kwargs["input_ids"]))
        if tried[-1] > rows:
            raise error

    with model.register_forward_pre_hook(before, with_kwargs=True):
        yield tried


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "not enough memory for batches" in record.getMessage()]


@pytest.mark.parametrize("error", LACKS)
def test_errors_that_say_so(error: Exception) -> None:
    assert lacks_memory(error)
    assert lacks_memory(bare(error))


def test_other_errors_pass_at_once() -> None:
    assert not any(
        map(
            lacks_memory,
            (
                RuntimeError("shape mismatch"),
                OSError(errno.ENOENT, "gone"),
                ValueError("MemoryError"),
                KeyboardInterrupt(),
            ),
        )
    )
    calls: list[int] = []

    class Fitness:
        batch_size = 8

    def broken() -> None:
        calls.append(1)
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        Halving(Fitness)({}, broken)
    assert (len(calls), Fitness.batch_size) == (1, 8)


def test_what_the_failed_attempt_held_is_gone_before_the_next(caplog: pytest.LogCaptureFixture) -> None:
    held: list[Any] = []

    class Fitness:
        batch_size = 8

    def compute() -> int:
        assert not [tensor for tensor in held if tensor() is not None]
        activations = torch.ones(3)
        cycle: list[Any] = [activations]
        cycle.append(cycle)
        held.append(weakref.ref(activations))
        if Fitness.batch_size > 1:
            raise MemoryError
        return 7

    with caplog.at_level(logging.WARNING):
        assert Halving(Fitness)({}, compute) == 7
    assert len(held) == 4
    assert [text.split("in batches of ")[1].split(",")[0] for text in warned(caplog)] == ["4", "2", "1"]


def test_batches_depend_on_the_items_alone() -> None:
    """Whoever scored what before, a kill or another worker: the same items are in the same batches."""

    class Fitness:
        batch_size = 8

    fitness, tried = Fitness(), list[int]()

    def score(ids: dict[str, list[str]]) -> int:
        tried.append(fitness.batch_size)
        if fitness.batch_size * len(ids["a"][0]) > 8:  # long items
            raise MemoryError
        return fitness.batch_size

    short, long = {"a": ["1"]}, {"a": ["222"]}
    halving = Halving(fitness)
    assert [halving(ids, lambda ids=ids: score(ids)) for ids in (short, long, short, long)] == [8, 2, 8, 2]
    assert tried == [8, 8, 4, 2, 8, 2]  # and what is known is not tried again
    assert fitness.batch_size == 8


@pytest.mark.parametrize("error", LACKS[:3], ids=lambda error: type(error).__name__)
def test_classification_in_smaller_batches(problem: Problem, caplog: pytest.LogCaptureFixture, error: Any) -> None:
    items = {task: chosen[:8] for task, chosen in problem.items["search"].items()}
    ids = {task: [item.id for item in chosen] for task, chosen in items.items()}
    heads = make_heads(problem.sources, problem.vectors.parameters)
    model, tokenizer = problem.live.model, problem.live.processor

    def live(size: int) -> LiveFitness:
        fitness = Classification(heads, batch_size=size)
        return LiveFitness(model, fitness, fitness.prepare(tokenizer, items))

    expected, score = live(3)(ids), live(13)
    whole = score(ids)
    with room_for(3, model, error) as tried:
        outcome = score(ids)
        assert tried == [13, 6, *[3] * 8]
        assert len(warned(caplog)) == 2
        assert "In another search, fitness.batch_size=3 saves the attempts" in warned(caplog)[1]
        score(ids)
        assert tried[10:] == [3] * 8  # it stays
    for task, metrics in outcome.results.items():
        for metric, values in metrics.items():
            np.testing.assert_array_equal(values, expected.results[task][metric])
            np.testing.assert_allclose(values, whole.results[task][metric], atol=1e-5)
    with room_for(0, model, error) as tried, pytest.raises(type(error)):
        score(ids)
    assert tried == [3, 1]


@pytest.mark.parametrize("kind", ["lm_eval", "perplexity"])
def test_language_models_in_smaller_batches(language_family: Path, tmp_path: Path, kind: str) -> None:
    """Log-likelihoods and what is generated."""
    model: Any = AutoModelForCausalLM.from_pretrained(language_family / "base").eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(language_family / "base")

    def live(size: int) -> tuple[LiveFitness, dict[str, list[str]]]:
        if kind == "lm_eval":
            fitness, splits = read({name: write_task(tmp_path, name) for name in TASKS}, batch_size=size)
        else:
            file = write_jsonl(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in documents(40)])
            fitness = Perplexity(batch_size=size, window=16)
            splits = fitness.read({"texts": Task("texts", file, None, None, ())}, {})
        items = {task: chosen[:6] for task, chosen in splits["search"].items()}
        ids = {task: [item.id for item in chosen] for task, chosen in items.items()}
        return LiveFitness(model, fitness, fitness.prepare(tokenizer, items)), ids

    few, ids = live(2)
    expected, (score, _) = few(ids), live(10)
    score(ids)
    with room_for(2, model) as tried:
        outcome = score(ids)
    assert max(tried) > 2
    assert set(tried[-4:]) <= {1, 2}
    for task, metrics in outcome.results.items():
        for metric, values in metrics.items():
            np.testing.assert_array_equal(values, expected.results[task][metric])


def step(problem: Problem, tmp_path: Path, *overrides: str) -> Callable[[], Any]:
    """What takes a step of the gradient at 0.4, with a fitness of its own."""
    settings = plain(compose("model=pico", f"model.cache={tmp_path}", "loss.inputs=8", *overrides))
    size = settings["fitness"]["batch_size"]
    fitness = Classification(make_heads(problem.sources, problem.vectors.parameters), batch_size=size)
    parts = replace(under(problem, settings), fitness=fitness)
    evaluate = GradientEvaluator(parts, find_learning(parts, settings, Reporter()))
    batch = Batch(3, np.full((1, problem.space.dim), 0.4), gradient=True)
    return lambda: next(evaluate(batch, [0]))


def test_a_step_of_the_gradient_in_smaller_batches(problem: Problem, tmp_path: Path) -> None:
    model = problem.live.model
    expected = step(problem, tmp_path, "fitness.batch_size=4")()
    take = step(problem, tmp_path, "fitness.batch_size=16")
    with room_for(4, model) as tried:
        assert take() == expected
        assert tried == [8, 8, *[4] * 6]
    whole = step(problem, tmp_path)()
    np.testing.assert_allclose(whole.gradient, expected.gradient, rtol=1e-4, atol=1e-6)
    with room_for(0, model):
        trial = take()
    assert (trial.status, trial.error) == ("failed", "OutOfMemoryError")
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    problem.merger.restore()


def test_a_lack_of_memory_in_the_backward_pass(problem: Problem, tmp_path: Path) -> None:
    """Half of the gradients are there when it comes; the next attempt begins anew."""
    expected = step(problem, tmp_path, "fitness.batch_size=4")()
    sizes: list[int] = []

    def backward(gradient: torch.Tensor) -> None:
        sizes.append(len(gradient))
        if sizes[-1] > 4:
            raise LACKS[0]

    def forward(module: Any, inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            (output[0] if isinstance(output, tuple) else output).register_hook(backward)

    layer: Any = next(module for name, module in problem.live.model.named_modules() if name.endswith("layer.0"))
    with layer.register_forward_hook(forward):
        trial = step(problem, tmp_path, "fitness.batch_size=8")()
    assert max(sizes) > 4
    assert trial.error is None
    np.testing.assert_allclose(trial.gradient, expected.gradient, rtol=1e-6)
    problem.merger.restore()


def test_a_loss_that_compares_inputs_is_not_halved(problem: Problem, tmp_path: Path) -> None:
    take = step(problem, tmp_path, "loss=entropy_marginal")
    with room_for(4, problem.live.model) as tried:
        trial = take()
    assert tried == [8]
    assert trial.status == "failed"
    assert "loss.inputs=8 must be in one batch, and there is not enough memory for that: lower it" in trial.error
    assert take().status == "ok"  # with memory again
    problem.merger.restore()


def test_what_the_experts_say_in_smaller_batches(problem: Problem, tmp_path: Path) -> None:
    with room_for(5, problem.live.model) as tried:
        assert step(problem, tmp_path, "loss=jensen_shannon", "fitness.batch_size=20")().status == "ok"
    assert {20, 10, 5} <= set(tried)
    problem.merger.restore()


SMALL = """
import resource, sys
import torch
from evomerge.search.memory import Halving

class Fitness:
    batch_size = 16

def compute():
    return torch.ones(Fitness.batch_size, 2**24).shape[0]  # 64 MiB a row

torch.ones(1, 2**24)
pages = int(open("/proc/self/statm").read().split()[0])
room = pages * resource.getpagesize() + 300 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (room, room))
print(Halving(Fitness)({}, compute))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as Linux does")
def test_a_real_limit_of_memory() -> None:
    done = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) in (1, 2, 4)


NOTHING_LEFT = """
import resource, sys
from evomerge.search.memory import lacks_memory, recognised

odd = SystemError("error return without exception set"), RuntimeError("[enforce fail a")
print([lacks_memory(recognised(error)) for error in (*odd, TimeoutError("late"))])
pages = int(open("/proc/self/statm").read().split()[0])
room = pages * resource.getpagesize() + 2**20
resource.setrlimit(resource.RLIMIT_AS, (room, room))
print([lacks_memory(recognised(error)) for error in (*odd, TimeoutError("late"))])
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as Linux does")
def test_without_memory_an_error_may_say_anything() -> None:
    done = subprocess.run([sys.executable, "-c", NOTHING_LEFT], capture_output=True, text=True, timeout=99, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[False, False, False]", "[True, True, False]"]


LIMITED = """
import resource
from evomerge.common.machine import memory_limit

free = memory_limit()
resource.setrlimit(resource.RLIMIT_AS, (free // 2, free // 2))
print(free, memory_limit())
"""


def test_the_limit_of_memory_is_the_lowest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    free, limited = map(int, done.stdout.split())
    assert limited == free // 2
    (tmp_path / "job").write_text("12345678\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr("evomerge.common.machine.CGROUPS", (tmp_path / "none", tmp_path / "gone"))
    assert memory_limit() >= free
    monkeypatch.setattr("evomerge.common.machine.CGROUPS", (tmp_path / "none", tmp_path / "job"))
    assert memory_limit() == 12345678
