"""What a search will ask for, what items buy of it, what is often a mistake, and how much there is to judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.common.progress import Silent
from evomerge.fitness.base import Outcome
from evomerge.fitness.goal import Goal
from evomerge.fitness.items import Item
from evomerge.fitness.objectives import Objective
from evomerge.runs.budget import affordable
from evomerge.runs.build import make_searcher
from evomerge.runs.given import Given
from evomerge.runs.preflight import _cautions
from evomerge.runs.racing import racing_text
from evomerge.runs.run import run_search
from evomerge.runs.sampled import changing
from evomerge.runs.suite import Suite
from evomerge.search.evaluators.racing import Racing
from evomerge.searchers.base import Part, Searcher, parts_of
from evomerge.selection.choosing import merges, work
from tests.kit.evaluations import settings_of, sources_of
from tests.kit.helpers import box, compose


def searcher_of(*overrides: str, dim: int = 3) -> Searcher:
    settings = settings_of("model=pico", *overrides)
    return make_searcher(settings, box(dim), None if settings["start"] == "constants" else {"weight": 0.4})


@pytest.mark.parametrize(
    ("budget", "overrides", "expected"),
    [
        (50, ["searcher=cmaes"], [(False, 6, 1), (False, 44, 5)]),  # the mean as well
        (50, ["searcher=random", "start=0.4"], [(False, 50, 5)]),
        (50, ["searcher=grid", "searcher.coordinate=weight/p0/expert", "start=0.4"], [(False, 16, 5)]),
        (200, ["searcher=gradient"], [(False, 6, 1), (True, 60, 4)]),
        (200, ["searcher=gradient", "start=0.4"], [(True, 60, 4)]),
        (20, ["searcher=gradient", "start=0.4"], [(True, 20, 2)]),
        (4, ["searcher=gradient"], [(False, 4, 1)]),
        (
            200,
            ["searcher=gradient", "searcher.steps=null", "searcher.schedule=constant"],
            [(False, 6, 1), (True, 194, 10)],
        ),
        (200, ["searcher=hybrid"], [(False, 6, 1), (True, 60, 4), (False, 134, 5)]),
        (60, ["searcher=hybrid", "start=1/K"], [(True, 60, 4)]),
        (12, ["searcher=hybrid", "searcher.first.steps=5"], [(False, 6, 1), (True, 5, 1), (False, 1, 5)]),
    ],
)
def test_the_parts_of_a_search(budget: int, overrides: list[str], expected: list[tuple[bool, int, int]]) -> None:
    assert parts_of(searcher_of(*overrides), budget) == [Part(*part) for part in expected]


def test_one_coefficient_has_no_warm_start() -> None:
    assert parts_of(searcher_of("searcher=gradient", dim=1), 200) == [Part(True, 60, 4)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("searcher=cmaes", ""),
        ("searcher=cmaes fitness.rotate=true", ""),
        ("searcher=tpe", ""),
        (
            "searcher=tpe fitness.grow=0.5",
            "194 of 200 are not raced: the searcher compares generations",
        ),
        ("searcher=random fitness.rotate=true start=0.4", "none: the searcher compares generations"),
        ("searcher=topk searcher.akin=weights", "are not raced: the searcher does not say which points it goes by"),
        ("searcher=greedy start=0.4", "none: the searcher does not say which points it goes by"),
        ("searcher=hybrid", "60 of 200 are not raced: they are steps of a gradient"),
        ("searcher=gradient start=0.4", "none: they are steps of a gradient"),
        ("searcher=screened", "; none of a generation is dropped where those that were screened all count"),
        (
            "searcher=tpe searcher.share=0.5 searcher.batch=8",
            "; none of a generation is dropped where a regression goes",
        ),
    ],
)
def test_what_a_race_promises(given: str, said: str) -> None:
    ids = {"a": [str(i) for i in range(40)]}
    parts, other = parts_of(searcher_of(*given.split()), 200), changing(settings_of("model=pico", *given.split()))
    text = racing_text(Racing(0.1, 3, lambda: None), Objective("accuracy"), ids, parts, other, "grow" in given)
    assert text.endswith("fewer items (fitness.grow)") == ("grow" in given)
    assert said in text
    assert text.startswith("none") == said.startswith("none")
    assert ("not raced" in text) == ("not raced" in said)
    assert ("none of a generation" in text) == ("none of a generation" in said)


def counts(parts: list[Part]) -> tuple[int, ...]:
    return tuple(sum(part.count for part in parts if part.gradient is kind) for kind in (False, True))


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.builds(Part, st.booleans(), st.integers(1, 9)), max_size=4),
    items=st.integers(0, 300) | st.floats(0, 300),
    prices=st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_what_items_or_seconds_buy(parts: list[Part], items: float, prices: tuple[int, int]) -> None:
    bought, wanted = counts(affordable(parts, items, dict(enumerate(prices)))), counts(parts)
    assert all(0 <= one <= other for one, other in zip(bought, wanted, strict=True))
    assert sum(count * price for count, price in zip(bought, prices, strict=True)) <= items
    if sum(count * price for count, price in zip(wanted, prices, strict=True)) <= items:
        assert bought == wanted


def test_an_earlier_part_is_paid_first() -> None:
    bought = affordable([Part(False, 6), Part(True, 60), Part(False, 134)], 100, {False: 10, True: 7})
    assert counts(bought) == (6, 5)


def test_what_there_is_to_judge() -> None:
    sizes = {"search": 100, "select": 2000, "report": 3000}
    assert work((0.0, 1.5), 5, sizes) == (15 + 5 + 1) * 2000 + 4 * 3000
    goal = Goal("m", "m", normalised=True)
    assert work((0.0, 1.5), 5, sizes, goal) == (15 + 5 + 1 + 2) * 2000 + 4 * 3000  # and base and experts
    forget = Goal("m", "m", forget=("a",))
    assert (
        work((-1.0, 0.0), 5, {**sizes, "held_out": 500}, forget) == (21 + 5 + 1 + 1) * 2000 + 4 * 3500
    )  # and the base
    for low, high, count in ((0.15, 0.45, 3), (-0.05, 0.05, 15)):  # where no usual constant lies, as many others
        assert work((low, high), 5, {"select": 10, "report": 0}) == (count + 5 + 1) * 10


def test_how_often_choosing_merges() -> None:
    assert merges((0.0, 1.5), 5, []) == 21 + 2
    assert merges((0.0, 1.5), 5, [10, 20]) == 21 * 2 + 2
    assert merges((0.0, 1.5), 5, [60]) == 21 * 4 + 2
    assert merges((0.0, 1.5), 5, [9000, 900]) == 21 * 20 + 2
    assert merges((-1.0, 0.0), 5, [], Goal("m", "m", forget=("a",))) == 27 + 2


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["searcher=cmaes"], None),
        (["searcher=cmaes", "loss=entropy"], "the loss Entropy is not used"),
        (["searcher=cmaes", "fitness.rotate=true"], None),
        (["searcher=screened", "fitness.sampling=adaptive"], None),
        (["searcher=gradient", "fitness.rotate=true"], None),
        (["searcher=gradient", "start=0.4"], None),
        (["searcher=gradient", "start=0.4", "fitness.rotate=true"], "fitness.rotate=true is not used: this search"),
        (
            ["searcher=gradient", "start=0.4", "fitness.approximate=bfloat16"],
            "fitness.approximate=bfloat16 is not used: this search",
        ),
        (
            ["searcher=gradient", "start=0.4", "fitness.sampling=adaptive", "fitness.grow=0.5"],
            "fitness.grow=0.5 and fitness.sampling=adaptive are not used: this search takes steps of a gradient alone",
        ),
        (["searcher=tpe", "fitness.rotate=true"], "with fitness.rotate=true generations have other items each, and "),
        (["searcher=tpe", "searcher.share=0.5", "fitness.rotate=true"], "write searcher=cmaes, which compares"),
        (["searcher=tpe", "searcher.share=0.5", "searcher.batch=8", "fitness.rotate=true"], None),
        (["searcher=random", "fitness.grow=0.5"], "with fitness.grow generations have other items each, and this"),
        (
            ["searcher=topk", "searcher.akin=weights", "fitness.sampling=adaptive"],
            "which misleads it: write searcher=cmaes, which compares",
        ),
        (["searcher=cmaes", "searcher.lag=12", "evaluator=processes"], None),
        (["searcher=tpe", "searcher.lag=3"], "searcher.lag=3 lets workers go on, and this process scores alone"),
        (["searcher=hybrid", "searcher.second.lag=3"], "searcher.second.lag=3 lets workers go on"),
        (["searcher=cmaes", "searcher.lag=63", "evaluator=processes"], "lag=63 is more than two generations of"),
        (["searcher=cmaes", "budget=13"], None),
        (
            ["searcher=cmaes", "budget=12"],
            "leaves 6 of a first generation of 7 candidates, and CMA-ES learns",
        ),
        (
            ["searcher=cmaes", "start=0.4", "budget=6"],
            "Raise the budget by 1 of them or more, or lower searcher",
        ),
        (["searcher=cmaes", "budget=5"], "the budget leaves 0 of a first generation of 7"),
        (["searcher=screened", "budget=19"], "leaves 13 of a first generation of 14 candidates"),
        (["searcher=tpe", "loss=jensen_shannon"], "the loss JensenShannon is not used"),
        (["searcher=gradient", "loss=entropy"], None),
        (["searcher=gradient", "budget=66", "searcher.steps=60"], None),
        (["searcher=gradient", "budget=65", "searcher.steps=60"], "searcher.steps=60, but the budget leaves 59"),
        (["searcher=gradient", "budget=60", "searcher.steps=60", "start=0.3"], None),
        (["searcher=gradient", "budget=4", "searcher.steps=60"], "but the budget leaves 0,"),
        (["searcher=gradient", "budget=9", "searcher.schedule=constant"], None),
        (["searcher=gradient", "searcher.schedule=constant", "searcher.steps=null"], None),
        (["searcher=hybrid", "searcher.first.steps=20", "budget=26"], "which takes 20, and 20 are left for it: raise"),
        (["searcher=hybrid", "searcher.first.steps=20", "budget=27"], None),
        (
            ["searcher=hybrid", "searcher.first.steps=null", "searcher.first.schedule=constant"],
            "within the first part, which goes on for ever: write searcher.first.steps=60",
        ),
    ],
)
def test_cautions(overrides: list[str], expected: str | None) -> None:
    settings = settings_of("model=pico", *overrides)
    said = _cautions(settings, searcher_of(*overrides), settings["budget"])
    assert [expected in text for text in said if expected] == [True] * (expected is not None)
    assert len(said) == (expected is not None)


class Nothing:
    """No searcher."""

    def __init__(self, space: object, start: object, seed: int) -> None:
        pass

    def ask(self) -> None:
        """Ask nothing."""


def test_what_is_no_searcher_is_refused() -> None:
    settings = settings_of("model=pico") | {"searcher": {"_target_": f"{__name__}.Nothing"}, "start": 0.4}
    with pytest.raises(ConfigError, match="The searcher Nothing lacks needs, tell, stop and 1 more"):
        make_searcher(settings, box(3), {"weight": 0.4})


class Half:
    """A fitness that promises two metrics and gives one."""

    metrics, pure = ("score", "extra"), True

    def prepare(self, processor: object, items: dict[str, list[Item]]) -> None:
        """Nothing is to be prepared."""

    def __call__(self, model: object, prepared: object, ids: dict[str, list[str]]) -> Outcome:
        """Give each item a score, and nothing else."""
        return Outcome(ids, {task: {"score": np.ones(len(each))} for task, each in ids.items()})


def test_a_metric_that_a_fitness_does_not_give_is_named_before_the_search(pico_suite: Suite, tmp_path: Path) -> None:
    settings = [*sources_of(pico_suite, tmp_path / "cache"), "fitness.metric=extra", "fitness.report_metric=extra"]
    with pytest.raises(EvomergeError, match=r"The fitness fails on the base, .*extra"):
        run_search(compose(*settings, "budget=4"), tmp_path / "run", Silent(), given=Given(fitness=Half()))
