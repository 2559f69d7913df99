"""Standings of comparisons made by hand, for tests of their page."""

from __future__ import annotations

from typing import Any

from evomerge.selection.standings import Cost, OnReport, Row, Standings
from evomerge.selection.statistics import Paired, Score

BETTER = OnReport(Score(0.62, 0.02), Paired(0.12, 0.01), 1e-9, 2e-9)
SAME = OnReport(Score(0.51, 0.02), Paired(0.01, 0.02), 0.6, 0.6)


def row(name: str, select: float, tested: OnReport | None = None, **more: Any) -> Row:
    """A contestant with two weights, of which the second is the best."""
    usual: dict[str, Any] = {
        "title": f"what {name} does",
        "paper": "Nobody 2026",
        "needs": "the models alone",
        "constant": 1.0,
        "values": {"0.4": select - 0.1, "1": select},
        "seen": {"0.4": 30, "1": 60},
        "value": select,
        "select": Score(select, 0.02),
        "ahead": None if name == "linear" else Paired(0.01, 0.005),
        "cost": Cost(1.25, 0.125, 3 << 20),
    }
    return Row(name=name, tested=tested, **{**usual, **more})


def standings(*rows: Row, **more: Any) -> Standings:
    """A comparison of these and task arithmetic, which is the last."""
    usual: dict[str, Any] = {
        "rows": [*rows, row("linear", 0.5, OnReport(Score(0.5, 0.02)))],
        "reference": "linear",
        "base": {"select": Score(0.3, 0.02), "report": None},
        "left_out": {"slerp": "there are 3"},
        "metric": "log_probability",
        "measures": {"a": "log_probability"},
        "items": {"select": 60, "report": 90},
    }
    return Standings(**{**usual, **more})
