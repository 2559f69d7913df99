"""What dropping saves and costs, on logged outcomes: `python scripts/simulate_dropping.py CACHE --metric accuracy`.

In: a cache that remembers outcomes of constants and of other merges on the same items, whole splits of them, as

    evomerge evaluate runs/demo constant:0.1 constant:0.2 … best.yaml mean.yaml --split select

leaves it (`evomerge export RUN --finalist best -o best.yaml` writes a finalist). Out: a table. A draw resamples the
items of each task with replacement. On it the best is chosen by a race (`selection/racing.py`), among the constants and
among the other merges with the best constant. Regret is the value of the best of all minus that of the one chosen, both
on all items of the draw: of a race among its own models, of the choice among all of them. What was scored before is not
scored again, in the race as without it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evomerge.fitness.base import Outcome
from evomerge.fitness.objectives import Objective
from evomerge.selection.field import SMOOTH
from evomerge.selection.racing import choose

LARGE = 0.002
"""A regret, and a difference between models, that counts."""
NEAR = 3
"""How many finalists make a set of near-equal ones."""

Rows = dict[str, dict[str, np.ndarray]]
"""By task and metric, the results of one model."""


class Line(NamedTuple):
    """What came of a race: the regret, whether one that is clearly better was dropped, and on how many items models
    were scored, with the race and without.
    """

    regret: float
    wrong: bool
    spent: int
    whole: int


def main() -> None:
    """Read the caches and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("caches", nargs="+", type=Path, help="directories with outcomes/, as model.cache has them")
    parser.add_argument("--metric", required=True, help="what decides: accuracy, score, ...")
    parser.add_argument("--weights", type=json.loads, help='of the tasks: {"german": 0.2}')
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    print("| models | items | regret ≤ .002 | mean regret | a better one dropped | item evaluations |")
    print("|---|---|---|---|---|---|")
    for cache in options.caches:
        if not (logged := _logged(cache, options.metric)):
            raise SystemExit(
                f"error: {cache} holds no {NEAR} constants with {options.metric}: name another cache or --metric"
            )
        for constants, finalists in logged:
            simulate(
                cache.name, constants, finalists, Objective(options.metric, weights=options.weights), options.draws
            )


def _logged(cache: Path, metric: str) -> list[tuple[dict[str, Rows], dict[str, Rows]]]:
    """Return constants and other merges, by sets of models that were scored on the same items of the same problem."""
    sets: dict[str, tuple[dict[str, Rows], dict[str, Rows]]] = defaultdict(lambda: ({}, {}))
    for file in sorted((cache / "outcomes").glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        about = dict(content["description"])
        model = about.pop("model", None)
        if not isinstance(model, dict) or "weight" not in model:
            continue
        if any(metric not in metrics for metrics in content["results"].values()):
            continue
        rows = {
            task: {name: np.array(row, dtype=float) for name, row in metrics.items() if name in (metric, SMOOTH)}
            for task, metrics in content["results"].items()
        }
        weights = set(_leaves(model["weight"]))
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        same = sets[key][len(weights) > 1]
        same[f"{weights.pop():g}" if len(weights) == 1 else f"merge {len(same) + 1}"] = rows
    return [
        ({name: constants[name] for name in sorted(constants, key=float)}, others)
        for constants, others in sets.values()
        if len(constants) >= NEAR
    ]


def _leaves(value: Any) -> list[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    return [leaf for each in value for leaf in _leaves(each)] if isinstance(value, list) else [value]


def simulate(
    name: str, constants: dict[str, Rows], finalists: dict[str, Rows], objective: Objective, draws: int
) -> None:
    """Print the rows of one set of models."""
    rng = np.random.default_rng(0)
    near = _nearest(finalists, objective) if len(finalists) >= NEAR else {}
    found: dict[str, list[Line]] = defaultdict(list)
    sizes = _sizes(next(iter(constants.values())))
    for _ in range(draws):
        drawn = {task: rng.integers(0, size, size) for task, size in sizes.items()}
        known: set[tuple[bytes, str, str]] = set()  # content of a model, task, item: scored already
        best, one = _race(constants, drawn, objective, known, line=True)
        found[f"{len(constants)} constants"].append(one)
        if len(finalists) < NEAR:
            continue
        last = {**finalists, f"constant {best}": constants[best]}
        winner, two = _race(last, drawn, objective, known)
        found[f"{len(finalists) + 1} finalists"].append(two)
        worse, cost = max(one.regret, two.regret), (one.spent + two.spent, one.whole + two.whole)
        found["both"].append(Line(worse, one.wrong or two.wrong, *cost))
        lost = _best({**constants, **finalists}, drawn, objective) - _best({winner: last[winner]}, drawn, objective)
        found["the choice"].append(Line(lost, lost > LARGE + 1e-9, *cost))
        found[f"{NEAR} near-equal finalists, alone"].append(_race(near, drawn, objective, set())[1])
    for what, lines in found.items():
        regret, wrong, spent, whole = (np.array(column) for column in zip(*lines, strict=True))
        print(
            f"| {name}: {what} | {sum(sizes.values())} | {np.mean(regret <= LARGE + 1e-9):.1%} | {regret.mean():.5f} | "
            f"{wrong.mean():.1%} | {spent.sum() / whole.sum():.1%} |"
        )


def _race(
    models: Mapping[str, Rows],
    drawn: Mapping[str, np.ndarray],
    objective: Objective,
    known: set[tuple[bytes, str, str]],
    line: bool = False,
) -> tuple[str, Line]:
    """Return who won, and what came of the race."""
    ids = {task: [str(i) for i in range(len(order))] for task, order in drawn.items()}
    content = {
        name: b"".join(row.tobytes() for metrics in rows.values() for row in metrics.values())
        for name, rows in models.items()
    }
    before, spent = set(known), 0

    def score(name: str, part: Mapping[str, Sequence[str]]) -> Outcome:
        nonlocal spent
        new = {(content[name], task, item) for task, items in part.items() for item in items} - known
        spent += len(new)
        known.update(new)
        places = {task: drawn[task][[int(item) for item in items]] for task, items in part.items()}
        return _outcome(models[name], part, places)

    chosen = choose(models, score, objective, ids, line=line)
    full = {name: objective(_outcome(rows, ids, drawn))[0][0] for name, rows in models.items()}
    regret = max(full.values()) - full[chosen.name]
    size = sum(len(items) for items in ids.values())
    better = any(full[name] > full[chosen.name] + LARGE and chosen.seen[name] < size for name in models)
    whole = size * len({content[name] for name in models} - {known_one for known_one, *_ in before})
    return chosen.name, Line(regret, better, spent, whole)


def _outcome(rows: Rows, ids: Mapping[str, Sequence[str]], places: Mapping[str, np.ndarray]) -> Outcome:
    """Return what a model scores on the items at some places."""
    results = {task: {name: row[places[task]] for name, row in rows[task].items()} for task in ids}
    return Outcome({task: list(items) for task, items in ids.items()}, results)


def _sizes(rows: Rows) -> dict[str, int]:
    return {task: len(next(iter(metrics.values()))) for task, metrics in rows.items()}


def _best(models: Mapping[str, Rows], drawn: Mapping[str, np.ndarray], objective: Objective) -> float:
    """Return the highest value on all items of a draw."""
    ids = {task: [str(i) for i in range(len(order))] for task, order in drawn.items()}
    return max(objective(_outcome(rows, ids, drawn))[0][0] for rows in models.values())


def _nearest(models: Mapping[str, Rows], objective: Objective) -> dict[str, Rows]:
    """Return those models next to each other in value, and not alike, that lie closest together."""
    value = {
        name: _best({name: rows}, {t: np.arange(n) for t, n in _sizes(rows).items()}, objective)
        for name, rows in models.items()
    }
    order = sorted(models, key=lambda name: value[name])
    spans = [(value[order[i + NEAR - 1]] - value[order[i]], i) for i in range(len(order) - NEAR + 1)]
    start = min(spans)[1]
    return {name: models[name] for name in order[start : start + NEAR]}


if __name__ == "__main__":
    main()
