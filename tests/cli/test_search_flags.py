"""Flags of Hydra's among settings, in any order."""

from __future__ import annotations

import sys

import pytest

from evomerge.cli import search


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["budget=2", "--config-dir=own", "seed=3"], ["budget=2", "seed=3", "--config-dir=own"]),
        (["budget=2", "-cd", "a=b", "seed=3"], ["budget=2", "seed=3", "-cd", "a=b"]),
        (["budget=2", "--cfg", "job", "seed=3"], ["budget=2", "seed=3", "--cfg", "job"]),
        (["-m", "seed=3,4", "-cd", "own", "~loss.inputs"], ["seed=3,4", "~loss.inputs", "-m", "-cd", "own"]),
        (["-m", "~loss.inputs", "+one=2"], ["~loss.inputs", "+one=2", "-m"]),
    ],
)
def test_flags_stand_anywhere(given: list[str], passed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[list[str]] = []
    monkeypatch.setattr(search, "_application", lambda: begun.append(sys.argv[1:]))
    monkeypatch.setattr(search, "check_settings", lambda settings: None)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    search.main(given)
    assert begun == [passed]
