"""The picture of quality against item evaluations: it is made of the page's tables, and says which one is missing."""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from evomerge.common.errors import SuiteError

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import plot_spending as plot  # noqa: E402

PAGE = (ROOT / "experiments/affordable/README.md").read_text(encoding="utf-8")


def test_every_panel_shows_what_the_page_has() -> None:
    first, second, third, fourth = plot.draw(PAGE).axes
    regrets = next(rows for _, rows in plot.tables_of(PAGE) if rows[0][0] == "regret of the choice")
    random = next(row for row in regrets if row[0] == "random subset")
    assert len(first.containers) == len(plot.BY_LOG_PROBABILITY)
    assert len(second.containers) == len(plot.BY_ACCURACY)
    assert [f"{y:.3f}" for y in first.containers[1].lines[0].get_ydata()] == [cell.split()[0] for cell in random[1:]]
    text = third.lines[0]
    assert list(text.get_xdata()) == [10_000, 2_500, 2_500]
    assert list(text.get_ydata()) == [0.0296, 0.0115, 0.0300]
    assert len(fourth.containers) == 4


def test_a_missing_table_is_named() -> None:
    with pytest.raises(SuiteError, match="'CMA-ES, text'"):
        plot.draw(PAGE.replace("### CMA-ES, text", "### Other"))
    with pytest.raises(SuiteError, match="no two tables of regret"):
        plot.draw("nothing")
