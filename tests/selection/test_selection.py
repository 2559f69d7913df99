from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evomerge.common.errors import EvomergeError
from evomerge.fitness.base import Outcome
from evomerge.fitness.goal import Goal
from evomerge.fitness.objectives import Objective
from evomerge.search.stopping import Stopped
from evomerge.searchers.base import Incumbent
from evomerge.selection.choosing import constants_within, select
from evomerge.selection.racing import choose
from evomerge.selection.statistics import Paired, paired, score_of


def outcome(**results) -> Outcome:
    return Outcome(
        {task: [str(i) for i in range(len(values))] for task, values in results.items()},
        {task: {"m": np.array(values, dtype=float)} for task, values in results.items()},
    )


def drawn(seed: int) -> tuple[Outcome, Outcome]:
    """Two models on the same items of unequal tasks: most items go alike, as with two merges."""
    rng = np.random.default_rng(seed)
    one = {"a": rng.random(80) < 0.7, "b": rng.random(300) < 0.5, "c": rng.random(150) < 0.9}
    other = {task: np.where(rng.random(len(v)) < 0.85, v, rng.random(len(v)) < 0.5) for task, v in one.items()}
    return outcome(**one), outcome(**other)


def resampled(values: dict[str, np.ndarray], weights: dict[str, float], seed: int = 0) -> float:
    """The standard error of the weighted mean by the bootstrap, items drawn anew within each task."""
    rng = np.random.default_rng(seed)
    total = sum(weights.values())
    means = sum(weights[t] / total * rng.choice(v, (4000, len(v))).mean(1) for t, v in values.items())
    return float(np.std(means))


def test_by_hand():
    result = score_of(outcome(a=[1, 0, 1, 1], b=[0, 1]), "m")
    assert result.tasks == {"a": 0.75, "b": 0.5}
    assert result.mean == 0.625
    assert result.tasks_se == pytest.approx({"a": math.sqrt(1 / 16), "b": math.sqrt(1 / 4)})
    # s² of a: 3/16 * 4/3 = 1/4, over 4 items; s² of b: 1/2, over 2; each weighs 1/2
    assert result.se == pytest.approx(0.5 * math.sqrt(1 / 16 + 1 / 4))
    assert score_of(outcome(a=[1, 0, 1, 1], b=[0, 1]), "m", {"b": 3}).mean == pytest.approx(0.25 * 0.75 + 0.75 * 0.5)


def test_paired_by_hand():
    one, other = outcome(a=[1, 0, 1, 1], b=[0, 1]), outcome(a=[1, 1, 0, 0], b=[0, 0])
    result = paired(one, other, "m")
    # differences of a: 0 -1 1 1, s² = 11/12, over 4 items; of b: 0 1, s² = 1/2, over 2
    assert result.diff == pytest.approx(0.5 * 0.25 + 0.5 * 0.5)
    assert result.se == pytest.approx(0.5 * math.sqrt(11 / 48 + 1 / 4))
    assert result.tasks == {"a": 0.25, "b": 0.5}
    assert result.tasks_se == pytest.approx({"a": math.sqrt(11 / 48), "b": 0.5})


def test_against_scipy():
    one, other = drawn(0)
    for task in one.results:
        x, y = one.results[task]["m"], other.results[task]["m"]
        alone = [Outcome({task: o.items[task]}, {task: o.results[task]}) for o in (one, other)]
        assert score_of(alone[0], "m").se == pytest.approx(stats.sem(x))
        difference = paired(*alone, "m")
        assert difference.diff / difference.se == pytest.approx(stats.ttest_rel(x, y).statistic)


@pytest.mark.parametrize("weights", [None, {"a": 5, "b": 1, "c": 2}, {"a": 0}])
def test_against_the_bootstrap(weights):
    one, other = drawn(1)
    full = {task: (weights or {}).get(task, 1.0) for task in one.results}
    values = {task: metrics["m"] for task, metrics in one.results.items()}
    differences = {task: values[task] - metrics["m"] for task, metrics in other.results.items()}
    assert score_of(one, "m", weights).se == pytest.approx(resampled(values, full), rel=0.06)
    assert paired(one, other, "m", weights).se == pytest.approx(resampled(differences, full), rel=0.06)


def test_nineteen_of_twenty_intervals_cover_the_truth():
    covered = 0
    for seed in range(400):
        one, _ = drawn(seed)
        result = score_of(one, "m")
        covered += abs(result.mean - 0.7) < 1.96 * result.se  # (0.7 + 0.5 + 0.9) / 3
    assert 0.92 < covered / 400 < 0.98


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_pairing_is_antisymmetric_and_agrees_with_the_means(seed):
    one, other = drawn(seed)
    forth, back = paired(one, other, "m"), paired(other, one, "m")
    assert forth.diff == pytest.approx(-back.diff)
    assert forth.se == pytest.approx(back.se)
    assert forth.diff == pytest.approx(score_of(one, "m").mean - score_of(other, "m").mean)
    nothing = dict.fromkeys(one.results, 0.0)
    assert paired(one, one, "m") == Paired(0.0, 0.0, nothing, nothing)


def test_pairing_pays_where_models_agree():
    one, other = drawn(2)
    apart = math.hypot(score_of(one, "m").se, score_of(other, "m").se)
    assert paired(one, other, "m").se < 0.7 * apart


@pytest.mark.parametrize(
    "items", [{"a": ["0", "2", "1"]}, {"a": ["0", "1"]}, {"b": ["0", "1", "2"]}, {"a": ["0", "1", "2"], "b": []}]
)
def test_different_items_are_not_paired(items):
    one = outcome(a=[1, 0, 1])
    other = Outcome(items, {task: {"m": np.ones(len(ids))} for task, ids in items.items()})
    with pytest.raises(ValueError, match="the same items in the same order"):
        paired(one, other, "m")


def test_one_item_has_no_standard_error():
    result = score_of(outcome(a=[1], b=[0, 1]), "m")
    assert result.mean == 0.75
    assert math.isnan(result.se)
    assert math.isnan(result.tasks_se["a"])
    assert result.tasks_se["b"] == pytest.approx(0.5)


IDS = {"a": [str(i) for i in range(120)], "b": [str(i) for i in range(240)]}


def part_of(rows: dict[str, np.ndarray], part) -> Outcome:
    items = {task: list(chosen) for task, chosen in part.items()}
    return Outcome(items, {task: {"m": rows[task][[int(i) for i in chosen]]} for task, chosen in items.items()})


def fields() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    chances = {"low": 0.3, "high": 0.9, "middle": 0.6}
    return {name: {t: (rng.random(len(i)) < p).astype(float) for t, i in IDS.items()} for name, p in chances.items()}


@pytest.mark.parametrize("aggregate", ["mean", "worst"])
def test_the_best_is_chosen_and_who_is_clearly_behind_is_spared(aggregate):
    rows, scored = fields(), []

    def score(name, part):
        scored.append((name, tuple(part["a"])))
        return part_of(rows[name], part)

    objective = Objective("m", aggregate)
    chosen = choose(rows, score, objective, IDS)
    assert chosen.name == "high"
    assert len(set(scored)) == len(scored)  # each is scored once on an item
    assert chosen.seen["high"] == 360
    assert chosen.values["high"] == objective(part_of(rows["high"], IDS))[0][0]
    assert chosen.spared == 3 * 360 - sum(chosen.seen.values())
    if aggregate == "worst":  # no sum over items: nobody is dropped
        assert set(chosen.seen.values()) == {360}
    else:
        assert chosen.seen["low"] < 360 > chosen.seen["middle"]


def test_normalised_values_are_raced_as_well():
    rows = fields()
    objective = Objective("m", weights={"b": 3}, ends={"a": (0.1, 0.9), "b": (0.2, 0.4)})
    chosen = choose(rows, lambda name, part: part_of(rows[name], part), objective, IDS)
    assert chosen.name == "high"
    assert chosen.seen["low"] < 360
    found = part_of(rows["low"], IDS), part_of(rows["high"], IDS)
    worth = objective.weights_of(IDS)
    assert worth is not None
    by_hand = sum(worth[t] * float(np.mean(rows["high"][t] - rows["low"][t])) for t in IDS)
    assert by_hand == pytest.approx(objective(found[1])[0][0] - objective(found[0])[0][0])


def test_of_equals_the_first_wins_and_none_is_dropped():
    rows = fields()["high"]
    chosen = choose(["two", "one"], lambda name, part: part_of(rows, part), Objective("m"), IDS)
    assert chosen.name == "two"
    assert set(chosen.seen.values()) == {360}


def test_few_items_are_scored_in_one_go():
    ids, asked = {"a": ["0", "1"], "b": ["0"] * 3}, []

    def score(name, part):
        asked.append(name)
        return part_of(fields()[name], part)

    choose(["low", "high"], score, Objective("m"), ids)
    assert asked == ["low", "high"]


def worth(values):
    """Models whose every item is worth the same, or that fail."""

    def score(name, part):
        if isinstance(values[name], type):
            raise values[name]
        return Outcome(dict(part), {task: {"m": np.full(len(ids), values[name])} for task, ids in part.items()})

    return score


def test_one_that_fails_costs_itself_alone_and_a_stop_stops():
    models = worth({"broken": RuntimeError, "stop": Stopped, "fine": 0.1})
    chosen = choose(["broken", "fine"], models, Objective("m"), IDS)
    assert (chosen.name, chosen.values["broken"], chosen.seen["broken"]) == ("fine", -math.inf, 0)
    with pytest.raises(EvomergeError, match="None of broken could be scored"):
        choose(["broken"], models, Objective("m"), IDS)
    with pytest.raises(Stopped):
        choose(["fine", "stop"], models, Objective("m"), IDS)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_never_chosen(bad):
    models = worth({"bad": bad, "low": -5.0, "high": -4.0})
    for names in (["bad", "low", "high"], ["low", "high", "bad"]):
        assert choose(names, models, Objective("m"), IDS).name == "high"


class Bench:
    """A judge of two models without a model: what `act` makes of a name and a split is what an item is worth."""

    bounds = (0.0, 0.35)
    negated = ()
    other = None
    ids: ClassVar = {"select": {"a": ["0", "1"]}}

    def scored(self, items):
        pass

    def begin(self, asked):
        pass

    def __init__(self, act):
        self._act = act

    def decode(self, x):
        return {"weight": np.array(x)}

    constant = within = decode

    def same(self, one, other):
        return np.array_equal(one["weight"], other["weight"])

    def merged(self, coefficients, split, part=None):
        return outcome(a=[1.0, self._act(f"merge {coefficients['weight']}", split)])

    def remember(self, coefficients, split, outcome):
        pass

    def base(self, split):
        return outcome(a=[1.0, self._act("base", split)])

    def experts(self, split):
        return outcome(a=[1.0, self._act("experts", split)])


def chosen(act, normalised=False):
    return select(Bench(act), Goal("m", "m", normalised=normalised), {"best": Incumbent(np.array(9.0), (2, 1))})


def test_the_trial_of_each_finalist_is_told():
    assert chosen(lambda name, split: 0.5).select.trials == {"best": (2, 1), "constant 0.1": None}


def raising(name, split):
    def act(model, on):
        if (model, on) == (name, split):
            raise ZeroDivisionError("of my own")
        return 2.0 if model == "merge 9.0" else 0.5

    return act


@pytest.mark.parametrize(
    ("name", "split", "said"),
    [
        ("base", "report", "the base cannot be scored on the report split"),
        ("experts", "report", "the experts cannot be scored on the report split"),
        ("merge 0.1", "report", r"the best constant \(0\.1\) cannot be scored on the report split"),
        ("merge 9.0", "report", r"the winner \(best\) cannot be scored on the report split"),
        ("base", "select", "the base, or an expert, cannot be scored on the select split"),
    ],
)
def test_a_model_that_fails_where_it_is_needed_is_named(name, split, said):
    with pytest.raises(EvomergeError, match=rf"{said}: ZeroDivisionError: of my own\. The trial log is whole: "):
        chosen(raising(name, split), normalised=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_not_reported(bad):
    with pytest.raises(EvomergeError, match=r"the base cannot .*m of 1 of 2 items of a is not a finite number"):
        chosen(lambda model, split: bad if (model, split) == ("base", "report") else 0.5)


def test_a_stop_and_a_limit_are_no_failures():
    for error in (Stopped, TimeoutError):

        def act(model, split, error=error):
            if split == "report":
                raise error
            return 0.5

        with pytest.raises(error):
            chosen(act)


@pytest.mark.parametrize(("limit", "held"), [(">= 0.9 * base", True), (">= 1.9 * base", False)])
def test_a_winner_of_one_value_that_violates_a_constraint_is_told(limit, held):
    def act(name, split):
        return {"base": 0.5, "merge 9.0": 0.9, "merge 0.1": 0.8}.get(name, 0.7)

    selection = select(Bench(act), Goal("m", "m", constraints={"a": limit}), {"best": Incumbent(np.array(9.0))})  # type: ignore[arg-type]
    limits = selection.limits
    assert limits is not None
    assert limits.held == held
    assert selection.select.winner == "best"  # the one that lacks least, if all do
    lack = 1 - (1 + 0.9) / (float(limit.split()[1]) * 1.5)
    assert (limits.select, limits.report) == ({"a": pytest.approx(lack)}, {"a": pytest.approx(lack)})
    assert bool(limits.marks) == bool(limits.doubts) == (not held)


@pytest.mark.parametrize(("sure", "winner"), [(0.0, "bold"), (1.0, "safe"), (9.0, "constant 0.1")])
def test_a_finalist_that_may_lack_a_little_gives_way_to_one_that_does_not(sure, winner):
    """The bold one is best, and holds the limit by less than a standard error."""
    worth = {"bold": [0.0, 2.6], "safe": [1.0, 1.2], "base": [1.0, 1.0], "constant": [1.0, 1.0]}

    class Unsure(Bench):
        def merged(self, coefficients, split, part=None):
            return outcome(a=worth[{9.0: "bold", 8.0: "safe"}.get(float(coefficients["weight"]), "constant")])

        def base(self, split):
            return outcome(a=worth["base"])

    goal = Goal("m", "m", constraints={"a": ">= 0.98 * base"}, sure=sure)
    incumbents = {"bold": Incumbent(np.array(9.0)), "safe": Incumbent(np.array(8.0))}
    selection = select(Unsure(lambda name, split: 0.5), goal, incumbents)
    assert selection.select.winner == winner
    assert selection.limits is not None
    assert selection.limits.held
    assert (selection.limits.missed == selection.limits.select) == (winner == "constant 0.1")  # which has no error
    assert bool(selection.limits.missed) == bool(sure)


def test_constants_reach_as_far_as_the_bounds():
    assert constants_within(0, 1.5) == [round(0.1 * i, 1) for i in range(1, 16)]
    assert constants_within(0, 3)[15:] == [2, 2.5, 3]
    assert constants_within(1.6, 1.8) == pytest.approx(np.linspace(1.6, 1.8, 15))
