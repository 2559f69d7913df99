"""The comparison with PEFT's folds: its counts by hand, its exit status, and a few kinds on a pico base."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import check_peft as command
from peft_parity import compare, forms

from tests.kit import adapters
from tests.kit.models import LLAMA_TIED, pico

FEW = ("plain", "biases of its modules", "DoRA, inputs first")


@pytest.fixture(autouse=True)
def transformers_speaks_as_before():
    """The script silences transformers for its own process; here the process goes on with other tests."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()


def test_every_kind_is_there() -> None:
    assert {*forms.FORMS} == {*adapters.FORMS}


def test_a_few_kinds_on_a_pico_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("peft")
    pico(LlamaForCausalLM, LLAMA_TIED).save_pretrained(tmp_path)
    monkeypatch.setattr(forms, "FORMS", {name: forms.FORMS[name] for name in FEW})
    assert command.main(["--base", str(tmp_path), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["adapter"], row["base"]) for row in rows] == [(name, forms.FORMS[name].base) for name in FEW]
    assert all(row["float32"] <= 1e-6 and row["evomerge_nearer"] > row["peft_nearer"] for row in rows)


def test_what_is_wrong_is_said_by_the_exit_status(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for name in ("write_base", "write_adapter"):
        monkeypatch.setattr(forms, name, lambda *given: None)
    monkeypatch.setattr(forms, "FORMS", {"DoRA": forms.FORMS["DoRA"], "plain": forms.FORMS["plain"]})
    monkeypatch.setattr(compare, "compare", lambda *given: (3, 1e-7, []))
    monkeypatch.setattr(compare, "compare_narrow", lambda *given: compare.Narrow(9, 4, 2.0, 3, 1))
    assert command.main(["--base", "somewhere"]) == 1
    said = capsys.readouterr()
    assert said.err == "plain: differs by 2 units\n"
    assert said.out.splitlines()[-1] == "| plain | given | 3 | 1.0e-07 | 9 | 4 | 2 | 3 | 1 |"
    monkeypatch.setattr(compare, "distances", lambda *given: (1e-3, 1e-9))
    monkeypatch.setattr(compare, "compare", lambda *given: (3, 1e-3, ["x is changed by one of the two alone"]))
    monkeypatch.setattr(compare, "compare_narrow", lambda *given: compare.Narrow(9, 4, 1.0, 1, 3))
    assert command.main(["--base", "somewhere", "--json"]) == 1
    said = capsys.readouterr().err
    assert (
        said.count("changed by one of the two")
        == said.count("plain: differs by 1.0e-03")
        == said.count("PEFT is nearer")
        == 2
    )
    monkeypatch.setattr(compare, "compare", lambda *given: (3, 2e-6, []))
    monkeypatch.setattr(compare, "compare_narrow", lambda *given: compare.Narrow(9, 4, 1.0, 3, 1))
    monkeypatch.setattr(compare, "distances", lambda *given: (1e-8, 2e-6))
    assert command.main(["--base", "somewhere", "--json"]) == 0
    assert (
        "note: DoRA: differs by 2.0e-06 in float32: evomerge 1.0e-08 from the fold in float64, PEFT"
        in capsys.readouterr().err
    )


def test_units_and_who_is_nearer_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit of bfloat16 is 2⁻⁷ between 1 and 2; where 3 nearly cancels -3, it is that of 3."""
    base = torch.tensor([1.0, 1.0, -3.0])
    exact = {"w": torch.tensor([1.005, 1.25, 0.01], dtype=torch.float64)}
    theirs = {"w": torch.tensor([1.0, 1.25, 0.0]).bfloat16()}
    ours = torch.tensor([1.0078125, 1.25, 0.01])
    held = SimpleNamespace(tensor=lambda name: base), SimpleNamespace(keys={"w": ""}, tensor=lambda name: ours)
    monkeypatch.setattr(compare, "opened", lambda *given: held)
    monkeypatch.setattr(compare, "folded", lambda b, a, dtype: exact if dtype == torch.float64 else theirs)
    found = compare.compare_narrow(Path(), Path(), torch.bfloat16)
    assert (found.elements, found.differ, found.ours, found.theirs) == (3, 2, 2, 0)
    assert found.units == 1
