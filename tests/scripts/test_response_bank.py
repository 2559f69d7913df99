"""The bank of answers: it goes on where it was killed, and holds what a judge says of the same models."""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from evomerge.cli.progress import Reporter
from evomerge.common.errors import EvomergeError
from evomerge.runs.suite import Suite
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.search.stopping import Interrupt
from evomerge.selection.judge import Judge
from tests.kit.evaluations import settings_of, sources_of, under

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import response_bank
from affordable.bank import Bank

SEARCHES = [("cmaes", 1, 8), ("random", 1, 8)]
CONSTANTS = (0.4, 0.7)


def test_a_killed_bank_goes_on(
    pico_suite: Suite, problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*sources_of(pico_suite, tmp_path / "cache"), "space=model"]
    scored, merged = [], response_bank.Respondents._merged

    def killed(self: object, point: np.ndarray) -> object:
        scored.append(point.tobytes())
        if len(scored) == 12:
            raise KeyboardInterrupt
        return merged(self, point)

    monkeypatch.setattr(response_bank.Respondents, "_merged", killed)
    out = tmp_path / "bank.npz"
    with pytest.raises(KeyboardInterrupt):
        response_bank.fill(given, SEARCHES, CONSTANTS, out, Reporter())
    rows = out.with_suffix(".rows.jsonl")
    rows.write_bytes(rows.read_bytes()[:-20])  # the last line is cut off
    before = set(scored[:10])
    scored[:] = [b""] * 12
    bank = response_bank.fill(given, SEARCHES, CONSTANTS, out, Reporter())
    assert not before & set(scored), "what was kept is not scored again"
    scored.clear()
    again = response_bank.fill(given, SEARCHES, CONSTANTS, out, Reporter())
    assert not scored, "a complete bank scores nothing"
    for metric, answers in bank.responses.items():
        np.testing.assert_array_equal(answers, again.responses[metric])
        np.testing.assert_array_equal(answers, Bank.load(out).responses[metric])
    with pytest.raises(EvomergeError, match="other models, items or settings"):
        response_bank.fill([*given, "fitness.batch_size=16"], SEARCHES, CONSTANTS, out, Reporter())

    searched = bank.generations[bank.names == "cmaes 1"]
    assert bank.searches == ["cmaes 1", "random 1"]
    assert searched.tolist() == sorted(searched)
    assert set(searched) == {0, 1}
    small = under(problem, settings_of(*given))
    report = {item.id for items in problem.items["report"].values() for item in items}
    assert not report & set(bank.items)
    subsets = make_subsets(small)
    fitnesses = {"select": live_fitness(small, small.items["select"])}
    judge = Judge(small, SerialScorer(small, fitnesses), subsets, Interrupt())
    columns, row = bank.columns("select"), bank.of("constant")[0]
    assert [item for ids in judge.ids["select"].values() for item in ids] == bank.items[columns].tolist()
    asked = {row: judge.merged(judge.constant(0.4), "select"), bank.of("base")[0]: judge.base("select")}
    for row, outcome in asked.items():
        for metric, answers in bank.responses.items():
            told = np.concatenate([metrics[metric] for metrics in outcome.results.values()])
            np.testing.assert_array_equal(answers[row, columns], told)
            value = sum(metrics[metric].mean() for metrics in outcome.results.values()) / len(outcome.results)
            assert answers[row, columns] @ bank.shares("select") == pytest.approx(value)
    assert "merges" in capsys.readouterr().err
