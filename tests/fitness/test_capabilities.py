"""What a fitness can do is seen by what it has; a part of a capability is refused, and so is what is no fitness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from evomerge.common.code import code_of
from evomerge.common.errors import ConfigError
from evomerge.fitness.base import Outcome
from evomerge.fitness.capabilities import (
    Batched,
    Checking,
    Differentiable,
    Exporting,
    Headed,
    Identified,
    Measuring,
    Reads,
    Requirements,
    check_whole,
    identity,
    requirements,
)
from evomerge.fitness.classification import Classification
from evomerge.fitness.command import Command
from evomerge.fitness.custom import Custom
from evomerge.fitness.lm_eval.harness import LmEval
from evomerge.fitness.perplexity import Perplexity
from evomerge.runs.checks import make_fitness
from evomerge.runs.learning import check_learning
from tests.kit.evaluations import settings_of

PROTOCOLS = {Batched, Checking, Differentiable, Exporting, Headed, Identified, Measuring, Reads}


class Plain:
    """The least that a fitness is."""

    metrics = ("length",)
    pure = True

    def prepare(self, processor: Any, items: Mapping[str, Sequence[Any]]) -> Any:
        return items

    def __call__(self, model: Any, prepared: Any, ids: Mapping[str, Sequence[str]]) -> Outcome:
        raise NotImplementedError


class Nothing:
    """No fitness at all."""


class Read(Plain):
    """Reads, but has not all that belongs to it."""

    task_settings = ()

    def read(self, tasks: Any, further: Any) -> Any:
        raise NotImplementedError


class Written(Read):
    """Reads what is no task of a language model, and gives logits."""

    same_classes = True

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.data_sets: dict[str, list[str]] = {}

    def logits(self, model: Any, prepared: Any, ids: Mapping[str, Sequence[str]]) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("fitness", "can"),
    [
        (Classification(), {Batched, Differentiable, Headed}),
        (Perplexity(), {Batched, Differentiable, Reads}),
        (LmEval(), {Batched, Differentiable, Reads, Checking, Measuring, Identified}),
        (Custom("tests.kit.user_fitness:score"), {Identified}),
        (Command("true {model} {items} {out}"), {Exporting, Identified}),
        (Plain(), set()),
        (Written(), {Differentiable, Reads}),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_each_can_do(fitness: Any, can: set[Any]) -> None:
    check_whole(fitness)
    assert {protocol for protocol in PROTOCOLS if isinstance(fitness, protocol)} == can


def test_what_a_plain_one_needs_and_is() -> None:
    assert requirements(Plain()) == Requirements(processor=True, language_head=False)
    assert identity(Plain()) == {"code": code_of(Plain)}  # which is not ours


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Read, "The fitness Read lacks warnings, data_sets. It has `read`, so it must have all that Reads has"),
        (Nothing, "The fitness Nothing lacks metrics, pure, prepare and 1 more. Whatever scores models must"),
    ],
)
def test_a_part_is_refused(target: type, message: str) -> None:
    settings = settings_of("model=pico")["fitness"] | {"_target_": f"{target.__module__}.{target.__qualname__}"}
    for name in ("batch_size", "max_length"):
        del settings[name]
    with pytest.raises(ConfigError) as error:
        make_fitness(settings)
    assert str(error.value).startswith(message)


def test_who_reads_by_itself_may_compare_classes_and_need_no_language_model() -> None:
    """Reading says nothing of classes or heads: another protocol does."""
    settings = settings_of("model=pico", "searcher=gradient", "loss=jensen_shannon")
    check_learning(settings, Written())
    assert not requirements(Written()).language_head
    with pytest.raises(ConfigError, match="under the fitness Perplexity items have none that are the same for all"):
        check_learning(settings, Perplexity())
