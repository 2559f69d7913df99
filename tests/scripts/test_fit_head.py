"""Heads that are fitted to a base as it is."""

# pyright: reportMissingImports=false

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from evomerge.cli.progress import Reporter
from evomerge.runs.build import build_problem
from evomerge.runs.suite import Suite
from evomerge.search.evaluators.splits import live_fitness
from tests.kit.evaluations import settings_of, sources_of

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import fit_head
from suite_builder import probes


def test_a_probe_is_the_ridge_regression_that_predicts_unseen_items_best() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 3
    features = rng.normal(size=(40, 6)) * [1, 5, 1, 1, 1, 0.1] + 0.8 * np.eye(3)[labels] @ rng.normal(size=(3, 6)) + 2
    x = np.c_[(features - features.mean(0)) / features.std(0), np.ones(40)]
    targets = np.eye(3)[labels]

    def fit(rows: np.ndarray, ridge: float) -> np.ndarray:
        penalty = 40 * ridge * np.diag([1.0] * 6 + [0.0])  # the mean is not shrunk
        return np.linalg.solve(x[rows].T @ x[rows] + penalty, x[rows].T @ targets[rows])

    def unseen(ridge: float) -> np.ndarray:
        return np.array([x[i] @ fit(np.delete(np.arange(40), i), ridge) for i in range(40)])

    losses = {
        (ridge, scale): -log_softmax(scale * predictions, axis=1)[np.arange(40), labels].mean()
        for ridge in probes.RIDGES
        for predictions in [unseen(ridge)]
        for scale in probes.SCALES
    }
    ridge, scale = min(losses, key=lambda pair: losses[pair])
    assert probes.RIDGES[0] < ridge < probes.RIDGES[-1]
    weight, bias, found = probes.fit_probe(features, labels, 3)
    assert found == scale
    np.testing.assert_allclose(scale * features @ weight.T + bias, scale * x @ fit(np.arange(40), ridge), atol=1e-5)


def test_a_feature_that_hardly_moves_is_left_out() -> None:
    """Its weight would make logits of whatever another model has there."""
    labels = np.arange(40) % 2
    features = np.random.default_rng(0).normal(size=(40, 3)) * [1, 1, 1e-7] + 0.5 * labels[:, None] * [1, 1, 1e-7]
    weight, _, _ = probes.fit_probe(features, labels, 2)
    assert (weight[:, 2] == 0).all()
    assert np.abs(weight[:, :2]).max() > 0


def test_the_base_is_as_good_as_it_says_with_a_head_that_is_fitted_to_it(
    pico_suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, items = tmp_path / "heads" / "trees.safetensors", pico_suite.tasks["trees"].items
    fit_head.main(["--base", str(pico_suite.base), "--items", str(items), "--out", str(head)])
    found = re.search(r"fitted to 200 items, right on ([\d.]+)% of 120 others", capsys.readouterr().out)
    task = f"fitness.tasks={{trees: {{items: {items}, head: {head}}}}}"
    problem = build_problem(settings_of(*sources_of(pico_suite, tmp_path / "cache"), task), Reporter())
    score = live_fitness(problem, problem.items["search"])
    right = score({"trees": [item.id for item in problem.items["search"]["trees"]]}).scores()["trees"]["accuracy"]
    assert found is not None
    assert float(found[1]) == pytest.approx(100 * right, abs=0.05)
    assert right > 0.6  # of classes that are named by its experts' heads, the base knows few
