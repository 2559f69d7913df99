"""The pictures beside the pages."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
import pytest
from hydra.core.global_hydra import GlobalHydra

from evomerge.cli.report import main
from evomerge.common.errors import ConfigError
from evomerge.report import write_report, write_sweep
from tests.kit.reports import finish, write_run


def pictures(directory: Path) -> set[str]:
    for file in directory.iterdir():
        content = file.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert int.from_bytes(content[16:20], "big") >= 600  # its width
    return {file.stem for file in directory.iterdir()}


def test_those_of_a_run_are_the_same_every_time_and_nothing_global_is_left(tmp_path: Path) -> None:
    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)
    hydra = GlobalHydra.instance().hydra
    run = finish(write_run(tmp_path / "run", steps=3))
    write_report(run, pictures=True)
    assert pictures(run / "report") == {"convergence", "coefficients", "tasks"}
    first = {file: file.read_bytes() for file in (run / "report").iterdir()}
    write_report(run, pictures=True)
    assert {file: file.read_bytes() for file in (run / "report").iterdir()} == first
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend(auto_select=False) == backend
    assert GlobalHydra.instance().hydra is hydra


def test_what_is_not_there_is_not_drawn_and_what_was_goes(tmp_path: Path) -> None:
    run = finish(write_run(tmp_path / "run", errors={3: "RuntimeError: no"}))
    page = tmp_path / "elsewhere" / "page.html"
    write_report(run, page, pictures=True)
    assert pictures(page.with_suffix("")) == {"convergence", "coefficients", "tasks"}
    (run / "summary.json").unlink()
    write_report(run, page, pictures=True)
    assert pictures(page.with_suffix("")) == {"convergence", "coefficients"}
    empty = write_run(tmp_path / "empty", batches=0)
    write_report(empty, pictures=True)
    assert not (empty / "report").exists()


def test_those_of_several_runs(tmp_path: Path) -> None:
    runs = [finish(write_run(tmp_path / "a")), finish(write_run(tmp_path / "b", batches=1, steps=4), se=None)]
    summary = json.loads((runs[0] / "summary.json").read_text())
    summary["report"]["experts"] |= {"mean": None, "se": None, "tasks": {"news": 0.8}, "tasks_se": {"news": None}}
    (runs[0] / "summary.json").write_text(json.dumps(summary))
    write_sweep([*runs, write_run(tmp_path / "open")], pictures=True)
    assert pictures(tmp_path / "report") == {"convergence", "coefficients", "gains"}


def test_without_their_library_the_page_is_whole_and_pictures_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finish(write_run(tmp_path / "run"))
    whole = write_report(run).read_text()
    monkeypatch.delitem(sys.modules, "evomerge.report.pictures", raising=False)
    monkeypatch.delattr("evomerge.report.pictures", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    main([str(run), "-o", str(tmp_path / "page.html")])
    assert (tmp_path / "page.html").read_text() == whole
    assert not (tmp_path / "page").exists()
    with pytest.raises(ConfigError, match=r"Pictures need matplotlib.*pip install 'evomerge\[plot\]'"):
        main([str(run), "--pictures"])
