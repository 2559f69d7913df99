"""Searches on a bank: who spends what, and that the same search is the same."""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import simulate_searches
from affordable.bank import Bank
from affordable.logs import LEAST, bank_of_runs

from evomerge.common.errors import SuiteError
from evomerge.search.log import TrialLog
from evomerge.trials import Batch, Trial


def test_arms_spend_their_share_and_a_race_spends_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    points, hard = rng.uniform(0, 1.5, (40, 3)), rng.normal(0, 1, 120)
    margin = 2 - ((points - 0.7) ** 2).sum(1)[:, None] + hard
    answers = -np.log1p(np.exp(-margin))
    bank = Bank(
        kinds=np.array(["random"] * 40),
        names=np.array(["random 1"] * 40),
        generations=np.zeros(40, int),
        places=np.arange(40),
        points=points,
        tasks=np.array(["a", "b"]),
        weights=np.array([0.5, 0.5]),
        items=np.array([f"i{i}" for i in range(120)]),
        task=np.repeat([0, 1], 60),
        labels=np.zeros(120, int),
        splits=np.tile(["search", "select"], 60),
        metric="log_probability",
        responses={"accuracy": (margin > 0) * 1.0, "log_probability": answers},
    )
    bank.save(tmp_path / "bank.npz")
    arms = ["--arm", "full", "items=40", "--arm", "again", "items=40", "--arm", "raced", "items=40", "alpha=0.3"]
    arms += ["candidates=30", "--arm", "half", "items=40", "share=0.5"]
    arms += [
        "--arm",
        "leaders",
        "items=20",
        "leaders=3",
        "fresh=1",
        "share=0.5",
        "--arm",
        "grown",
        "items=12",
        "adapt=1",
    ]
    arms += ["--arm", "smooth", "items=20", "smooth=3", "--arm", "screened", "items=20", "share=0.5", "screen=0.5"]
    simulate_searches.main([str(tmp_path / "bank.npz"), *arms, "--seeds", "2", "--candidates", "30"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    spent = {row[0].strip(): int(row[1].replace(",", "")) for row in rows}
    assert rows[1][5].strip() == "+0.000 ± 0.000"
    assert spent["raced"] < spent["full"] == spent["again"] <= 1200
    assert spent["half"] <= 600
    assert spent["leaders"] <= 600 < spent["grown"] <= 1200
    assert int(rows[4][2]) < int(rows[3][2]) * 2  # leaders are paid for
    assert rows[2][3].strip() != "0%" == rows[0][3].strip()


def logged(run: Path, seed: int, base: str = "a") -> Path:
    """Write the log of a search whose candidates saw eight items each, drawn anew for every generation."""
    rng, same = np.random.default_rng(seed), {"objective": {}, "experts": [], "items": {}, "method": {}, "space": {}}
    with TrialLog(run / "trials.jsonl", {"base": base, **same}, {}) as log:
        for index in range(LEAST):
            batch = log.begin(log.ask(Batch(index, rng.uniform(0, 1.5, (2, 3)))))
            for i, x in enumerate(batch.points):
                ids = {task: [f"{task}{j}" for j in rng.permutation(6)[:4]] for task in ("cats", "dogs")}
                answers = {task: {"log_probability": [-float(x.sum()) - int(k[-1]) for k in ids[task]]} for task in ids}
                log.append(Trial(index, i, "ok", (0.0,), items=ids, results=answers))
            log.tell(batch)
    return run


def test_logs_make_a_bank_of_what_each_candidate_saw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [logged(tmp_path / "one", 1), logged(tmp_path / "two", 2)]
    bank = bank_of_runs(runs, "log_probability")
    answers = bank.responses["log_probability"]
    assert answers.shape == (4 * LEAST, 12)
    assert list(bank.splits) == ["search", "select"] * 6
    assert (np.isfinite(answers).sum(1) == 8).all()
    rows, columns = np.nonzero(np.isfinite(answers))
    expected = -bank.points[rows].sum(1) - columns % 6
    assert np.allclose(answers[rows, columns], expected)
    simulate_searches.main([*map(str, runs), "--arm", "all", "items=4", "--seeds", "2", "--candidates", "20"])
    assert "| all | 80 | 20 |" in capsys.readouterr().out
    with pytest.raises(SuiteError, match="runs of one problem"):
        bank_of_runs([runs[0], logged(tmp_path / "three", 3, "b")], "log_probability")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["none.npz", "--arm", "full"], "none.npz is no response bank (No such file or directory)"),
        (["none", "--arm", "full"], "none is no run directory: give directories of searches, or an .npz"),
        (["none", "--arm", "full", "loks=3"], "--arm full: Unknown setting 'loks': did you mean 'looks'?"),
        (["none", "--arm", "full", "looks=many"], "--arm full: looks=many has no number: write looks=1, say"),
    ],
)
def test_what_there_is_not_is_said_in_one_line(
    given: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        simulate_searches.main(given)
    assert str(refused.value).startswith(f"error: {said}")
