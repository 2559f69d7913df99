"""What is shown of long work: a bar on a terminal, lines in a pipe."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from evomerge.cli import progress
from evomerge.cli.progress import Reporter
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
