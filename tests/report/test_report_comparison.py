"""The page of a comparison, from standings made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.cli.report import main
from evomerge.common.errors import ConfigError, LogError
from evomerge.report import is_comparison, write_comparison
from evomerge.report.wording import with_error
from evomerge.selection.standings import OnReport, Standings
from evomerge.selection.statistics import Paired
from tests.kit.pages import read
from tests.kit.reports import write_workers
from tests.kit.standings import BETTER, SAME, row, standings

NASTY = '<script>alert("1")</script>'


def write(found: Standings, directory: Path) -> str:
    (directory / "comparison.json").write_text(found.to_json())
    assert is_comparison(directory)
    return read(write_comparison(directory)).text


def test_the_page_has_the_numbers(tmp_path: Path) -> None:
    text = write(standings(row("tsvm", 0.65, BETTER), row("trim", 0.52, SAME), row("sce", 0.51)), tmp_path)
    assert "tsvm is better than task arithmetic." in text
    assert "2 were tested on 90 report items that chose nothing" in text
    for value, se in ((0.62, 0.02), (0.51, 0.02), (0.65, 0.02)):
        assert with_error(value, se).replace("\xa0", " ") in text.replace("\xa0", " ")
    assert "<0.001 better" in text
    assert "0.600" in text
    assert "(0.5500)" in text  # dropped early
    assert "slerp: there are 3" in text
    assert "3.0" in text
    assert "what sce does" in text
    assert "Utilisation" not in text
    write_workers(tmp_path)
    assert (
        "Utilisation is 60.0%: so much of the time of 3 workers, 10.0 s from the beginning"
        in read(write_comparison(tmp_path)).text
    )


def test_verdicts_in_words(tmp_path: Path) -> None:
    assert "No method is better than task arithmetic as far" in write(standings(row("trim", 0.52, SAME)), tmp_path)
    assert "Nothing was held against task arithmetic." in write(standings(), tmp_path)
    many = [row(name, 0.6, BETTER) for name in ("a", "b")]
    assert "a and b are better than" in write(standings(*many), tmp_path)
    broken = row("broken", 0.6, OnReport(error="it broke"))
    assert "broken has no report score: it broke" in write(standings(broken), tmp_path)
    worst = row("trim", 0.52, SAME, value=0.3)
    assert "which is not the mean that is shown" in write(standings(worst), tmp_path)


def test_weights_at_the_ends_of_what_was_offered_are_told(tmp_path: Path) -> None:
    ends = {"few": 0.4, "many": 1.0, "single": 1.0}
    rows = [row(name, 0.6, constant=constant) for name, constant in ends.items()]
    found = standings(*rows[:2], replace(rows[2], values={"1": 0.6}, seen={"1": 60}))
    assert found.at_the_ends == [
        "few took the smallest weight that was offered (0.4): offer smaller ones in compare.constants.",
        "many and linear took the largest weight that was offered (1): offer larger ones in compare.constants.",
    ]
    assert found.at_the_ends[0] in write(found, tmp_path)
    (several,) = standings(*(row(name, 0.6) for name in "abc")).at_the_ends
    assert several.startswith("4 methods, linear among them, took the largest")
    inside = [replace(each, values={"0.2": 0.1, **each.values, "2": 0.2}) for each in found.rows]
    assert not replace(found, rows=inside).at_the_ends


def test_names_of_anybody_stay_text(tmp_path: Path) -> None:
    found = standings(row(NASTY, 0.6, BETTER), command=NASTY, warnings=[NASTY])
    assert NASTY in write(replace(found, left_out={NASTY: NASTY}), tmp_path)


def test_the_verb_draws_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write(standings(row("tsvm", 0.65, BETTER)), tmp_path)
    (tmp_path / "report.html").unlink()
    main([str(tmp_path)])
    assert capsys.readouterr().out.strip().endswith("report.html")
    assert read(tmp_path / "report.html").text == text


def test_what_is_no_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no comparison that has ended"):
        write_comparison(tmp_path)
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(LogError, match="run the comparison's own command again"):
        write_comparison(tmp_path)


def test_standings_come_back_as_they_were(tmp_path: Path) -> None:
    found = standings(row("tsvm", 0.65, BETTER), row("sce", 0.51, ahead=Paired(0.1, float("nan"))))
    again = Standings.from_json(found.to_json())
    assert again.rows[1].ahead == Paired(0.1, None)
    assert replace(again, rows=[]) == replace(found, rows=[])
    assert again.rows[0] == found.rows[0]
    assert again.arithmetic == found.arithmetic
    assert [one.name for one in again.tested] == ["tsvm"]
