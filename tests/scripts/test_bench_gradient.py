"""The benchmark of gradient steps: what it prints, what it counts, and that it fails where gradients differ."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.merging.merger import Merger

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_gradient as bench
from gradient_ways import LiveBytes

WAYS = ("step", "plain", *bench.FORMS)


@pytest.fixture
def run(pico_suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the script on the pico suite; give the lines that it prints."""

    def call(*arguments: object) -> list[str]:
        small = ["--suite", pico_suite.path, "--experts", 2, "--inputs", 2, "--pairs", 3]
        monkeypatch.chdir(tmp_path)  # where the task vectors are cached
        monkeypatch.setattr(sys, "argv", ["bench_gradient.py", *map(str, [*small, *arguments])])
        bench.main()
        return capsys.readouterr().out.splitlines()

    return call


def test_a_line_for_each_case(run) -> None:
    rows = [json.loads(line) for line in run("--json", "--pairs", 1)]
    assert [row["case"] for row in rows] == [f"pico K=2 {space} cross_entropy" for space in ("tensor", "layer")]
    for row in rows:
        assert list(row)[:4] == ["case", "step_ratio", "textbook_extra_ratio", "extra_bytes_ratio"]
        assert row["step_ratio"] == pytest.approx(row["seconds"]["step"] / row["seconds"]["plain"], rel=0.1)
        assert row["seconds"]["merge"] < row["seconds"]["step"]
        assert all(row["seconds"][way] > 0 for way in WAYS)
        assert row["extra_bytes_ratio"] == pytest.approx(
            row["extra_bytes"]["step"] / row["extra_bytes"]["textbook"], abs=1e-4
        )
        assert row["extra_ratios"]["textbook"] == row["textbook_extra_ratio"]
        assert list(row["extra_ratios"]) == list(bench.FORMS)
        assert row["gradient_error"] < 1e-4
        assert (row["inputs"], row["pairs"]) == (2, 1)


def test_a_step_holds_less_than_any_way_through_the_merge(run) -> None:
    (line,) = run("--json", "--spaces", "tensor", "--inputs", 8)
    held = json.loads(line)["extra_bytes"]
    assert set(held) == set(WAYS)
    assert held["step"] < 0.5 * min(held[way] for way in bench.FORMS)
    assert held["lean"] < held["at_once"]  # which has the activations of all tasks


def test_plain_text(run) -> None:
    (line,) = run("--spaces", "layer")
    assert line.startswith("pico K=2 layer cross_entropy: a step takes ")


def test_gradients_that_differ_are_a_failure(run, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Merger.gradient

    def wrong(self: Merger, *arguments: Any) -> dict[str, Any]:
        found = right(self, *arguments)
        return {"weight": found["weight"] * (1 + 1e-3)}

    monkeypatch.setattr(Merger, "gradient", wrong)
    with pytest.raises(SystemExit, match="differ"):
        run("--spaces", "layer")


@pytest.mark.parametrize(("arguments", "said"), [(["--experts", 4], "has 3"), (["--suite", "nowhere"], "no suite")])
def test_what_cannot_be_measured_is_said(run, arguments: list[object], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        run(*arguments)


def test_too_few_pairs(run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run("--pairs", 0)
    assert error.value.code == 2
    assert "at least 1" in capsys.readouterr().err


def test_live_bytes_are_those_of_storages_that_operators_made() -> None:
    before = torch.ones(100)
    with LiveBytes() as counter:
        before.add_(1)  # in place, and views: nothing new
        view = before.view(10, 10).T
        assert counter.now == 0
        made = view + 1
        half = made[:5]
        assert counter.now == 400
        del made
        assert counter.now == 400  # its storage lives on
        del half
        assert counter.now == 0
        leaf = torch.ones(50, requires_grad=True)
        loss = (leaf.exp() * 2).sum()
        held = counter.now
        loss.backward()
        assert leaf.grad is not None
        assert counter.now == held  # the gradient has come, and what exp had saved has gone
    assert counter.peak >= held + 200
