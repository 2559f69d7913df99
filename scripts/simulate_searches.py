"""Whole searches at no cost: `python scripts/simulate_searches.py BANK.npz --arm full --arm raced alpha=0.1`.

In: a response bank (`scripts/response_bank.py`), or run directories, whose logs make one (`affordable/logs.py`). Out:
what the winner of each kind of search is worth beside that of the first one, in parts of that one's gain over the best
constant. A model of the bank stands in for merges: the answer to each item is a smooth function of the coefficients, by
kernel ridge regression on the models of the bank. Searchers, evaluators and races are evomerge's own.

There is no answer that its smooth function does not explain. So it says how rules compare, over many seeds; what a
search is worth, a search on models says.

The finalists are the searcher's incumbents and the constants. They are chosen among on one half of the select items,
and the winner is worth its value on the other half.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from affordable.bank import Bank
from affordable.logs import bank_of_runs
from affordable.noise import next_size, smoothed, with_leaders

from evomerge.common.errors import ConfigError, EvomergeError, SuiteError
from evomerge.common.names import unknown
from evomerge.fitness.base import Outcome
from evomerge.fitness.items import Item
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.search.evaluators.racing import Racing, RacingEvaluator
from evomerge.search.evaluators.units import Scored, Unit
from evomerge.search.evaluators.values import ValueEvaluator
from evomerge.searchers.base import Searcher, parents_of
from evomerge.searchers.cmaes import CmaEs
from evomerge.searchers.screened import Screened
from evomerge.searchers.tpe import Tpe
from evomerge.searchers.warm import WarmStart, constants
from evomerge.space.coefficients import make_space
from evomerge.space.variable import Variable

METRIC = "log_probability"
WHOLE = ("items", "looks", "candidates", "fresh", "leaders", "adapt", "smooth")
"""Settings of an arm that are whole numbers."""
RIDGE, LINEAR = 0.01, 0.2
"""The penalty, and the weight of a linear kernel beside that of distances."""


@dataclass(frozen=True)
class Arm:
    """One kind of search.

    Attributes:
        name: of it.
        items: that a candidate is scored on.
        alpha: of its races; 0 for none.
        looks: of its races.
        share: of the item evaluations of the first arm that it may spend.
        candidates: how many it may score.
        fresh: 1 for other items in each generation.
        leaders: how many of a generation are scored on as many other items as well.
        adapt: 1 for a number of items that grows while they rank a generation at random.
        smooth: how many finalists a regression over all candidates names, in place of the best values; 0 for none.
        screen: the share of a generation of CMA-ES that a regression leaves to be scored; 0 for no screening.
    """

    name: str
    items: int = 100
    alpha: float = 0.0
    looks: int = 3
    share: float = 1.0
    candidates: int = 10**9
    fresh: int = 0
    leaders: int = 0
    adapt: int = 0
    smooth: int = 0
    screen: float = 0.0


class Family:
    """What answers items in place of merges, and the search items and select items that it answers.

    Args:
        bank: of real merges; NaN where one was not asked.
        ridge: the penalty.
        width: the squared length scale as a multiple of the median squared distance.
    """

    def __init__(self, bank: Bank, ridge: float = RIDGE, width: float = 1.0) -> None:
        known = np.isfinite(bank.points).all(1)
        self._points, answers = bank.points[known], bank.responses[METRIC][known]
        distances = ((self._points[:, None] - self._points[None]) ** 2).sum(-1)
        self._width = width * float(np.median(distances[distances > 0]))
        self._mean, self._fit = np.nanmean(answers, axis=0), np.zeros(answers.shape)
        kernel = self._kernel(self._points) + ridge * np.eye(len(answers))
        asked = np.isfinite(answers)
        for pattern in np.unique(asked, axis=1).T:  # items that the same merges have answered
            columns, rows = (asked == pattern[:, None]).all(0), np.flatnonzero(pattern)
            apart = answers[np.ix_(rows, columns)] - self._mean[columns]
            self._fit[np.ix_(rows, columns)] = np.linalg.solve(kernel[np.ix_(rows, rows)], apart)
        tasks = [str(task) for task in bank.tasks]
        self._column = {str(item): i for i, item in enumerate(bank.items)}
        of = {t: [i for i in range(len(bank.items)) if bank.task[i] == number] for number, t in enumerate(tasks)}
        self.items = {
            task: [Item(str(bank.items[i]), "", int(bank.labels[i])) for i in columns if bank.splits[i] == "search"]
            for task, columns in of.items()
        }
        select = [[i for i in columns if bank.splits[i] == "select"] for columns in of.values()]
        self._halves = [[columns[half::2] for columns in select] for half in (0, 1)]
        size = self._points.shape[1]
        weight = Variable("weight", 0.0, 1.5, 0.4)
        self.space = make_space("tensor", {f"p{i}": (1,) for i in range(size)}, ["expert"], [weight])

    def answers(self, x: np.ndarray) -> np.ndarray:
        """Return the answer of a point, (dim,), to every item of the bank."""
        return (self._kernel(x[None]) @ self._fit)[0] + self._mean

    def value(self, x: np.ndarray, half: int) -> float:
        """Return what a point is worth on one half of the select items."""
        found = self.answers(x)
        return float(np.mean([found[columns].mean() for columns in self._halves[half]]))

    def __call__(self, units: Sequence[Unit]) -> Iterator[tuple[int, Scored]]:
        """Score units, as a scorer does."""
        for position, unit in enumerate(units):
            found = self.answers(np.asarray(unit.model))
            results = {task: {METRIC: found[[self._column[item] for item in ids]]} for task, ids in unit.ids.items()}
            yield position, Scored(Outcome(dict(unit.ids), results))

    def _kernel(self, x: np.ndarray) -> np.ndarray:
        apart = ((x[:, None] - self._points[None]) ** 2).sum(-1)
        return np.exp(-apart / self._width) + LINEAR * x @ self._points.T / self._points.shape[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Search with each arm and seed, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bank", type=Path, nargs="+", help="an .npz, or run directories")
    parser.add_argument(
        "--ridge", type=float, default=RIDGE, help=f"of the regression that stands in for merges ({RIDGE})"
    )
    parser.add_argument("--width", type=float, default=1.0, help="of its kernel, in median distances (1)")
    parser.add_argument(
        "--arm", nargs="+", action="append", required=True, metavar="WORD", help="NAME setting=number …"
    )
    parser.add_argument("--searcher", choices=("cmaes", "tpe"), default="cmaes")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument(
        "--candidates", type=int, default=100, help="of the first arm; with its items they are the budget"
    )
    options = parser.parse_args(argv)
    try:
        arms, bank = [_arm(name, given) for name, *given in options.arm], _bank(options.bank)
    except EvomergeError as error:
        raise SystemExit(f"error: {error}") from error
    logging.disable(logging.WARNING)  # of candidates that nothing ails
    family, budget, first = Family(bank, options.ridge, options.width), options.candidates * arms[0].items, None
    best = max(constants(family.space), key=lambda x: family.value(x, 0))
    print("| search | item evaluations | candidates | dropped | value | beside the first, in parts of its gain |")
    print("|---|---|---|---|---|---|")
    for arm in arms:
        rows = np.array([_search(family, options.searcher, seed, arm, budget) for seed in range(options.seeds)])
        first = rows[:, 0] if first is None else first
        apart = (rows[:, 0] - first) / (first.mean() - family.value(best, 1))
        spent, scored, dropped = rows[:, 1:].mean(0)
        print(
            f"| {arm.name} | {spent:,.0f} | {scored:.0f} | {dropped / scored:.0%} | {rows[:, 0].mean():.4f} | "
            f"{apart.mean():+.3f} ± {apart.std(ddof=1) / np.sqrt(len(apart)):.3f} |",
            flush=True,
        )


def _bank(given: Sequence[Path]) -> Bank:
    """Return the bank of a file, or of run directories.

    Raises:
        EvomergeError: it is none, or has not the metric that is searched.
    """
    if given[0].suffix != ".npz":
        return bank_of_runs(given, METRIC)
    bank = Bank.load(given[0])
    if METRIC not in bank.responses:
        raise SuiteError(f"{given[0]} has no {METRIC}, by which these searches go: give another bank")
    return bank


def _arm(name: str, given: Sequence[str]) -> Arm:
    """Return an arm of what the user wrote.

    Raises:
        ConfigError: it is no setting of an arm with a number.
    """
    known, values = [each.name for each in fields(Arm)][1:], dict[str, float]()
    for each in given:
        setting, _, value = each.partition("=")
        if setting not in known:
            raise ConfigError(f"--arm {name}: {unknown('setting', setting, known)}")
        try:
            values[setting] = float(value)
        except ValueError:
            raise ConfigError(f"--arm {name}: {each} has no number: write {setting}=1, say") from None
    whole = {setting: int(values[setting]) for setting in WHOLE if setting in values}
    return Arm(name, **{**values, **whole})  # pyright: ignore[reportArgumentType]


def _search(family: Family, kind: str, seed: int, arm: Arm, budget: int) -> tuple[float, int, int, int]:
    """Return what the winner is worth, the item evaluations, and how many candidates were scored and dropped."""
    subset, objective = Subset(family.items, arm.items, seed, bool(arm.fresh)), Objective(METRIC)
    others = Subset(family.items, arm.items, seed + 10_000, bool(arm.fresh))

    def make(start: np.ndarray) -> Searcher:
        if arm.screen:
            return Screened(family.space, start, seed, arm.screen)
        return CmaEs(family.space, start, seed) if kind == "cmaes" else Tpe(family.space, start, seed)

    searcher = WarmStart(family.space, make)
    evaluate = ValueEvaluator(family, subset, objective)
    if arm.alpha:
        racing = Racing(arm.alpha, arm.looks, lambda: parents_of(searcher))
        evaluate = RacingEvaluator(evaluate, family, objective, racing)
    spent = scored = dropped = 0
    points, values = list[np.ndarray](), list[float]()
    while True:
        batch = searcher.ask()
        count, again = len(batch.points), arm.leaders if batch.index else 0
        if spent + count * subset.size + again * others.size > arm.share * budget or scored + count > arm.candidates:
            break
        trials = list(evaluate(batch, batch.missing))
        spent += sum(trial.spent for trial in trials) + again * others.size
        scored, dropped = scored + count, dropped + sum(trial.status == "censored" for trial in trials)
        if again:
            best = sorted(trials, key=lambda trial: -(trial.values or (-np.inf,))[0])[:again]
            second = ValueEvaluator(family, others, objective)(batch, [trial.index for trial in best])
            trials = with_leaders(trials, {trial.index: trial.values[0] for trial in second if trial.values})
        if arm.adapt and batch.index:
            size = next_size(trials, METRIC, subset.size, arm.items // 2, sum(map(len, family.items.values())))
            subset = Subset(family.items, size, seed, rotate=True)
            evaluate = ValueEvaluator(family, subset, objective)
        for trial in trials:
            batch.trials[trial.index] = trial
            points.append(batch.points[trial.index])
            values.append((trial.values or (-np.inf,))[0])
        searcher.tell(batch)
    found = [one.x for one in searcher.incumbents().values()]
    if arm.smooth:
        found = [*smoothed(np.array(points), np.array(values), arm.smooth), found[0]]  # the mean stays
    finalists = [*found, *constants(family.space)]
    winner = max(finalists, key=lambda x: family.value(x, 0))
    return family.value(winner, 1), spent, scored, dropped


if __name__ == "__main__":
    main()
