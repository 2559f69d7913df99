"""The picture of fronts: a panel for each two tasks, the points of each arm in it."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import plot_fronts as plot

ARMS = {
    "random": [{"scores": [{"a": 0.1, "b": 0.2, "c": 0.3}]}, {"scores": [{"a": 0.4, "b": 0.5, "c": 0.6}]}],
    "nsga2": [{"scores": [{"a": 0.7, "b": 0.8, "c": 0.9}]}],
}


def test_each_two_tasks_have_a_panel_with_the_points_of_all_seeds() -> None:
    panels = plot.draw(ARMS, list(ARMS)).axes
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in panels] == [("a", "b"), ("a", "c"), ("b", "c")]
    for axes in panels:
        random, nsga2 = axes.get_lines()
        assert list(random.get_xdata()) == [found["scores"][0][axes.get_xlabel()] for found in ARMS["random"]]
        assert list(nsga2.get_ydata()) == [ARMS["nsga2"][0]["scores"][0][axes.get_ylabel()]]


def test_it_is_written_and_an_unknown_arm_is_named(tmp_path: Path) -> None:
    results, out = tmp_path / "results.json", tmp_path / "fronts.png"
    results.write_text(json.dumps({"arms": ARMS}))
    plot.main([str(results), "--out", str(out), "--arms", "nsga2"])
    assert out.stat().st_size > 1000
    with pytest.raises(SystemExit, match="Unknown arm 'nsga': did you mean 'nsga2'"):
        plot.main([str(results), "--arms", "nsga"])
