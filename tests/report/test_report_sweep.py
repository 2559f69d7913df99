"""The page of several runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge.report import write_report, write_sweep
from tests.kit.pages import read
from tests.kit.reports import finish, write_run


@pytest.fixture(autouse=True)
def only_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of the time; test_report_pictures.py has them."""
    monkeypatch.setattr("evomerge.report.pictures.of_run", lambda *_: None)
    monkeypatch.setattr("evomerge.report.pictures.of_sweep", lambda *_: None)


def test_several_runs(tmp_path: Path) -> None:
    runs = [
        finish(write_run(tmp_path / f"text-linear-{name}"), diff=diff)
        for name, diff in (("layer-s1", 0.03), ("layer-s2", 0.005), ("tensor-s1", -0.05))
    ]
    summary = json.loads((runs[1] / "summary.json").read_text())
    summary["select"]["finalists"]["best"] = 0.7
    (runs[1] / "summary.json").write_text(json.dumps(summary))
    going = write_run(tmp_path / "text-linear-open & on", "budget=100")
    file = write_sweep([*runs, going])
    assert file == tmp_path / "report.html"
    page = read(file)
    links = [value for tag, name, value in page.attributes if tag == "a" and name == "href"]
    assert [link.split("/")[0] for link in links if link] == [
        *("text-linear-layer-s2", "text-linear-layer-s1", "text-linear-tensor-s1"),  # by the select split
        "text-linear-open%20%26%20on",
    ]
    assert all((run / "report.html").is_file() for run in [*runs, going])
    assert "1 of 3 searches found a merge that beats its best constant, 1 a worse one." in page.text
    assert "1 of 4 runs have no winner yet: text-linear-open & on" in page.text


def test_runs_that_were_judged_on_other_items_are_told_apart(tmp_path: Path) -> None:
    one, other = finish(write_run(tmp_path / "one")), finish(write_run(tmp_path / "two"))
    assert "not all judged on the same report items" not in read(write_sweep([one, other])).text
    summary = json.loads((other / "summary.json").read_text())
    summary["report"]["base"]["tasks"]["news"] += 0.01
    (other / "summary.json").write_text(json.dumps(summary))
    assert "not all judged on the same report items" in read(write_sweep([one, other])).text


def test_runs_of_the_same_name_and_pages_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = finish(write_run(tmp_path / "a" / "run")), finish(write_run(tmp_path / "b" / "run"))
    (one / "report.html").write_text("newer than the run")
    page = read(write_sweep([one, other, one], tmp_path / "page.html", again=False))
    assert "2 searches in" in page.text
    assert [value for tag, name, value in page.attributes if tag == "a" and name == "href"] == [
        "a/run/report.html",
        "b/run/report.html",
    ]
    assert "a/run" in page.text
    assert "b/run" in page.text
    assert (one / "report.html").read_text() == "newer than the run"
    read(other / "report.html")
    write_sweep([one, other], tmp_path / "page.html")
    read(one / "report.html")


def test_many_runs_and_many_groups(tmp_path: Path) -> None:
    groups = [f"encoder.layer.{i}.part{j}.weight" for i in range(12) for j in range(60)]
    coordinates = [f"weight/{group}/{expert}" for group in groups for expert in ("reviews", "news")]
    runs = [write_run(tmp_path / f"run-{i}", "space=tensor", coordinates=coordinates, batches=2) for i in range(2)]
    assert "Each row is the mean over the groups of a block; the 720 single ones" in read(write_report(runs[0])).text
    runs = [write_run(tmp_path / f"few-{i}", batches=2) for i in range(14)]
    page = read(write_sweep(runs))
    assert "2 more" in page.text
    assert [value for _, name, value in page.attributes if name == "class" and value == "path s6 dashed"]
