from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.common.errors import ConfigError
from evomerge.fitness.base import Outcome
from evomerge.fitness.objectives import Objective, task_weights

SCORES = st.dictionaries(st.sampled_from("abcdef"), st.floats(-50, 50), min_size=1)
WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.floats(1e-3, 1e3))


def outcome(scores: dict[str, Any]) -> Outcome:
    """An outcome with these means, each of two items."""
    results = {task: {"m": np.array([score - 1, score + 1])} for task, score in scores.items()}
    return Outcome({task: ["1", "2"] for task in scores}, results)


def value(objective: Objective, scores: dict[str, Any]) -> float:
    (number,), violations = objective(outcome(scores))
    assert violations == ()
    return number


def among(weights, scores):
    return {task: weight for task, weight in weights.items() if task in scores}


def test_by_hand():
    scores = {"a": 0.2, "b": 0.8, "c": 0.5}
    assert value(Objective("m"), scores) == pytest.approx(0.5)
    assert value(Objective("m", weights={"a": 2, "b": 0}), scores) == pytest.approx((2 * 0.2 + 0.5) / 3)
    assert value(Objective("m", "worst"), scores) == pytest.approx(0.2)
    ends = {"a": (0.1, 0.3), "b": (0.5, 0.7), "c": (0.0, 1.0)}
    assert value(Objective("m", ends=ends), scores) == pytest.approx((0.5 + 1.5 + 0.5) / 3)
    assert value(Objective("m", "worst", ends=ends), scores) == pytest.approx(0.5)


def test_it_takes_the_metric_that_it_names():
    results = {"a": {"accuracy": np.array([1.0, 0.0]), "log_probability": np.array([-1.0, -3.0])}}
    assert Objective("accuracy")(Outcome({"a": ["1", "2"]}, results)) == ((0.5,), ())
    assert Objective("log_probability")(Outcome({"a": ["1", "2"]}, results)) == ((-2.0,), ())


@settings(max_examples=50, deadline=None)
@given(SCORES, WEIGHTS)
def test_the_mean_lies_between_worst_and_best(scores, weights):
    mean = value(Objective("m", weights=among(weights, scores)), scores)
    assert min(scores.values()) - 1e-9 <= mean <= max(scores.values()) + 1e-9
    assert value(Objective("m", "worst"), scores) == pytest.approx(min(scores.values()))


@settings(max_examples=50, deadline=None)
@given(SCORES, st.floats(1e-2, 1e2))
def test_only_the_proportions_of_the_weights_count(scores, factor):
    weights = {task: 1.0 + i for i, task in enumerate(scores)}
    scaled = {task: factor * weight for task, weight in weights.items()}
    expected = value(Objective("m", weights=weights), scores)
    assert value(Objective("m", weights=scaled), scores) == pytest.approx(expected, abs=1e-9)
    assert sum(task_weights(scaled, scores).values()) == pytest.approx(1)


@settings(max_examples=50, deadline=None)
@given(SCORES, st.sampled_from(["mean", "worst"]), st.floats(0.1, 10), st.floats(-10, 10))
def test_normalised_the_base_is_zero_the_experts_one_and_units_do_not_matter(scores, aggregate, scale, shift):
    base = {task: score - 1 - i for i, (task, score) in enumerate(scores.items())}
    expert = {task: score + 2 + i for i, (task, score) in enumerate(scores.items())}
    objective = Objective("m", aggregate, ends={task: (base[task], expert[task]) for task in scores})
    assert value(objective, base) == pytest.approx(0, abs=1e-9)
    assert value(objective, expert) == pytest.approx(1)

    def scaled(s):
        return {task: scale * score + shift for task, score in s.items()}

    other = Objective("m", aggregate, ends={t: (scaled(base)[t], scaled(expert)[t]) for t in scores})
    assert value(other, scaled(scores)) == pytest.approx(value(objective, scores), abs=1e-6)


@pytest.mark.parametrize("aggregate", ["mean", "worst"])
@pytest.mark.parametrize("task", ["a", "b", "c"])
def test_one_score_that_is_no_number_makes_the_value_none(aggregate, task):
    assert math.isnan(value(Objective("m", aggregate), {"a": 0.2, "b": 0.8, "c": 0.5, task: math.nan}))


def test_a_missing_weight_is_one():
    assert task_weights({"b": 3}, {"a": 0, "b": 0}) == {"a": 0.25, "b": 0.75}
    assert task_weights(None, {"a": 0, "b": 0}) == {"a": 0.5, "b": 0.5}
    assert task_weights({"a": 0}, {"a": 0, "b": 0}) == {"a": 0, "b": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aggregate": "median"}, "objective.aggregate is 'median'; write one of mean, worst"),
        (
            {"ends": {"a": (0.4, 0.4)}},
            r"task a cannot be .*its expert scores 0\.4000, no better than the base",
        ),
        ({"ends": {"a": (0.4, 0.3)}}, "no better than the base .*Use objective.normalised=false"),
        ({"ends": {"a": (-2.3, -2.2999)}}, r"its expert scores -2\.2999, hardly better than the base"),
        ({"ends": {"b": (0.0, 1.0), "a": (0.5, 0.5 + 1e-7)}}, "task a .*hardly better than the base"),
        ({"ends": {"a": (math.nan, 0.3)}}, "no better than the base"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ConfigError, match=message):
        Objective("m", **settings)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"newz": 1}, "names the task 'newz', which is not there. Did you mean 'news'?"),
        ({"news": 0, "tweets": 0}, "the weight of one task must be positive"),
    ],
)
def test_weights_that_do_not_fit_the_tasks(weights, message):
    with pytest.raises(ConfigError, match=message):
        Objective("m", weights=weights)(outcome({"news": 1.0, "tweets": 2.0}))
