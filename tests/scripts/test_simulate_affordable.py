"""Rules that choose with fewer item evaluations, on banks made by hand; item response theory by numbers worked out."""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import simulate_affordable
from affordable.bank import BASE, CONSTANT, EXPERT, NONE, Bank
from affordable.draws import RIGHT, SMOOTH, Draw, Known, generations
from affordable.estimates import ESTIMATES
from affordable.rules import BESIDE, RACES, RULES, chosen, everything
from affordable.samples import Growing

SIZES = (40, 25)
"""Of the two tasks, on each split."""
STAGED = [name for name in RULES if name.startswith(("racing", "halving", "down"))]
"""Rules that score nobody on all items but where they may score everybody."""


def made(rng: np.random.Generator, merges: int = 24) -> Bank:
    """A bank of a search whose later generations are better."""
    kinds = [BASE, EXPERT, EXPERT, CONSTANT, CONSTANT, *["random"] * 4, *["cmaes"] * merges]
    count, own = len(kinds), 2 * sum(SIZES)
    generations = [NONE] * 5 + [0] * 4 + [1 + i // 8 for i in range(merges)]
    task = np.tile(np.repeat([0, 1], SIZES), 2)
    margin = rng.normal(0.0, 0.4, (count, 2))[:, task] + rng.normal(0.0, 1.2, own)
    margin += rng.normal(0.0, 0.6, (count, own)) + 0.2 * np.maximum(generations, 0)[:, None]
    return Bank(
        kinds=np.array(kinds),
        names=np.array([f"{kind} 1" if kind in ("random", "cmaes") else f"{kind}{i}" for i, kind in enumerate(kinds)]),
        generations=np.array(generations),
        places=np.arange(count),
        points=np.zeros((count, 2)),
        tasks=np.array(["a", "b"]),
        weights=np.array([0.7, 0.3]),
        items=np.array([f"i{i}" for i in range(own)]),
        task=task,
        labels=rng.integers(0, 3, own),
        splits=np.repeat(["search", "select"], sum(SIZES)),
        metric=RIGHT,
        responses={RIGHT: (margin > 0).astype(float), SMOOTH: -np.log1p(np.exp(-margin))},
    )


@pytest.fixture(scope="module")
def draws() -> list[Draw]:
    bank = made(np.random.default_rng(3))
    return list(generations(Known(bank, RIGHT, bank.columns("search")), ["cmaes"], 8, 4, 60))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_keeps_to_its_budget_and_is_right_with_all_of_it(draws: list[Draw], name: str) -> None:
    rule = RULES[name]
    for draw in draws[:3]:
        whole = chosen(rule, draw, draw.whole) if name in (*BESIDE, *STAGED) else rule(draw, draw.whole)
        assert whole.order.tolist() == everything(draw).order.tolist()
        for share in (0.1, 0.3, 0.9):
            choice = rule(draw, int(share * draw.whole))
            assert choice.spent <= share * draw.whole
            assert sorted(choice.order) == list(range(8))


def test_a_race_to_the_end_spares_items_and_finds_the_parents(draws: list[Draw]) -> None:
    races = [(RACES["racing, α = 0.2"](draw, 0), everything(draw).order[:4], draw) for draw in draws]
    assert np.mean([len(set(parents) - set(choice.order[:4])) / 4 for choice, parents, _ in races]) < 0.2
    assert np.mean([choice.spent / draw.whole for choice, _, draw in races]) < 0.97


@pytest.mark.parametrize("name", ["random subset", "stratified by class", "expert disagreement"])
def test_estimates_by_samples_have_no_bias(draws: list[Draw], name: str) -> None:
    draw = draws[0]
    found = np.array([ESTIMATES[name](draw, 16) for _ in range(400)])
    error = found.std(axis=0) / np.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - draw.decides @ draw.known.shares) < 4 * error).all()


@pytest.mark.parametrize("name", ESTIMATES)
def test_estimates_of_all_items_are_the_value(draws: list[Draw], name: str) -> None:
    draw = draws[0]
    np.testing.assert_allclose(ESTIMATES[name](draw, sum(SIZES)), draw.decides @ draw.known.shares)


@pytest.mark.parametrize("by_disagreement", [False, True])
def test_a_larger_sample_holds_the_smaller_one(draws: list[Draw], by_disagreement: bool) -> None:
    grow = Growing(draws[0], by_disagreement)
    small, large, whole = grow(10), grow(30), grow(sum(SIZES))
    assert set(small.items) < set(large.items)
    assert small.weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(whole.weights, draws[0].known.shares[whole.items])


def test_tables_of_a_bank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(np.random.default_rng(1)).save(tmp_path / "made.npz")
    simulate_affordable.main([str(tmp_path / "made.npz"), "--seeds", "3", "--candidates", "6", "--bootstraps", "20"])
    table = capsys.readouterr().out
    assert "3 draws of 6 candidates" in table
    for name in [*RULES, *RACES, *ESTIMATES]:
        assert f"| {name} |" in table


def test_errors_are_of_all_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(np.random.default_rng(1)).save(tmp_path / "made.npz")
    given, counted = list[int](), list[int]()
    monkeypatch.setattr(simulate_affordable, "compare", lambda drawn, _: counted.append(len(drawn)))
    monkeypatch.setattr(simulate_affordable, "errors", lambda drawn: given.append(len(drawn)) or [])
    simulate_affordable.main([str(tmp_path / "made.npz"), "--seeds", "130", "--candidates", "6"])
    assert given == counted == [130]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["made.npz", "--metric", "foo"], "made.npz has no foo: write --metric accuracy or log_probability"),
        (["made.npz", "--kinds", "cmaes", "foo"], "made.npz has no foo: write --kinds random or cmaes"),
        (["none.npz"], "none.npz is no response bank (No such file or directory): write one with scripts/"),
        (["cut.npz"], "cut.npz is no response bank (File is not a zip file): write one with scripts/response_bank.py"),
        (["empty.npz"], "empty.npz is no response bank (No data left in file): write one with"),
    ],
)
def test_what_a_bank_has_not_is_said_in_one_line(
    given: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(np.random.default_rng(1)).save(tmp_path / "made.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "made.npz").read_bytes()[:200])
    (tmp_path / "empty.npz").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        simulate_affordable.main(given)
    assert str(refused.value).startswith(f"error: {said}")
    assert "\n" not in str(refused.value)


def test_no_draws_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        simulate_affordable.main([str(tmp_path / "made.npz"), "--seeds", "0"])
    assert "--seeds 0 is no number of them: write 1 or more" in capsys.readouterr().err
