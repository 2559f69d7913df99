"""Barriers by hand: the loss above the straight line between two ends, with its paired standard error."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.cli.curves import show_curves
from evomerge.cli.progress import Reporter
from evomerge.fitness.base import Outcome
from evomerge.selection.curves import ALPHAS, curve_of

IDS = {"a": [f"i{i}" for i in range(6)]}
NOISE = np.array([0.3, -0.2, 0.1, -0.4, 0.25, -0.05])


def outcomes(losses: list[float], noise: float = 1.0) -> list[Outcome]:
    """Six items around each loss; noise is the same at all points but for one item in the middle."""
    found = []
    for i, loss in enumerate(losses):
        values = loss + noise * NOISE
        values[0] += 0.06 * (i == 5)
        values[1] -= 0.06 * (i == 5)
        found.append(Outcome(IDS, {"a": {"m": -values}}))
    return found


def test_a_barrier_is_above_the_line_between_the_ends() -> None:
    losses = [*np.interp(ALPHAS, [0, 0.25, 0.5, 0.75, 1], [1.0, 1.2, 1.4, 2.1, 2.0])]
    found = curve_of("x", "y", outcomes(losses, 0), "m")
    assert found.losses == pytest.approx(losses)
    rises = [loss - (1 - alpha) * 1.0 - alpha * 2.0 for alpha, loss in zip(ALPHAS, losses, strict=True)]
    assert found.barrier == pytest.approx(max(rises))
    assert found.above_mean == pytest.approx(max(losses) - 1.5)
    assert not found.flat


def test_the_standard_error_is_that_of_paired_differences() -> None:
    losses = [1.0] * 11
    losses[5] = 1.1
    found = curve_of("x", "y", outcomes(losses), "m")
    differences = np.array([0.16, 0.04, 0.1, 0.1, 0.1, 0.1])
    assert found.barrier == pytest.approx(0.1)
    assert found.se == pytest.approx(differences.std(ddof=1) / np.sqrt(6))


def test_a_valley_has_no_barrier() -> None:
    found = curve_of("x", "y", outcomes([1 - 0.2 * alpha * (1 - alpha) for alpha in ALPHAS]), "m")
    assert (found.barrier, found.se, found.flat) == (0.0, None, True)  # the ends are on the line by definition
    assert found.above_mean == pytest.approx(0.0)


def test_no_barrier_has_no_standard_error_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    valley = curve_of("x", "y", outcomes([1 - 0.2 * alpha * (1 - alpha) for alpha in ALPHAS]), "m")
    show_curves([valley], Reporter())
    row = next(line for line in capsys.readouterr().out.splitlines() if "x to y" in line)
    assert [cell.strip() for cell in row.split("│")][-3] == "none"
