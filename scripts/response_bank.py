"""Keeps what hundreds of merges answer to every item: `python scripts/response_bank.py model=text --out text.npz`.

In: settings of a search. Out: an .npz (`affordable/bank.py`) and a JSON that describes it, on which rules of choosing
and dropping are compared without a model (`simulate_affordable.py`). Scored are base, experts, constants, and what
searches by CMA-ES, TPE and at random ask for when they are told the value on all search items, generation by
generation. Only search and select items are scored: whatever is chosen by help of the bank may still be reported on
report items. Every merge is kept as soon as it is scored, in OUT.rows.jsonl, so a bank that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from affordable.bank import BASE, CONSTANT, EXPERT, NONE, SPLITS, Bank

from evomerge import __version__
from evomerge.cli.progress import Reporter
from evomerge.cli.settings import compose_settings
from evomerge.common.digests import digest
from evomerge.common.errors import EvomergeError
from evomerge.common.files import write_atomically
from evomerge.fitness.base import Outcome
from evomerge.fitness.objectives import Objective
from evomerge.problem import Problem
from evomerge.runs.build import build_problem, make_searcher
from evomerge.runs.config import plain
from evomerge.search.evaluators.blocks import outcome_or_raise
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.evaluators.splits import live_fitness, make_objective, make_subsets
from evomerge.search.evaluators.units import Unit
from evomerge.searchers.base import Searcher

DESCRIPTION = """\
Score hundreds of merges on all search and select items, and keep what each answered to each item.

setting=value is as for `evomerge search`: model=text model.suite=DIRECTORY space=layer fitness.select_items=300 ...
fitness.items is how many search items are scored; here all of them are, where you do not say otherwise.
"""
EXAMPLES = """\
A bank of about 330 merges on the small text suite, on one core:

  python scripts/build_suite.py text --small
  python scripts/response_bank.py model=text model.suite=suites/text-small --out banks/text.npz

The same command again goes on where it was killed; with higher numbers it adds merges. The .npz is written anew after
each generation of each search, so what is there can be looked at meanwhile.
"""
CONSTANTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)

Results = dict[str, dict[str, dict[str, list[float]]]]
"""By split, task and metric."""


class Row(NamedTuple):
    """A model and what it answered."""

    kind: str
    name: str
    generation: int
    place: int
    point: np.ndarray | None
    results: Results


def main(argv: Sequence[str] | None = None) -> None:
    """Score what is missing, and write the bank."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="+", metavar="setting=value", help="of a search")
    parser.add_argument("--out", type=Path, required=True, help="the .npz; a .json beside it says what is in it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="of the searches by CMA-ES and TPE (1 2)")
    parser.add_argument("--cmaes", type=int, default=90, help="merges of each search by CMA-ES, at least (90)")
    parser.add_argument("--tpe", type=int, default=48, help="merges of each search by TPE, in generations of 8 (48)")
    parser.add_argument("--random", type=int, default=40, help="merges drawn at random (40)")
    parser.add_argument("--constants", type=float, nargs="*", default=CONSTANTS, help="weights (0.1 to 1.5)")
    options = parser.parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = ["fitness.items=null", *options.settings]
    sizes = {"cmaes": options.cmaes, "tpe": options.tpe}
    searches = [(kind, seed, size) for kind, size in sizes.items() for seed in options.seeds]
    try:
        fill(given, [*searches, ("random", 1, options.random)], options.constants, options.out, Reporter())
    except EvomergeError as error:
        raise SystemExit(f"error: {error}") from error


def fill(
    given: Sequence[str],
    searches: Sequence[tuple[str, int, int]],
    constants: Sequence[float],
    out: Path,
    reporter: Reporter,
) -> Bank:
    """Score what is missing, write the bank, and return it.

    Args:
        given: settings of a search.
        searches: searcher, seed, and how many merges at least.
        constants: weights.
        out: the .npz.
        reporter: tells how far it is.
    """
    settings = plain(compose_settings(given))
    with reporter.bars():
        problem = build_problem(settings, reporter)
    respondents = Respondents(problem, out.with_suffix(".rows.jsonl"))
    rows = [respondents.row(BASE, BASE), *(respondents.row(EXPERT, name) for name in problem.vectors.experts)]
    for weight in constants:
        point = problem.space.start({"weight": weight})
        rows.append(Row(CONSTANT, f"{weight:g}", NONE, NONE, point, respondents.at(point)))
    asked = [_followed(kind, seed, size, given, problem, respondents) for kind, seed, size in searches if size]
    with reporter.counting("scoring merges", sum(size for *_, size in searches)) as count:
        for turn in zip_longest(*asked, fillvalue=()):
            for generation in turn:
                rows += generation
                count(len(generation))
            _write(rows, problem, respondents, given, out)
    bank = _write(rows, problem, respondents, given, out)
    merges = len({row.point.tobytes() for row in rows if row.point is not None})
    reporter.say(f"{out}: {len(rows)} rows, {merges} merges, {bank.items.size} items")
    return bank


class Respondents:
    """Models of a problem and what they answer; a model is scored once.

    Args:
        problem: says how merges are made and scored.
        file: keeps what was scored, a line a model.

    Attributes:
        ids: of search and select items, by split and task.
        value: what a searcher is told of the results.

    Raises:
        EvomergeError: the file is of other models, items or settings.
    """

    def __init__(self, problem: Problem, file: Path) -> None:
        subsets = make_subsets(problem)
        self.ids = {split: subsets[split](0) for split in SPLITS}
        self._problem, self._file = problem, file
        self._fitnesses = {split: live_fitness(problem, problem.items[split]) for split in SPLITS}
        self._scorer = SerialScorer(problem, self._fitnesses)
        self._objective: Objective = make_objective(problem, self._scorer, subsets["search"])
        self.seconds = list[float]()
        self._known = self._read(digest({**problem.contents, **problem.circumstances, "ids": self.ids}))

    def _read(self, of: str) -> dict[str, Results]:
        """Return what was scored before; a last line that was cut off by a kill is taken away."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        if lines and json.loads(lines[0]) != {"of": of}:
            raise EvomergeError(f"{self._file} is of other models, items or settings: name another --out.")
        write_atomically(self._file, "".join(line + "\n" for line in lines or [json.dumps({"of": of})]))
        known = [json.loads(line) for line in lines[1:]]
        return {each["key"]: each["results"] for each in known}

    def value(self, results: Results) -> float:
        """Return the value of a model on the search items."""
        return self._objective(_outcome(self.ids["search"], results["search"]))[0][0]

    @property
    def objective(self) -> Objective:
        """What makes values of results."""
        return self._objective

    def row(self, kind: str, name: str) -> Row:
        """Return the row of the base or of an expert, on the items of all tasks."""
        return Row(kind, name, NONE, NONE, None, self._once(f"{kind} {name}", lambda: self._as_it_came(kind, name)))

    def at(self, point: np.ndarray) -> Results:
        """Return the results of the merge at a point."""
        key = digest(point.tolist())
        return self._once(key, lambda: self._merged(point))

    def _once(self, key: str, score: Callable[[], Results]) -> Results:
        if key not in self._known:
            started = time.perf_counter()
            self._known[key] = score()
            self.seconds.append(time.perf_counter() - started)
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"key": key, "results": self._known[key]}) + "\n")
        return self._known[key]

    def _merged(self, point: np.ndarray) -> Results:
        units = [Unit(point, self.ids[split], split) for split in SPLITS]  # merged once for both
        return {SPLITS[i]: _plain(outcome_or_raise(scored)) for i, scored in self._scorer(units)}

    def _as_it_came(self, kind: str, name: str) -> Results:
        self._problem.become(name if kind == EXPERT else None)
        try:
            return {split: _plain(self._fitnesses[split](self.ids[split])) for split in SPLITS}
        finally:
            self._problem.become(None)


def _plain(outcome: Outcome) -> dict[str, dict[str, list[float]]]:
    return {task: {name: each.tolist() for name, each in row.items()} for task, row in outcome.results.items()}


def _outcome(ids: Mapping[str, list[str]], results: Mapping[str, Mapping[str, list[float]]]) -> Outcome:
    return Outcome(ids, {task: {name: np.array(each) for name, each in row.items()} for task, row in results.items()})


def _followed(
    kind: str, seed: int, size: int, given: Sequence[str], problem: Problem, respondents: Respondents
) -> Iterator[list[Row]]:
    """Yield the rows of a search, a generation at a time, until there are so many."""
    own = [f"searcher={kind}", f"seed={seed}", *(["searcher.batch=8"] if kind == "tpe" else [])]
    searcher: Searcher = make_searcher(plain(compose_settings([*given, *own])), problem.space)
    asked = 0
    while asked < size and searcher.stop() is None:
        batch = searcher.ask()
        results = [respondents.at(point) for point in batch.points]
        yield [
            Row(kind, f"{kind} {seed}", batch.index, place, point, found)
            for place, (point, found) in enumerate(zip(batch.points, results, strict=True))
        ]
        searcher.tell(batch.scored(respondents.value(found) for found in results))
        asked += len(results)


def _write(rows: Sequence[Row], problem: Problem, respondents: Respondents, given: Sequence[str], out: Path) -> Bank:
    """Write the rows that are there, and what they are, and return them as a bank."""
    ids, tasks = respondents.ids, list(respondents.ids["search"])
    labels = {split: {item.id: item.label for each in problem.items[split].values() for item in each} for split in ids}
    cells = [(split, task, item) for split in SPLITS for task in tasks for item in ids[split][task]]
    nowhere = np.full(problem.space.dim, np.nan)
    weights = respondents.objective.weights_of(ids["search"])
    if weights is None:
        raise EvomergeError("A bank needs a value that is a weighted mean of items: leave objective as it is.")
    bank = Bank(
        kinds=np.array([row.kind for row in rows]),
        names=np.array([row.name for row in rows]),
        generations=np.array([row.generation for row in rows]),
        places=np.array([row.place for row in rows]),
        points=np.array([nowhere if row.point is None else row.point for row in rows]),
        tasks=np.array(tasks),
        weights=np.array([weights[task] for task in tasks]),
        items=np.array([item for *_, item in cells]),
        task=np.array([tasks.index(task) for _, task, _ in cells]),
        labels=np.array([labels[split][item] for split, _, item in cells]),
        splits=np.array([split for split, *_ in cells]),
        metric=problem.goal.metric,
        responses={
            metric: np.array([[x for s in SPLITS for t in tasks for x in row.results[s][t][metric]] for row in rows])
            for metric in problem.fitness.metrics
        },
    )
    bank.save(out)
    kinds, counts = np.unique(bank.kinds, return_counts=True)
    about: dict[str, Any] = {
        "evomerge": __version__,
        "settings": list(given),
        "contents": digest(problem.contents),
        "tasks": {task: {split: len(ids[split][task]) for split in SPLITS} for task in tasks},
        "coefficients": problem.space.dim,
        "rows": dict(zip(kinds.tolist(), counts.tolist(), strict=True)),
        "metric": bank.metric,
        "metrics": list(bank.responses),
        "seconds a merge": round(float(np.median(respondents.seconds)), 3) if respondents.seconds else None,
    }
    write_atomically(out.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
    return bank


if __name__ == "__main__":
    main()
