"""The order on select, who is tested on report, and what the tests say: numbers by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evomerge.fitness.base import Outcome
from evomerge.selection.ranking import TESTED, finalists, held_against, order
from evomerge.selection.standings import OnReport, _on_report
from evomerge.selection.statistics import Paired, Score, chance_text, holm, two_sided


def outcome(values: list[float]) -> Outcome:
    return Outcome({"a": [str(i) for i in range(len(values))]}, {"a": {"m": np.array(values)}})


def test_holm_by_hand():
    # sorted .01 .02 .03 .5, times 4 3 2 1: .04 .06 .06 .5, each at least as large as those before it
    found = holm({"d": 0.5, "b": 0.02, "a": 0.01, "c": 0.03})
    assert list(found) == ["d", "b", "a", "c"]
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.5})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.03}) == {"a": 0.03}
    assert holm({}) == {}


def test_a_test_that_is_not_known_counts_as_one():
    assert holm({"a": 0.01, "b": None, "c": 0.02}) == {"a": pytest.approx(0.03), "b": None, "c": pytest.approx(0.04)}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_stays_between_the_chance_and_bonferroni(listed):
    chances = {str(i): chance for i, chance in enumerate(listed)}
    found = holm(chances)
    for name, chance in chances.items():
        assert chance <= found[name] <= min(1.0, len(chances) * chance) + 1e-12
        assert all(found[other] <= found[name] for other, lower in chances.items() if lower < chance)


def test_a_chance_is_that_of_the_normal_distribution():
    assert two_sided(Paired(0.03, 0.01)) == pytest.approx(2 * stats.norm.sf(3))
    assert two_sided(Paired(-0.03, 0.01)) == two_sided(Paired(0.03, 0.01))
    assert two_sided(Paired(0.0, 0.0)) == 1.0
    assert two_sided(Paired(0.1, 0.0)) == 0.0
    assert two_sided(Paired(0.1, math.nan)) is None
    assert two_sided(Paired(None, None)) is None
    assert [chance_text(one) for one in (None, 0.0004, 0.05)] == ["", "<0.001", "0.050"]


def test_the_best_come_first_and_equals_stay_in_their_order():
    assert order({"a": 1.0, "b": 3.0, "c": 3.0, "d": 2.0}) == ["b", "c", "d", "a"]
    assert order({"a": 0.3, "b": 0.1 + 0.2}) == ["a", "b"]


def test_task_arithmetic_takes_no_place_of_the_tested():
    names = [f"m{i}" for i in range(TESTED + 2)]
    assert finalists([names[0], "linear", *names[1:]], "linear") == names[:TESTED]
    assert finalists(["linear", "one"], "linear") == ["one"]


def test_what_is_tested_by_hand():
    rng = np.random.default_rng(0)
    linear = rng.random(400)
    better, same = linear + 0.1 + 0.1 * rng.standard_normal(400), linear + 0.1 * rng.standard_normal(400)
    worse = linear - 0.05
    rivals = {"better": better, "same": same, "worse": worse}
    found = held_against(
        {**{name: outcome(list(values)) for name, values in rivals.items()}, "broken": "it broke"},
        outcome(list(linear)),
        "m",
        None,
    )
    assert {name: one.verdict for name, one in found.items()} == {
        **{"better": "better", "same": "same", "worse": "worse"},
        "broken": "",
    }
    assert found["broken"] == OnReport(error="it broke")
    difference, score = found["same"].difference, found["same"].score
    assert difference
    assert score
    assert difference.diff == pytest.approx(np.mean(same - linear))
    assert difference.se == pytest.approx(stats.sem(same - linear))
    assert score == Score(score.mean, score.se, {"a": score.mean}, {"a": score.se})
    # of three known chances and one that counts as 1, two are as large as this one: times 2
    z = difference.diff / difference.se
    assert found["same"].chance == pytest.approx(2 * stats.norm.sf(abs(z)))
    assert found["same"].corrected == pytest.approx(min(1, 2 * 2 * stats.norm.sf(abs(z))))


@pytest.mark.parametrize(
    ("tested", "best", "corrected"),
    [
        (1, "linear and the best other were scored", "where there is none."),
        (2, "linear and the 2 best others were scored", "where there is none, corrected for 2 tests (Holm)."),
    ],
)
def test_how_many_were_tested_is_said_in_words(tested: int, best: str, corrected: str) -> None:
    scored, chances = _on_report("linear", tested)
    assert best in scored
    assert chances.endswith(corrected)
