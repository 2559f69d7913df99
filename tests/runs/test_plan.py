"""What a search will ask for, what a budget of items buys of it, and how much there is to judge in the end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from evomerge.runs.config import plain
from evomerge.runs.plan import Part, affordable, judged, plan
from evomerge.space.coefficients import Variable, make_space
from tests.kit.helpers import box, compose


def settings_of(*overrides: str) -> dict[str, Any]:
    return plain(compose("model=pico", *overrides))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["searcher=cmaes", "budget=50"], [(False, 50)]),
        (["searcher=gradient"], [(False, 6), (True, 60)]),
        (["searcher=gradient", "start=0.4"], [(True, 60)]),
        (["searcher=gradient", "start=0.4", "budget=20"], [(True, 20)]),
        (["searcher=gradient", "budget=4"], [(False, 4)]),
        (["searcher=gradient", "searcher.steps=null", "searcher.schedule=constant"], [(False, 6), (True, 194)]),
        (["searcher=hybrid"], [(False, 6), (True, 60), (False, 134)]),
        (["searcher=hybrid", "start=1/K", "budget=60"], [(True, 60)]),
        (["searcher=hybrid", "searcher.first.steps=5", "budget=12"], [(False, 6), (True, 5), (False, 1)]),
    ],
)
def test_the_parts_of_a_search(overrides: list[str], expected: list[tuple[bool, int]]) -> None:
    parts = plan(settings_of(*overrides), box(3), gradient="cmaes" not in overrides[0])
    assert parts == [Part(*part) for part in expected]


def test_one_coefficient_has_no_warm_start() -> None:
    assert plan(settings_of("searcher=gradient"), box(1), gradient=True) == [Part(True, 60)]


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.builds(Part, st.booleans(), st.integers(1, 9)), max_size=4),
    items=st.none() | st.integers(0, 300),
    prices=st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_what_items_buy(parts: list[Part], items: int | None, prices: tuple[int, int]) -> None:
    bought = affordable(parts, items, *prices)
    wanted = tuple(sum(part.count for part in parts if part.gradient is kind) for kind in (False, True))
    assert all(0 <= one <= other for one, other in zip(bought, wanted, strict=True))
    assert items is None or sum(count * price for count, price in zip(bought, prices, strict=True)) <= items
    if items is None or sum(count * price for count, price in zip(wanted, prices, strict=True)) <= items:
        assert bought == wanted


def test_an_earlier_part_is_paid_first() -> None:
    assert affordable([Part(False, 6), Part(True, 60), Part(False, 134)], 100, 10, 7) == (6, 5)


@pytest.mark.parametrize(
    ("overrides", "steps", "models"),
    [
        (["searcher=random"], 0, 15 + 5 + 1),
        (["searcher=cmaes"], 0, 15 + 4 + 1),  # and the mean
        (["searcher=cmaes", "objective.normalised=true"], 0, 15 + 4 + 1 + 2),  # and base and experts
        (["searcher=gradient"], 60, 15 + 3 + 1),
        (["searcher=hybrid"], 60, 15 + 3 + 1 + 4 + 1),
    ],
)
def test_what_there_is_to_judge(overrides: list[str], steps: int, models: int) -> None:
    assert judged(settings_of(*overrides), box(3), steps, 2000, 3000) == models * 2000 + 4 * 3000


def test_constants_within_the_bounds() -> None:
    for low, high, count in ((0.15, 0.45, 3), (-0.05, 0.05, 15)):  # where no usual constant lies, as many others
        space = make_space("tensor", {"p": (1,)}, ["e"], [Variable("weight", low, high, low)])
        assert judged(settings_of("searcher=random"), space, 0, 10, 0) == (count + 5 + 1) * 10
