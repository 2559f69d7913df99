"""The table of run directories: what it says of them, and of those that have not ended."""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.kit.reports import finish, write_run

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import results_table


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*runs: Path) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["results_table.py", *map(str, runs)])
        results_table.main()
        return capsys.readouterr().out.splitlines()

    return call


def test_a_row_for_each_search(tmp_path: Path, table) -> None:
    rows = table(*(finish(write_run(tmp_path / name)) for name in ("one-s2", "one")))
    assert [row.split("|")[1].strip() for row in rows[5:]] == ["one, seed 1", "one, seed 2"]
    assert rows[2].startswith("| base |")
    assert len({row.count("|") for row in rows}) == 1


def test_a_search_that_goes_on_is_named(tmp_path: Path, table, capsys) -> None:
    ended, open_run = finish(write_run(tmp_path / "ended")), write_run(tmp_path / "goes-on")
    with pytest.raises(SystemExit) as error:
        table(ended, open_run)
    assert error.value.code == 2
    assert f"no summary.json in {open_run}: name run directories" in capsys.readouterr().err
