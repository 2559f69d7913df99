"""Arguments of a wrong form: every public argument is refused in evomerge's own words, before anything is done."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import evomerge as em
from evomerge.common.forms import checked, has_form
from evomerge.common.progress import Progress, Silent
from tests.processes.api_search import Net, score, tuned

ITEMS = em.items((str(i), i % 3) for i in range(90))
NET = Net()
WRONG = {
    **{"a number": 2.5, "none": None, "a list": [1, 2], "a mapping": {"a": 1}, "an array": np.ones(3)},
    **{"an object": object(), "a class": dict, "of text": {"weight": "ab"}, "texts": ["a"]},
}
SEARCH = [name for name in inspect.signature(em.search).parameters if name not in ("candidate", "fitness", "tasks")]
COMPARE = [name for name in inspect.signature(em.compare).parameters if name not in ("family", "fitness", "tasks")]
OF_FAMILY = (
    *(
        "auto_class",
        "device",
        "device_map",
        "compute",
        "vocabulary",
        "dequantise",
        "template",
        "allow_missing",
        "cache",
        "progress",
    ),
)
OF_CANDIDATE = ("space", "method", "transform", "sharing", "frozen", "tied", "bounds", "progress")
FEW = {"budget": 1, "searcher": "random", "items": 8, "select_items": 6, "report_items": 6}


@pytest.fixture(scope="module")
def candidate() -> em.Candidate:
    return em.Candidate(em.Family(NET, red=tuned(NET, 1), blue=tuned(NET, 2)))


@pytest.fixture(scope="module")
def result(candidate: em.Candidate) -> em.Result:
    return em.search(candidate, score, {"t": ITEMS}, **FEW)


def refused(call: Callable[[Any], object], right: Sequence[str] = ()) -> None:
    """Hold that each form but those that happen to be right is refused in evomerge's own words."""
    for name, value in WRONG.items():
        if name not in right:
            with pytest.raises(em.EvomergeError):
                call(value)


@pytest.mark.parametrize("argument", SEARCH)
def test_arguments_of_a_search(candidate: em.Candidate, argument: str) -> None:
    usual = inspect.signature(em.search).parameters[argument].default
    right = ["none"] if usual is None or argument in ("items", "time_limit") else []
    right += ["a number"] if argument in ("hours", "time_limit") else []
    right += ["an array"] * (argument == "baselines")

    def call(value: Any) -> None:
        em.search(candidate, score, {"t": ITEMS}, **{**FEW, argument: value})

    refused(call, right)


def test_what_a_search_is_of(candidate: em.Candidate) -> None:
    refused(lambda value: em.search(value, score, {"t": ITEMS}))
    refused(lambda value: em.search(candidate, value, {"t": ITEMS}, **FEW))
    refused(lambda value: em.search(candidate, score, value, **FEW))
    refused(lambda value: em.search(candidate, score, {"m": value}, **FEW))
    with pytest.raises(em.EvomergeError, match="The task 3 has no name"):
        em.search(candidate, score, {3: ITEMS})  # pyright: ignore[reportArgumentType]
    with pytest.raises(em.EvomergeError, match="3 holds no items: give a file"):
        em.search(candidate, score, {"m": 3})


@pytest.mark.parametrize("argument", OF_CANDIDATE)
def test_arguments_of_a_candidate(candidate: em.Candidate, argument: str) -> None:
    optional = inspect.signature(em.Candidate).parameters[argument].default is None
    refused(lambda value: em.Candidate(candidate.family, **{argument: value}), ["none"] * optional)


@pytest.mark.parametrize("argument", OF_FAMILY)
def test_arguments_of_a_family(argument: str) -> None:
    optional = argument == "compute" or inspect.signature(em.Family).parameters[argument].default is None
    right = [*["none"] * optional, *["texts"] * (argument == "allow_missing")]
    refused(lambda value: em.Family(NET, red=tuned(NET, 1), **{argument: value}), right)


@pytest.mark.parametrize("argument", COMPARE)
def test_arguments_of_a_comparison(candidate: em.Candidate, argument: str) -> None:
    usual = inspect.signature(em.compare).parameters[argument].default
    right = ["none"] if usual is None or argument == "time_limit" else []
    right += ["a number"] if argument == "time_limit" else []
    right += ["a list", "an array"] * (argument == "constants")
    few = {"methods": ["linear"], "constants": [1.0], "select_items": 6, "report_items": 6}

    def call(value: Any) -> None:
        em.compare(candidate.family, score, {"t": ITEMS}, **{**few, argument: value})

    refused(call, right)


def test_models_and_items(candidate: em.Candidate, result: em.Result) -> None:
    calls: dict[str, Callable[[Any], object]] = {
        "base": lambda value: em.Family(value, red=tuned(NET, 1)),
        "experts": lambda value: em.Family(NET, value),
        "expert": lambda value: em.Family(NET, red=value),
        "family": lambda value: em.Candidate(value),
        "set": candidate.set,
        "apply": candidate.apply,
        "source": em.items,
        "a split": lambda value: em.items({"search": value, "select": ["a"], "report": ["b"]}),
        "classes": lambda value: em.items([(f"{i}", "ab"[i % 2]) for i in range(90)], value),
        "result": em.evaluate,
        "compared": lambda value: em.compare(value, score, {"t": ITEMS}),
        "models": lambda value: em.evaluate(result, value),
        "split": lambda value: em.evaluate(result, "base", split=value),
        "load": em.load,
        "report": result.report,
        "save": result.save,
        "loss": lambda value: candidate.gradient(lambda model: value),
    }
    right = {"set": ["a number"], "split": ["none"], "report": ["none"]}
    right["a split"] = ["a list", "a mapping", "texts", "of text"]
    for name, call in calls.items():
        refused(call, right.get(name, ()))


@pytest.mark.parametrize("make", [em.cmaes, em.tpe, em.random, em.grid, em.gradient])
def test_settings_of_searchers(candidate: em.Candidate, make: Callable[..., em.Choice]) -> None:
    for name in (name for name in make().settings if name != "_target_"):
        right = ["a number", *["none"] * (make().settings[name] is None)]
        right += ["a list"] if name == "betas" else []

        def call(value: Any, name: str = name) -> None:
            em.search(candidate, score, {"t": ITEMS}, **{**FEW, "searcher": make(**{name: value})})

        refused(call, right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda c: em.Candidate(c.family, bounds={"weight": [1]}), r"bounds: weight has \[1\]: write \(low, high\)"),
        (lambda c: em.Candidate(c.family, bounds={"weight": 3}), r"write \{'weight': \(0, 1.5\)\}"),
        (lambda c: em.Candidate(c.family, space=3), "space=3 has a form that evomerge cannot use: write 'layer'"),
        (lambda c: em.Candidate(c.family, tied="weight/*"), r"write \['weight/\*/mood'\]"),
        (lambda c: em.Family(NET, red=tuned(NET, 1), device="gpu"), "device=gpu cannot be used here"),
        (lambda c: em.Family(NET, red=tuned(NET, 1), vocabulary="shard"), "did you mean 'shared'"),
        (
            lambda c: em.Family(NET, red=tuned(NET, 1), template="red"),
            "template='red' takes the tokenizer of an expert",
        ),
        (lambda c: em.search(c, em.cmaes(), {"t": ITEMS}), "is no fitness: give the name of one"),
        (lambda c: em.search(c, score, {"t": ITEMS}, searcher=em.perplexity()), "is no searcher"),
    ],
)
def test_messages(candidate: em.Candidate, wrong: Callable[[em.Candidate], object], message: str) -> None:
    with pytest.raises(em.EvomergeError, match=message):
        wrong(candidate)


def test_a_tokenizer_beside_a_directory_is_not_passed_over(pico_suite: Any) -> None:
    with pytest.raises(em.EvomergeError, match="tokenizer= is for a base that is a module"):
        em.Family(pico_suite.base, pico_suite.experts, tokenizer=object())


def test_models_in_memory_are_not_cast(result: em.Result, tmp_path: Any) -> None:
    with pytest.raises(
        em.EvomergeError, match="dtype=, max_shard_size= and exact= are for models that came from directories"
    ):
        result.save(tmp_path / "merged", dtype="bfloat16")


def test_forms_by_hand() -> None:
    assert has_form({"weight": (0, np.float32(1))}, Mapping[str, Sequence[float]])
    assert has_form({"weight": np.zeros(2)}, Mapping[str, Sequence[float]])
    assert not has_form({"weight": "ab"}, Mapping[str, Sequence[float]])
    assert has_form(np.int64(3), int | None)
    assert not has_form(True, int)
    assert not has_form(1.0, int)
    assert not has_form("ab", Sequence[str])
    assert not has_form({"a"}, Sequence[str])
    assert has_form(None, str | None)
    assert has_form(Silent(), Progress | None)
    assert not has_form(torch.nn.Linear(1, 1), Progress)


def test_only_arguments_with_an_example_are_looked_at() -> None:
    @checked(one="1")
    def function(one: int, *, two: int = 2) -> int:
        return one + two

    assert function(1, two=True) == 2
    assert str(inspect.signature(function)) == "(one: 'int', *, two: 'int' = 2) -> 'int'"
    with pytest.raises(em.EvomergeError, match="one='a' has a form that evomerge cannot use: write 1"):
        function("a")  # pyright: ignore[reportArgumentType]
