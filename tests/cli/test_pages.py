"""The page that the command draws at the end: beside the results, and never at their cost."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

from evomerge.cli.pages import draw_run
from evomerge.cli.progress import Reporter
from tests.kit.reports import finish, write_run


def test_the_page_stands_beside_the_results_and_is_drawn_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finish(write_run(tmp_path / "run"))
    page = run / "report.html"
    draw_run(run, Reporter())
    assert "<html" in page.read_text()
    assert f"report: {os.path.relpath(page)}" in capsys.readouterr().err
    page.write_text("mine")
    draw_run(run, Reporter())
    assert page.read_text() == "mine"
    for name in ("trials.jsonl", "summary.json", "worth.json", "around.json"):
        page.write_text("mine")
        if not (run / name).exists():
            (run / name).write_text('{"of": "another"}')
        later = page.stat().st_mtime_ns + 10**9
        os.utime(run / name, ns=(later, later))
        draw_run(run, Reporter())
        assert "<html" in page.read_text(), name
        os.utime(page, ns=(later, later))


@pytest.mark.parametrize("missing", [True, False])
def test_a_page_that_cannot_be_drawn_is_a_warning(
    missing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(directory: Path) -> Path:
        raise RuntimeError("no ink")

    if missing:
        monkeypatch.setitem(sys.modules, "evomerge.report", None)  # as without the libraries that draw
    else:
        monkeypatch.setattr("evomerge.report.write_report", broken)
    run = finish(write_run(tmp_path / "run"))
    with caplog.at_level(logging.WARNING):
        draw_run(run, Reporter())
    assert ("evomerge.report" if missing else "RuntimeError: no ink") in caplog.text
    assert not (run / "report.html").exists()
