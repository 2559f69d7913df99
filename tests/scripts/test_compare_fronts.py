"""Fronts of several searchers beside each other: what is counted and told, and that it goes on where it was."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from evomerge.runs.suite import Suite
from evomerge.search.evaluators.values import ValueEvaluator
from tests.kit.evaluations import sources_of

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import compare_fronts
import front_differences


def test_fronts_beside_each_other(
    pico_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ["--arm", "front", "searcher=random", "--arm", "sums", "objective=mean", "searcher=random"]
    arms += ["--arm", "one", "objective=mean", "searcher=random", "--sums", "sums"]
    sizes = ["budget=8", "fitness.items=9", "fitness.report_metric=log_probability", "start=0.4"]
    command = ["--out", str(tmp_path / "out"), "--seeds", "1", "--points", "3", "--kept", "trees", *arms]
    command += ["--", *sources_of(pico_suite, tmp_path / "cache"), "objective=pareto", *sizes]
    compare_fronts.main(command)
    printed = capsys.readouterr().out
    monkeypatch.setattr(ValueEvaluator, "trial", lambda *_: pytest.fail("what was scored was scored again"))
    compare_fronts.main(command)
    assert capsys.readouterr().out == printed
    found = {
        name: line for name, (line,) in json.loads((tmp_path / "out" / "results.json").read_text())["arms"].items()
    }
    assert {name: line["evaluations"] for name, line in found.items()} == dict.fromkeys(("front", "sums", "one"), 72)
    assert found["one"]["points"] == 1
    assert all(1 <= line["points"] == len(line["scores"]) <= 3 for line in found.values())
    assert all(line["hypervolume"] >= 0 for line in found.values())
    assert "| front | 72 |" in printed
    minus = json.loads((tmp_path / "out" / "results.json").read_text())["minus"]["front"]
    assert minus["one"]["seeds"] == [found["one"]["hypervolume"] - found["front"]["hypervolume"]]
    assert "| hypervolume minus that of front | by seed |" in printed


def test_items_that_all_arms_share_are_drawn_together() -> None:
    """What is common to two fronts leaves their difference exact, however noisy each of them is."""
    rng = np.random.default_rng(1)
    noise, ends = rng.normal(size=40), np.array([[0.0], [1.0]])
    tables = [{"a": np.vstack([ends + 0 * noise, 0.2 + shift + noise])} for shift in (0.0, 0.3)]
    assert front_differences.volume(tables[0]) == pytest.approx(0.7 + noise.mean())
    found = front_differences.difference([tables[1]] * 2, [tables[0]] * 2)
    assert found.seeds == pytest.approx([0.3, 0.3])
    assert (found.mean, found.between_seeds) == (pytest.approx(0.3), pytest.approx(0))
    assert found.between_items < 1e-9
    apart = front_differences.difference([{"a": np.vstack([ends + 0 * noise, 0.5 + noise[::-1]])}], [tables[0]])
    assert apart.between_seeds is None
    assert apart.between_items == pytest.approx(np.sqrt(2 / 40) * noise.std(), rel=0.3)
    assert front_differences.flat_task({"a": tables[0]["a"][[1, 0, 2]]}) == "a"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--sums", "some"], "--sums some: there is no such arm"),
        (["--kept", "stones"], "--kept stones: there is no such task; there are animals, trees, metals"),
        ([], "the arm own has objective.values: here every task is a value"),
        (["fitness.approximate=auto"], "the arm own has fitness.approximate=auto"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_a_search(
    more: list[str], said: str, pico_suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [each for each in more if "=" in each] if more else ["objective.values={a: [trees], b: [metals]}"]
    flags = [each for each in more if each not in own]
    command = ["--out", str(tmp_path / "out"), *flags, "--arm", "own", "searcher=random", *own]
    with pytest.raises(SystemExit):
        compare_fronts.main([*command, "--", *sources_of(pico_suite, tmp_path / "cache"), "objective=pareto"])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
