"""Top-k greedy merging, on values that a table gives: what it merges, when it ends, and which settings it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evomerge.common.errors import ConfigError
from evomerge.searchers.topk import TopK, _Model
from evomerge.space.coefficients import CoefficientSpace, make_space
from evomerge.space.variable import Variable
from tests.kit.searching import drive

SHAPES = {"layers.0.w": (2,), "layers.1.w": (2,)}
WEIGHT = Variable("weight", 0.0, 1.5, 0.4)


def searcher_of(granularity: str = "model", **settings: Any) -> tuple[CoefficientSpace, TopK]:
    space = make_space(granularity, SHAPES, ["a", "b", "c", "d"], (WEIGHT,))
    return space, TopK(space, space.start({"weight": 1.0}), 0, **settings)


def said(space: CoefficientSpace, x: np.ndarray) -> str:
    """The quarters and so on that each expert has: `a`, `a/2 b/2`."""
    weights = space.decode(x)["weight"][0]
    return " ".join(row if w == 1 else f"{row}/{1 / w:g}" for row, w in zip(space.rows, weights, strict=True) if w)


def asked(goal: list[float], granularity: str = "model", **settings: Any) -> tuple[list[list[str]], str]:
    """Each generation, and the best, where a model is the better the nearer its weights are to some."""
    space, searcher = searcher_of(granularity, **settings)

    def value(x: np.ndarray) -> float:
        return -float(np.square(space.decode(x)["weight"] - goal).sum())

    batches = drive(searcher, value, 100)
    assert searcher.stop() is not None
    return [[said(space, x) for x in b.points] for b in batches], said(space, searcher.incumbents()["best"].x)


@pytest.mark.parametrize("granularity", ["model", "layer", "line"])
def test_the_best_are_merged_two_by_two(granularity: str) -> None:
    generations, best = asked([0.6, 0.3, 0.2, 0.1], granularity, k=2, explore=False)
    assert generations == [
        ["a", "b", "c", "d"],
        ["a/2 b/2"],
        ["a/1.33333 b/4"],  # the merge and a, which are the best two now
        ["a/1.6 b/2.66667"],
    ]
    assert best == "a/1.6 b/2.66667"


def test_the_best_one_explores() -> None:
    """Beside the pairs of the best, with what is least akin: an expert that it has nothing of."""
    generations, _ = asked([0.5, 0.3, 0.1, 0.25], k=2)
    assert generations[1] == ["a/2 b/2"]  # all are as little akin, and b is the best of them
    assert generations[2][-1] == "a/4 b/4 d/2"


def test_near_kin_are_not_merged() -> None:
    """The cosine of a/2 b/2 and a is .71."""
    assert asked([0.6, 0.3, 0.2, 0.1], k=2, explore=False, kin=0.7)[0] == [["a", "b", "c", "d"], ["a/2 b/2"]]


def gram_of(vectors: np.ndarray) -> np.ndarray:
    """The inner products of four task vectors in each of two groups, of vectors (2, 4, n)."""
    return np.einsum("gjn,gkn->gjk", vectors, vectors)


def test_kinship_is_that_of_the_models_and_not_of_their_weights() -> None:
    """Its own numbers beside whole models: merges of task vectors, put one after the other."""
    vectors = np.random.default_rng(1).normal(size=(2, 4, 30))
    space, searcher = searcher_of("layer", akin="task_vectors", gram=gram_of(vectors))
    pair = np.random.default_rng(2).uniform(0, 1, (2, space.dim))
    one, other = (np.einsum("gk,gkn->gn", space.decode(x)["weight"], vectors).ravel() for x in pair)
    models = [_Model(x, 0.0, at) for at, x in enumerate(pair)]
    assert searcher._kinship(*models) == pytest.approx(one @ other / np.sqrt((one @ one) * (other @ other)), abs=1e-8)


def test_experts_that_are_nearly_the_same_are_not_merged() -> None:
    """a and b are the best two, and one model but for its length; by weights they would be merged first."""
    vectors = np.zeros((1, 4, 4))
    vectors[0] = np.eye(4)
    vectors[0, 1] = 2 * vectors[0, 0]
    settings = {"k": 2, "explore": False, "akin": "task_vectors", "gram": gram_of(vectors)}
    assert asked([0.6, 0.5, 0.2, 0.1], **settings)[0] == [["a", "b", "c", "d"]]
    assert asked([0.6, 0.2, 0.5, 0.1], **settings)[0][1] == ["a/2 c/2"]
    assert asked([0.6, 0.5, 0.2, 0.1], k=2, explore=False)[0][1] == ["a/2 b/2"]
    least = asked([0.6, 0.5, 0.2, 0.1], **{**settings, "explore": True})[0][1]
    assert least == ["a/2 c/2"]  # c has nothing of a, and b is all of it


def test_models_that_fail_are_left_out() -> None:
    space, searcher = searcher_of()
    batches = drive(searcher, lambda x: {"a": None, "b": float("nan")}.get(said(space, x), float(x.sum())), 100)
    assert [said(space, x) for x in batches[1].points] == ["c/2 d/2"]
    space, searcher = searcher_of()
    assert len(drive(searcher, lambda x: None, 100)) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 1}, "write 2 or more"),
        ({"kin": 1.5}, "write 0.9"),
        ({"akin": "task_vector"}, "did you mean 'task_vectors'"),
        ({"akin": "task_vectors"}, "write akin=weights"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        searcher_of(**settings)
