"""What is shown of long work: a bar on a terminal, lines in a pipe."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from evomerge.cli import progress
from evomerge.cli.progress import Reporter
from evomerge.common.events import Event
from evomerge.trials import Trial


def shown(monkeypatch, terminal: bool) -> str:
    stream = io.StringIO()
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    console = Console(file=stream, force_terminal=terminal, width=100, soft_wrap=not terminal)
    with Reporter(console).counting("choosing", 3000) as count:
        for items in (1000, 1000, 5000):
            count(items)
    return stream.getvalue()


def test_items_are_counted_in_a_pipe(monkeypatch) -> None:
    assert shown(monkeypatch, False).splitlines() == [
        "choosing",
        "1,000 of 3,000 items scored",
        "2,000 of 3,000 items scored",
        "3,000 of 3,000 items scored",  # an estimate is never passed
    ]


def test_items_are_counted_on_a_terminal(monkeypatch) -> None:
    said = shown(monkeypatch, True)
    assert "choosing" in said
    assert re.search(r"\d+/3000", said)
    assert "items scored" not in said


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(("budget", "left", "said"), [(10**12, 90.0, "1.5 min left"), (1, 90.0, "0.0 min left")])
def test_the_time_left_is_the_smaller_of_hours_and_candidates(
    monkeypatch, terminal: bool, budget: int, left: float, said: str
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    console = Console(file=stream, force_terminal=terminal, width=160, soft_wrap=not terminal)
    with Reporter(console).searching([], budget, lambda: left) as scored:
        scored(Trial(0, 0, "ok", (0.5,)))
    assert said in stream.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_workers_are_shown_as_long_as_one_is_there(monkeypatch, terminal: bool) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    reporter = Reporter(Console(file=stream, force_terminal=terminal, width=160, soft_wrap=not terminal))
    watch = reporter.pool(3)
    with reporter.searching([Trial(0, 0, "failed", None, error="no")], 4) as scored:
        for kind, worker in (("started", 0), ("begun", 0), ("begun", 1), ("begun", 2), ("ended", 0), ("lost", 1)):
            watch(Event(kind, worker, 0.0))
        scored(Trial(0, 1, "ok", (0.5,)))
    said = stream.getvalue()
    assert re.search(r"best 0\.5000  mean 0\.5000  1 failed  \d+/min", said)
    assert "1 units  1/3 workers busy  1 lost" in said
    watch(Event("retired", 1, 0.0, why="it dies"))
    with reporter.counting("choosing", 9) as count:
        count(1)
    assert ("1 lost  1 retired" in stream.getvalue()) == terminal  # a pipe has the line of the items
    for worker in (0, 2):
        watch(Event("stopped", worker, 0.0))
    stream.truncate(0)
    with reporter.searching([], 4) as scored:
        scored(Trial(0, 0, "ok", (0.5,)))
    assert "busy" not in stream.getvalue()


def test_between_candidates_a_pipe_hears_of_units(monkeypatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    reporter = Reporter(Console(file=stream, soft_wrap=True))
    watch = reporter.pool(2)
    watch(Event("started", 0, 0.0))  # no search goes on: nothing is said
    assert stream.getvalue() == ""
    with reporter.searching([], 4):
        watch(Event("begun", 0, 0.0))
    assert stream.getvalue() == "0/4  nothing scored yet  0 units  1/2 workers busy\n"
