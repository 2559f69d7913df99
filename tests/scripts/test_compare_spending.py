"""Searches that spend less beside one that spends all: what is counted, what is compared, and that it goes on."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evomerge.runs.suite import Suite
from evomerge.search.journal import read_log
from tests.kit.evaluations import sources_of

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import compare_spending


def test_arms_beside_the_first(
    pico_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [*sources_of(pico_suite, tmp_path / "cache"), "searcher.popsize=4"]
    arms = ["--arm", "full", "budget=8", "--arm", "few", "budget=8", "fitness.items=6", "fitness.sampling=disagreement"]
    command = ["--out", str(tmp_path / "out"), "--seeds", "1", *arms, "--", *sources]
    compare_spending.main(command)
    printed = capsys.readouterr().out
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a search that has ended was begun again"))
    compare_spending.main(command)
    assert capsys.readouterr().out == printed
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    full, few = (found["lines"][name][0] for name in ("full", "few"))
    searchable = (pico_suite.path / "tasks").glob("*/search.jsonl")
    cost = 2 * sum(len(file.read_text().splitlines()) for file in searchable)  # base and experts on all of them
    assert (full["candidates"], full["searched"], few["searched"]) == (8, 8 * 30, 8 * 6 + cost)
    assert found["differences"]["few"]["full"]["diff"] == pytest.approx(few["report"] - full["report"])
    summary = json.loads((tmp_path / "out" / "full-s1" / "summary.json").read_text())
    assert full["gain"] == summary["paired"]["winner_vs_best_constant"]["diff"]
    chosen = summary["select"]
    assert full["promised"] == full["select"] - chosen["constants"][chosen["constant"]]
    assert few["seen"] == pytest.approx(_best(tmp_path / "out" / "few-s1", summary["metric"]))
    assert full["chosen"] == sum(summary["select"]["seen"].values())


def test_the_same_winners_by_another_number(
    pico_suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [*sources_of(pico_suite, tmp_path / "cache"), "searcher.popsize=4"]
    arms = ["--arm", "one", "budget=8", "--arm", "two", "budget=12"]
    command = ["--out", str(tmp_path / "out"), "--seeds", "1", "2", *arms]
    found = []
    for metric in ("accuracy", "log_probability"):
        compare_spending.main([*command, "--metric", metric, "--", *sources])
        (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| two | 12"))
        found.append(json.loads((tmp_path / "out" / "results.json").read_text())["differences"]["two"]["one"])
        seeds = found[-1]["seeds"]
        over = abs(seeds[0] - seeds[1]) / 2  # the standard error of a mean of two
        assert f"({over:.4f})" in row
        assert found[-1]["diff"] == pytest.approx(np.mean(seeds))
    assert found[0]["diff"] != found[1]["diff"]
    with pytest.raises(SystemExit, match="log_probability"):
        compare_spending.main([*command, "--metric", "log_prob", "--", *sources])


def test_an_arm_needs_another_to_be_held_against(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare_spending.main(["--out", str(tmp_path), "--arm", "full", "budget=8", "--", "model=pico"])
    assert "--arm is needed twice" in capsys.readouterr().err


def _best(run: Path, metric: str) -> float:
    """The best mean over tasks of a candidate's weighted items, from its results."""
    lines = [line for line in read_log(run / "trials.jsonl") if line["kind"] == "trial"]
    return max(
        sum(
            float(np.average(line["results"][task][metric], weights=line.get("weights", {}).get(task)))
            for task in line["items"]
        )
        / len(line["items"])
        for line in lines
    )
