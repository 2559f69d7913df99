"""A whole search that is asked ahead: its log has trials between asks, and asks that no trial answers."""

from __future__ import annotations

from pathlib import Path

from evomerge.cli.progress import Reporter
from evomerge.common.progress import Silent
from evomerge.report.facts import RunFacts
from evomerge.runs.directory import open_run
from evomerge.runs.points import find_finalist, open_problem
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from tests.kit.helpers import compose

SMALL = ["fitness.items=6", "fitness.select_items=6", "fitness.report_items=6", "searcher.popsize=3", "searcher.lag=3"]


def test_a_search_with_a_lag_from_settings_to_report(pico_suite: Suite, tmp_path: Path) -> None:
    given = [f"model.suite={pico_suite.path}", f"model.cache={tmp_path / 'cache'}", "model.device=cpu", *SMALL]
    config = compose("model=pico", *given, "budget=12")
    summary = run_search(config, tmp_path / "whole", Reporter())
    assert summary is not None
    run = open_run(tmp_path / "whole")
    assert [len(batch.points) for batch in run.batches] == [6, *[1] * 9]  # six constants, six trials, three asks
    assert [trial.batch for trial in run.trials()] == [0] * 6 + [*range(1, 7)]
    assert [dot.number for dot in RunFacts(run).scored] == [*range(1, 13)]
    problem = open_problem(run, Silent())
    for name, value in summary.select.finalists.items():  # the searcher is rebuilt, and told in the same order
        assert find_finalist(run, problem, name).value == value
    scored = {(trial.batch, trial.index) for trial in run.trials()}
    assert {place for place in summary.select.trials.values() if place} <= scored
