"""The guard: the live model is put back whatever was done to it, also midway, or the search ends."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BigBirdConfig,
    BigBirdModel,
    LlamaConfig,
    LlamaForCausalLM,
    XGLMConfig,
    XGLMForCausalLM,
)

from evomerge.cli.progress import Reporter
from evomerge.common import limits
from evomerge.common.errors import ConfigError, EvomergeError, LiveModelError
from evomerge.common.limits import TimeLimit
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.merging.merger import Merger
from evomerge.models.guard import Guard, ModelChanged
from evomerge.problem import Problem
from evomerge.runs.config import plain
from evomerge.runs.learning import find_learning
from evomerge.runs.run import run_search
from evomerge.search.evaluators.gradient import GradientEvaluator
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.evaluators.values import ValueEvaluator
from evomerge.trials import Batch
from tests.kit.classifiers import build_classifiers, save_classifiers
from tests.kit.damages import HARMLESS, HARMS, around_the_counters, layer, weight
from tests.kit.evaluations import is_base, sources_of, under
from tests.kit.helpers import compose
from tests.kit.models import LLAMA, TINY, pico


class Careless:
    """Wraps a fitness; does something to the model before or after a call of a number."""

    metrics = ("accuracy", "log_probability")
    pure = True

    def __init__(self, fitness: Any, harm: Callable[[Any], object], number: int, before: bool = False) -> None:
        self._fitness, self._harm, self._number, self._before = fitness, harm, number, before
        self.calls = itertools.count()
        self.prepare = fitness.prepare

    def __call__(self, model: Any, prepared: Any, ids: Any) -> Any:
        now = next(self.calls) == self._number
        if now and self._before:
            self._harm(model)
        outcome = self._fitness(model, prepared, ids)
        if now and not self._before:
            self._harm(model)
        return outcome


def trials(parts: Problem, harm: Callable[[Any], object] = id, before: bool = False, limit: Any = None) -> list[Any]:
    """Those of three candidates, to the second of which something is done."""
    items = {task: chosen[:8] for task, chosen in parts.items["search"].items()}
    fitness = Careless(parts.fitness, harm, 1, before)
    prepared = fitness.prepare(parts.live.processor, items)
    score = LiveFitness(parts.live.model, fitness, prepared, parts.merger.guard)
    evaluate = ValueEvaluator(
        SerialScorer(parts, {"search": score}, limit), Subset(items, 6, 0), Objective("log_probability")
    )
    points = np.random.default_rng(0).uniform(0, 0.6, (3, parts.space.dim))
    done = list(evaluate(Batch(0, points), [0, 1, 2]))
    parts.merger.restore()
    return done


@pytest.mark.parametrize("kind", HARMS)
def test_what_happens_before_a_candidate_is_scored(problem: Problem, kind: str) -> None:
    """Then it is scored on another model, or cannot be; whichever it is, it fails, and the next one is what it was."""
    clean, harmed = trials(problem), trials(problem, HARMS[kind][0], before=True)
    assert [harmed[0], harmed[2]] == [clean[0], clean[2]]
    assert harmed[1].status == "failed"
    assert is_base(problem)


@pytest.mark.parametrize("kind", ["half", "another", "data", "removed", "parametrised"])
def test_views_of_experts_with_heads_of_their_own(
    kind: str, pico_suite: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    save_classifiers(tmp_path, pico_suite, pooler=True)
    parts = build_classifiers(tmp_path, pico_suite)
    clean, harmed = trials(parts), trials(parts, HARMS[kind][0])
    assert [harmed[0], harmed[2]] == [clean[0], clean[2]]
    assert "ModelChanged" in str(harmed[1].error)
    assert clean[0].values != clean[2].values


def test_a_change_and_a_time_limit(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alarms that come while the model is put back wait."""
    monkeypatch.setattr(limits, "AGAIN", 0.02)
    monkeypatch.setattr(limits, "GRACE", 0)

    def harm(model: Any) -> None:
        model.half()
        time.sleep(10**6)

    put_back = Guard._put_back

    def slowly(self: Guard, *arguments: Any) -> None:
        time.sleep(0.2)
        put_back(self, *arguments)

    monkeypatch.setattr(Guard, "_put_back", slowly)
    clean, harmed = trials(problem), trials(problem, harm, limit=TimeLimit(2))
    assert [harmed[0], harmed[2]] == [clean[0], clean[2]]
    assert harmed[1].error == "TimeoutError: took longer than time_limit=2 s"
    assert is_base(problem)


def test_the_advice_works(problem: Problem) -> None:
    """A copy may be changed at will."""
    assert trials(problem, lambda model: copy.deepcopy(model).half().train()) == trials(problem)


def test_what_was_changed_between_two_calls_is_put_back_before_the_next(
    problem: Problem, caplog: pytest.LogCaptureFixture
) -> None:
    guard = problem.merger.guard
    coefficients = problem.space.constant(np.full(len(problem.space.rows), 0.3))
    problem.merger.apply(coefficients)
    expected = [parameter.clone() for parameter in problem.live.model.parameters()]
    problem.live.model.double()
    problem.merger.apply(coefficients)
    with guard:
        assert all(map(torch.equal, problem.live.model.parameters(), expected))
    assert "was changed while nothing scored it, and was put back: parameters in float64" in caplog.text
    problem.merger.restore()


@pytest.mark.parametrize("end", [id, lambda model: model.bad])
def test_a_model_that_cannot_be_put_back_ends_the_search(problem: Problem, end: Callable[[Any], object]) -> None:
    """Whatever else went wrong in that call, and under a time limit too."""
    model = copy.deepcopy(problem.live.model)
    guard = Guard(model, lambda: None, [name for name, _ in model.named_parameters()])

    def harm(model: Any) -> None:
        weight(model).data.untyped_storage().resize_(0)
        end(model)

    fitness = Careless(problem.fitness, harm, 0)
    items = {task: chosen[:2] for task, chosen in problem.items["search"].items()}
    score = LiveFitness(model, fitness, fitness.prepare(problem.live.processor, items), guard)
    evaluate = ValueEvaluator(
        SerialScorer(problem, {"search": score}, TimeLimit(60)), Subset(items, None, 0), Objective("accuracy")
    )
    batch = Batch(0, np.zeros((2, problem.space.dim)))
    for _ in range(2):  # and it stays so
        with pytest.raises(LiveModelError, match=r"cannot put it back .*no later score could be trusted"):
            next(evaluate(batch, [0]))
    problem.merger.restore()


def test_without_anything_to_write_values_anew(problem: Problem) -> None:
    """As in `inspect`: memory and form are put back; a change of values is the end."""
    model = copy.deepcopy(problem.live.model)
    guard = Guard(model)
    with pytest.raises(ModelChanged, match="parameters in float16"), guard:
        model.half()
    assert weight(model).dtype == torch.float32
    with pytest.raises(LiveModelError, match=r"values changed.*its parameters are kept nowhere else"), guard:
        around_the_counters(model)


def test_ctrl_c_and_an_error_of_ones_own_pass(problem: Problem) -> None:
    model = copy.deepcopy(problem.live.model)
    guard = Guard(model)
    with pytest.raises(KeyboardInterrupt), guard:
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), guard:
        _ = model.half().config.vocab_size / 0
    with guard:
        assert weight(model).dtype == torch.float32


@pytest.mark.parametrize("kind", HARMLESS)
def test_settings_are_as_they_were(problem: Problem, kind: str) -> None:
    model = copy.deepcopy(problem.live.model)
    guard, before = Guard(model), copy.deepcopy(model)
    with guard:
        HARMLESS[kind](model)
    assert vars(model.config) == vars(before.config)
    assert not any(p.requires_grad or p.grad is not None or p._backward_hooks for p in model.parameters())
    for one, other in zip(model.modules(), before.modules(), strict=True):
        numbers = {key: value for key, value in vars(other).items() if isinstance(value, bool | int | float | str)}
        assert {key: vars(one)[key] for key in numbers} == numbers
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


def test_rotary_positions_that_depend_on_what_was_run_before() -> None:
    """A long text replaces the frequencies of dynamic positions; the next candidate begins where the first one did."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    config = LlamaConfig(**TINY, num_key_value_heads=2, max_position_embeddings=8, rope_parameters=rope)
    model = pico(LlamaForCausalLM, config).eval().requires_grad_(False)
    guard, short, long = Guard(model), torch.arange(6)[None], torch.arange(20)[None]
    first = model(short).logits
    with guard:
        model(long)
    assert torch.equal(model(short).logits, first)
    model(long)
    grown = model(torch.arange(10)[None]).logits  # without the guard, what was run before decides
    with guard:
        model(long)
    assert not torch.equal(model(torch.arange(10)[None]).logits, grown)


LONGROPE = {
    **{"rope_type": "longrope", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 8},
    **{"short_factor": [1.0] * 8, "long_factor": [3.0] * 8},
}
OF_THEIR_OWN: dict[str, tuple[Any, Any]] = {
    "in place": (
        LlamaForCausalLM,
        LlamaConfig(**TINY, num_key_value_heads=2, max_position_embeddings=32, rope_parameters=LONGROPE),
    ),
    "buffers": (
        XGLMForCausalLM,
        XGLMConfig(vocab_size=64, d_model=16, ffn_dim=32, num_layers=1, attention_heads=2, max_position_embeddings=8),
    ),
    "modules": (BigBirdModel, BigBirdConfig(**TINY, block_size=1, num_random_blocks=1, attention_type="block_sparse")),
}
"""Architectures whose own forward pass changes the model, by the length of the text: how, and one of each."""


@pytest.mark.parametrize("way", OF_THEIR_OWN)
def test_what_a_forward_pass_changes_by_itself_is_no_damage_and_is_put_back(way: str) -> None:
    cls, config = OF_THEIR_OWN[way]
    model = pico(cls, copy.deepcopy(config)).eval().requires_grad_(False)
    guard, short, long = Guard(model), torch.arange(4)[None], torch.arange(30)[None]
    module = {name: kind for name, kind in model.named_modules()}
    tensors = {name: buffer.clone() for name, buffer in model.named_buffers()}
    said = []
    for text in (short, long, short, long):
        with guard:
            said.append(model(text)[0])
    assert torch.equal(said[0], said[2])
    assert torch.equal(said[1], said[3])
    assert dict(model.named_modules()) == module
    assert all(torch.equal(buffer, tensors[name]) for name, buffer in model.named_buffers())
    with pytest.raises(ModelChanged, match="modules added"), guard:
        model.more = nn.Linear(1, 1)
    with pytest.raises(LiveModelError, match="values changed"), guard:  # by somebody else, and kept nowhere
        next(model.parameters()).add_(1)


def test_a_buffer_that_was_expanded_is_left_alone() -> None:
    """Nobody can write to it, the guard included."""
    model = nn.Linear(3, 3).requires_grad_(False)
    model.register_buffer("mask", torch.ones(1, 1).expand(4, 4))
    before = model.weight.clone()
    guard = Guard(model, lambda: [p.copy_(before) for p in [model.weight]].clear(), ["weight"])
    for _ in range(2):
        with pytest.raises(ModelChanged, match="values changed: weight"), guard:
            model.weight.add_(1)
        assert torch.equal(model.weight, before)


def test_tied_parameters_and_their_aliases(language_family: Path) -> None:
    config = copy.deepcopy(LLAMA)
    config.tie_word_embeddings = True
    model: Any = pico(LlamaForCausalLM, config).eval().requires_grad_(False)
    guard = Guard(model)
    with pytest.raises(ModelChanged, match=r"parameters replaced: lm_head\.weight\)"), guard:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_generation_config_is_a_setting(language_family: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(language_family / "base").eval().requires_grad_(False)
    guard = Guard(model)
    with guard:
        model.generation_config.max_new_tokens = 3
        model.generation_config = None
        model.config.eos_token_id = 7
    assert model.generation_config.max_new_tokens is None
    assert model.config.eos_token_id == LLAMA.eos_token_id


class Between:
    """A fitness that gives logits, and does something to the model after those of its first task."""

    metrics, pure, same_classes = (), False, True

    def __init__(self, fitness: Any, harm: Callable[[Any], object]) -> None:
        self._fitness, self.harm = fitness, harm
        self.prepare, self.batch_size = fitness.prepare, fitness.batch_size

    def __call__(self, *arguments: Any) -> Any:
        raise NotImplementedError

    def logits(self, model: Any, prepared: Any, ids: Any) -> Iterator[Any]:
        yield from self._fitness.logits(model, prepared, ids)
        if "animals" in ids:
            self.harm(model)


@pytest.mark.parametrize("kind", ["half", "data", "hook", "train", "in place", "exits"])
def test_between_two_tasks_of_a_step_of_the_gradient(problem: Problem, tmp_path: Path, kind: str) -> None:
    settings = plain(compose("model=pico", f"model.cache={tmp_path}", "loss.inputs=4"))
    fitness: Any = Between(problem.fitness, id)
    parts = replace(problem, fitness=fitness)
    evaluate = GradientEvaluator(under(parts, settings), find_learning(parts, settings, Reporter()))
    batch = Batch(0, np.full((1, problem.space.dim), 0.4), gradient=True)
    clean = next(evaluate(batch, [0]))

    def leave(model: Any) -> None:
        model.half()
        raise SystemExit(0)

    more = {"train": lambda model: model.train(), "exits": leave}
    fitness.harm = more.get(kind) or HARMS[kind][0]
    failed = next(evaluate(batch, [0]))
    assert failed.status == "failed"
    assert ("Exited: SystemExit" if kind == "exits" else "ModelChanged: the model was changed") in str(failed.error)
    fitness.harm = id
    assert next(evaluate(batch, [0])) == clean
    assert not any(p.requires_grad or p.grad is not None for p in problem.live.model.parameters())
    problem.merger.restore()
    assert is_base(problem)


def test_an_expert_that_is_asked_what_a_gradient_learns_from(problem: Problem, tmp_path: Path) -> None:
    settings = plain(compose("model=pico", f"model.cache={tmp_path}", "loss=jensen_shannon", "loss.inputs=4"))
    fitness: Any = Between(problem.fitness, lambda model: model.half())
    with pytest.raises(ConfigError, match=r"animals cannot be asked .*ModelChanged: .* Another loss asks no expert"):
        find_learning(replace(under(problem, settings), fitness=fitness), settings, Reporter())
    assert is_base(problem)


CARELESS = """
import torch
calls = 0

def score(model, tokenizer, items):
    global calls
    calls += 1
    if calls >= {first}:
        {harm}
    return {{task: [float(next(model.parameters())[0, 0]) + len(item.text) for item in chosen]
            for task, chosen in items.items()}}
"""


@pytest.mark.parametrize(
    ("first", "harm", "kind", "message"),
    [
        (
            0,
            "raise SystemExit(0)",
            ConfigError,
            "normalised: the fitness fails on the base: Exited: SystemExit was rai",
        ),
        (1, "model.half()", ConfigError, "fails on the base, so it would fail on every candidate: ModelChanged: the m"),
        (1, "raise SystemExit(0)", ConfigError, "fails on the base.* Exited: SystemExit was raised with status 0"),
        (5, "next(model.parameters()).data[0] = 0", LiveModelError, "changed: .* cannot put it back .OSError: no disk"),
        (8, "model.half()", EvomergeError, "could be scored on the select split; the warnings say why"),
        (8, "next(model.parameters()).data[0] = 0", LiveModelError, "changed: .* cannot put it back .OSError: no disk"),
    ],
)
def test_a_search_by_a_function_that_always_does_it(
    first: int,
    harm: str,
    kind: type[Exception],
    message: str,
    pico_suite: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the base, in the search, and in the selection; where the base's files cannot be read, that is the end."""

    def fail(self: Merger) -> None:
        raise OSError("no disk")

    if kind is LiveModelError:
        monkeypatch.setattr(Merger, "_put_base_back", fail)
    (tmp_path / "careless.py").write_text(CARELESS.format(first=first, harm=harm))
    own = ["fitness=custom", f"fitness.function={tmp_path / 'careless.py'}:score", "space=model", "searcher=random"]
    given = [*sources_of(pico_suite, tmp_path), *own, "start=0.4", "budget=5", f"objective.normalised={first == 0}"]
    with pytest.raises(kind, match=message):
        run_search(compose(*given), tmp_path / "run", Reporter())


def test_only_what_a_call_left_behind_is_taken_away(problem: Problem) -> None:
    model = copy.deepcopy(problem.live.model)
    guard, seen = Guard(model), []
    handle = layer(model).register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(ModelChanged, match="hooks left behind or taken away"), guard:
        handle.remove()
    with guard:
        model(torch.arange(3)[None])
    assert seen == [1]
