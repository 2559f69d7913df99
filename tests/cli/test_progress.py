"""What is shown of long work: a bar on a terminal, lines in a pipe."""

from __future__ import annotations

import io
import re

from rich.console import Console

from evomerge.cli import progress
from evomerge.cli.progress import Reporter


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
