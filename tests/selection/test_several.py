"""The selection of a search with several values, on models that are rows of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from evomerge.common.errors import EvomergeError
from evomerge.common.names import listed
from evomerge.fitness.base import Outcome
from evomerge.fitness.goal import Goal, Valued
from evomerge.runs.fronts import missed_of
from evomerge.search.stopping import Stopped
from evomerge.searchers.base import Incumbent
from evomerge.selection.choosing import Selection, work
from evomerge.selection.front import Front
from evomerge.selection.limits import LEAST
from evomerge.selection.several import select_front

ITEMS = 40


def outcome(skill: float, safety: float, seed: int = 0, length: float = 10.0, tasks=("skill", "safe")) -> Outcome:
    """A model that is right on so many of 40 items of each task."""
    rng = np.random.default_rng(seed)
    right = {"skill": skill, "safe": safety}
    rows = {
        task: {
            "m": (rng.permutation(ITEMS) < round(right[task] * ITEMS)).astype(float),
            "length": np.full(ITEMS, length),
        }
        for task in tasks
    }
    return Outcome({task: [str(i) for i in range(ITEMS)] for task in tasks}, rows)


class Bench:
    """A judge of models without a model: a weight w up to .35 trades skill (2w) against safety (1 - w/2); what is above
    is found by a search, by its name.
    """

    bounds = (0.0, 0.35)
    other = None

    def __init__(self, found: Mapping[float, Any], base: tuple[float, float] = (0.1, 0.95)) -> None:
        self.ids = {split: {t: [str(i) for i in range(ITEMS)] for t in ("skill", "safe")} for split in SPLITS}
        self.sizes = dict.fromkeys(SPLITS, 2 * ITEMS)
        self.found, self.ends = found, base
        self.asked: list[tuple[Any, str]] = []
        self.counted = 0

    def scored(self, items: int) -> None:
        self.counted += items

    def begin(self, asked) -> None:
        list(asked)

    def decode(self, x):
        return {"weight": np.array(x, dtype=float)}

    constant = within = decode

    def named(self, coefficients):
        return {"weight": {"all": {"expert": float(coefficients["weight"])}}}

    def merged(self, coefficients, split, part=None) -> Outcome:
        weight = float(coefficients["weight"])
        self.asked.append((weight, split))
        self.counted += 2 * ITEMS
        row = self.found.get(weight, (2 * weight, 1 - weight / 2))
        if isinstance(row, type):
            raise row("of my own")
        return outcome(*row, seed=crc32(f"{weight} {split}".encode()))

    def base(self, split) -> Outcome:
        self.counted += 2 * ITEMS
        return outcome(*self.ends)

    def experts(self, split) -> Outcome:
        self.counted += 2 * ITEMS
        return outcome(0.9, 0.99, tasks=("skill",))


SPLITS = ("select", "report")
GOAL = Goal("m", "m", "pareto")
FOUND = {1.0: (0.7, 0.875), 2.0: (0.9, 0.5), 3.0: (0.5, 0.5), 4.0: (0.8, 0.8)}


def chosen(found: Mapping[float, Any] = FOUND, goal: Goal = GOAL, **how) -> tuple[Selection, Front, Bench]:
    judge = Bench(found, **how)
    incumbents = {f"front_{int(w)}": Incumbent(np.array(w), (2, int(w))) for w in found}
    selection = select_front(judge, goal, incumbents)  # type: ignore[arg-type]
    assert selection.front is not None
    return selection, selection.front, judge


def test_the_front_is_what_no_finalist_dominates_and_each_point_is_reported_once():
    selection, front, judge = chosen()
    assert [(point.name, point.finalist) for point in front.points] == [
        ("point_1", "front_2"),
        ("point_2", "front_4"),
        ("point_3", "front_1"),
        ("point_4", "constant 0.2"),
    ]
    assert front.dominated == ["front_3"]
    assert front.violating == []
    assert front.chosen == "point_2"  # the knee
    assert (front.winner.trial, front.winner.coefficients) == ((2, 4), {"weight": {"all": {"expert": 4.0}}})
    assert selection.coefficients["weight"] == 4.0
    assert selection.select.winner == "front_4"
    assert sorted(w for w, split in judge.asked if split == "report") == [0.2, 0.2, 1.0, 2.0, 4.0]
    assert {split: front.winner.select[split].mean for split in front.values} == {"skill": 0.8, "safe": 0.8}
    assert selection.report["winner"].tasks == {"skill": 0.8, "safe": 0.8}


def test_what_each_point_gains_is_paired_with_the_best_constant_and_the_experts():
    selection, front, _ = chosen()
    assert selection.select.constant == "0.2"  # the knee of constants, which all lie on one line: the most even
    winner, constant = front.winner, front.best_constant
    assert constant.name == "constant 0.2"
    assert winner.over["skill"].diff == pytest.approx(0.8 - 0.4)
    assert winner.over["safe"].diff == pytest.approx(0.8 - 0.9)
    assert 0 < (winner.over["skill"].se or 0) < 0.15
    assert winner.experts["skill"].diff == pytest.approx(-0.1)
    assert "safe" not in winner.experts  # that task has no expert
    assert [model.name for model in front.constants if model.report] == ["constant 0.2"]
    assert set(front.experts[0].report) == {"skill"}


def test_a_rule_said_beforehand_chooses_another_point_and_another_constant():
    goal = Goal("m", "m", "pareto", choose={"at_least": {"safe": "0.8"}, "best": "skill"})
    selection, front, _ = chosen(goal=goal)
    assert (front.chosen, front.met) == ("point_2", True)
    assert selection.select.constant == "0.3"
    goal = Goal("m", "m", "pareto", choose={"at_least": {"safe": "1.05 * base"}, "best": "skill"})
    selection, front, _ = chosen(goal=goal)
    assert (front.winner.finalist, front.met) == ("constant 0.1", False)


def test_a_constraint_that_is_violated_is_never_chosen_in_silence():
    goal = Goal("m", "m", "pareto", constraints={"safe": ">= 0.9 * base"})
    selection, front, _ = chosen(goal=goal)
    assert [point.finalist for point in front.points] == ["front_1", "constant 0.2"]
    assert front.violating == ["front_2", "front_3", "front_4"]
    assert front.dominated == []
    limits = selection.limits
    assert limits is not None
    assert limits.held
    assert limits.marks == limits.doubts == []
    assert front.winner.lacks == {"safe": pytest.approx((0.9 * 0.95 - 0.875) / (0.9 * 0.95))}


def test_where_all_violate_the_one_that_violates_least_is_named_as_such():
    goal = Goal("m", "m", "pareto", constraints={"safe": ">= 1.2 * base"})
    selection, front, _ = chosen(goal=goal)
    assert [point.finalist for point in front.points] == ["constant 0.1"]
    assert front.violating == ["front_1", "front_2", "front_3", "front_4"]
    limits = selection.limits
    assert limits is not None
    assert limits.marks[0].startswith(LEAST)
    assert "safe >= 1.2 * base is missed by 16.7%" in limits.doubts[0]
    assert limits.doubts[0].startswith("No finalist holds all constraints on the select items, so")
    assert "missed" not in limits.to_plain()  # as earlier versions wrote it, so that they read it
    plain = front.to_plain()
    assert not {"missed", "unsure"} & {*plain, *plain["base"], *plain["points"][0], *plain["constants"][0]}


def test_what_holds_but_not_surely_is_never_called_a_violation():
    """By hand: .875 and .9 of .95 hold 0.9 times it, .8 and .5 do not, and nobody holds it by 9 standard errors."""
    goal = Goal("m", "m", "pareto", constraints={"safe": ">= 0.9 * base"}, sure=9.0)
    selection, front, _ = chosen(goal=goal)
    assert [point.finalist for point in front.points] == ["constant 0.1"]
    assert (front.violating, front.unsure) == (["front_2", "front_3", "front_4"], ["front_1"])
    point, limits = front.winner, selection.limits
    assert limits is not None
    assert point.lacks["safe"] > 0 > point.missed["safe"] == pytest.approx((0.9 * 0.95 - 0.95) / (0.9 * 0.95))
    assert (limits.held, limits.select, limits.missed) == (False, point.lacks, point.missed)
    said = "safe >= 0.9 * base holds, but not by 9 standard errors"
    assert missed_of(limits, point) == f"{said} on select"
    assert limits.marks == [f"no finalist holds all constraints by 9 standard errors, and it lacks least: {said}"]
    (doubt,) = limits.doubts
    assert f"the one that lacks least: {said}. Loosen" in doubt
    assert "violate" not in doubt
    assert "missed" not in doubt
    failed = replace(limits, report={"safe": 0.02})
    assert "and not on the report items: safe >= 0.9 * base is missed by 2.0%. Ask" in failed.doubts[1]
    assert "holds all constraints on the select items, and" not in "".join(replace(failed, missed={}).doubts)
    missed = replace(limits, missed={"safe": 0.03}, report={"safe": 0.02})
    assert len(missed.doubts) == 1
    assert "lacks least: safe >= 0.9 * base is missed by 3.0%. Loosen" in missed.doubts[0]
    assert Front.from_plain(front.to_plain()) == front


def test_points_that_the_base_beats_are_named():
    _, front, _ = chosen()
    assert front.doubts == []
    _, front, _ = chosen(base=(0.8, 0.9))
    beaten = [point.name for point in front.points if point.finalist != "front_2"]  # which has more skill
    assert len(beaten) == len(front.points) - 1 > 1
    assert front.doubts == [
        f"On the select items the base is as good as {listed(beaten)} in every value, and better in one: by these "
        f"values, nothing is gained there."
    ]


def test_hypervolume_counts_from_the_worst_of_base_and_constants():
    _, front, _ = chosen()
    assert front.reference == {"skill": pytest.approx(0.1), "safe": pytest.approx(0.85)}
    by_hand = (0.7 - 0.1) * (0.875 - 0.85) + (0.4 - 0.1) * (
        0.9 - 0.875
    )  # the others are no safer than a constant of .3
    assert front.hypervolume["select"] == front.hypervolume["report"] == pytest.approx(by_hand)
    assert 0 < front.hypervolume["constants"] < by_hand


def test_values_to_be_small_are_shown_as_the_metric_has_them():
    valued = {"skill": Valued(("skill",)), "short": Valued(None, "length", True)}
    found = {1.0: (0.6, 0.9, 12.0), 2.0: (0.9, 0.5, 30.0)}

    class Sized(Bench):
        def merged(self, coefficients, split, part=None):
            skill, safety, *length = self.found.get(float(coefficients["weight"]), (0.2, 0.9, 25.0))
            return outcome(skill, safety, 1, *length)

    judge = Sized(found)
    incumbents = {"a": Incumbent(np.array(1.0)), "b": Incumbent(np.array(2.0))}
    front = select_front(judge, Goal("m", "m", valued=valued), incumbents).front  # type: ignore[arg-type]
    assert front is not None
    assert front.minimised == ["short"]
    assert [(p.finalist, p.select["short"].mean) for p in front.points] == [("b", 30.0), ("a", 12.0)]
    assert front.points[1].over["short"].diff == pytest.approx(12 - 25)
    assert front.reference["short"] == 25.0
    assert front.dominated == ["constant 0.1"]


def test_one_that_fails_costs_itself_alone_and_a_stop_stops():
    selection, front, _ = chosen({**FOUND, 5.0: ZeroDivisionError})
    assert selection.select.finalists["front_5"] == -np.inf
    assert selection.select.seen["front_5"] == 0
    assert "front_5" not in [*front.dominated, *front.violating, *(point.finalist for point in front.points)]
    with pytest.raises(Stopped):
        chosen({1.0: Stopped})

    class Broken(Bench):
        def merged(self, coefficients, split, part=None):
            raise ZeroDivisionError("all of them")

    with pytest.raises(EvomergeError, match="could be scored on the select split"):
        select_front(Broken({}), GOAL, {"a": Incumbent(np.array(1.0))})  # type: ignore[arg-type]


def test_two_finalists_that_are_one_point_are_one_point():
    judge = Bench({1.0: (0.6, 0.875)})
    incumbents = {name: Incumbent(np.array(1.0), (0, i)) for i, name in enumerate(("first", "second"))}
    front = select_front(judge, GOAL, incumbents).front  # type: ignore[arg-type]
    assert front is not None
    assert [point.finalist for point in front.points] == ["first", "constant 0.2"]
    assert front.dominated == []


def test_all_items_that_were_said_beforehand_are_counted():
    _, _, judge = chosen()
    assert judge.counted == work(judge.bounds, len(FOUND), judge.sizes, GOAL)


def test_json_brings_it_back():
    _, front, _ = chosen(goal=Goal("m", "m", "pareto", constraints={"safe": ">= 0.9 * base"}))
    assert Front.from_plain(asdict(front)) == front
