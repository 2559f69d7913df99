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
    panels = plot.draw(PAGE).axes
    regrets = [rows for _, rows in plot.tables_of(PAGE) if rows[0][0] == "regret of the choice"]
    for number, (rows, names) in enumerate(zip(regrets, [*plot.DECIDES.values()] * 2, strict=True)):
        panel = panels[number // 2 + 2 * (number % 2)]  # texts on the left, images on the right
        random = next(row for row in rows if row[0] == "random subset")
        values = [f"{y:.3f}" for y in panel.containers[1].lines[0].get_ydata()]
        assert len(panel.containers) == len(names)
        assert values == [*(cell.split()[0] for cell in random[1:]), "0.000"]
    assert [len(panel.containers) for panel in panels[4:6]] == [2, 2]
    fewer, fixed = panels[6].containers[:2]
    assert [round(float(x), -2) for x in fewer.lines[0].get_xdata()] == pytest.approx([2_500, 10_000], rel=0.1)
    (arms,) = (
        rows
        for title, rows in plot.tables_of(PAGE)
        if title == "CMA-ES, text" and rows[0][0] == "arm" and len(rows[0]) > 6
    )
    gains = {row[0]: float(row[5]) for row in arms[1:]}
    assert list(fewer.lines[0].get_ydata()) == [gains["fewer candidates"], gains["full: 100 items"]]
    assert list(fixed.lines[0].get_ydata()) == [gains["10 items"], gains["fewer items: 25"], gains["full: 100 items"]]


@pytest.mark.parametrize(
    ("arm", "rule"),
    [
        ("full: 100 items", "full"),
        ("fewer candidates", "fewer candidates"),
        ("fewer items: 25", "fixed items"),
        ("10 items", "fixed items"),
        ("25 items, rotated, screened", "rotated, screened"),
        ("13 items by disagreement", "by disagreement"),
    ],
)
def test_arms_that_save_alike_are_one_curve(arm: str, rule: str) -> None:
    assert plot._rule(arm) == rule


def test_a_missing_table_is_named() -> None:
    with pytest.raises(SuiteError, match="'CMA-ES, text'"):
        plot.draw(PAGE.replace("### CMA-ES, text", "### Other"))
    with pytest.raises(SuiteError, match="no four tables of regret"):
        plot.draw("nothing")
