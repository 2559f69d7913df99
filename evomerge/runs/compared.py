"""The log of a comparison: what each contestant reached, a line each. It is the checkpoint; see `search/journal.py`.

    header   what is compared (hashes of sources and items, contestants with their settings), on what kind of machine
    choice   the constant that a contestant chose, and its results on every select item; or why it has none
    score    the results of a model on every item of a split: of the base, of task arithmetic, of the best; or why not

In: results by name. Out: the same, also from an earlier run that was killed: nothing is scored twice. Nothing in the
log comes from clocks, paths or addresses; what things cost stands in `costs.jsonl`, which may be deleted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from evomerge.common.errors import LogError
from evomerge.fitness.base import Outcome
from evomerge.runs.directory import read_timings
from evomerge.search.journal import Journal
from evomerge.selection.ranking import Entered
from evomerge.selection.standings import Cost
from evomerge.trials import finite

LOG = "comparison.jsonl"
COSTS = "costs.jsonl"
FORMAT = 1
WORDS = {
    "contestants": "the methods or their weights",
    "experts": "the experts",
    "base": "the base",
    "items": "the items",
    "seed": "the seed",
    "blocks": "the blocks of items (evaluator.blocks)",
}
"""What people call parts of an identity."""

Ids = Mapping[str, list[str]]
"""By task, ids of items."""


class ComparisonLog:
    """The open log of a comparison; a context manager that holds its lock.

    Args:
        directory: of the comparison; made when missing.
        identity: what makes this comparison this one, as plain data.
        fingerprint: the kind of machine.
        ids: the items of each split by task, in their order.
        metric: of which results are kept.

    Attributes:
        moved: whether another kind of machine wrote what is there.

    Raises:
        LogError: another process writes to it, it is damaged, or it belongs to another comparison.
    """

    def __init__(
        self,
        directory: Path,
        identity: Mapping[str, Any],
        fingerprint: Mapping[str, Any],
        ids: Mapping[str, Ids],
        metric: str,
    ) -> None:
        self._directory, self._ids, self._metric = directory, ids, metric
        self._header = json.loads(json.dumps({"identity": identity, "fingerprint": fingerprint}))
        self._journal = Journal(directory / LOG, "--out runs/another")
        self._lines: dict[tuple[str, str], dict[str, Any]] = {}
        self.moved = False

    def __enter__(self) -> Self:
        lines = self._journal.open()
        try:
            if lines:
                self._check(lines[0])
            else:
                self._journal.append({"kind": "header", "format": FORMAT, **self._header})
        except BaseException:
            self._journal.close()
            raise
        self._lines = {_key(line): line for line in lines[1:]}
        return self

    def __exit__(self, *exc: object) -> None:
        self._journal.close()

    def choice(self, name: str) -> Entered | str | None:
        """Return what a contestant reached on the select split, or why it reached nothing; None if it is not known."""
        if (line := self._lines.get(("choice", name))) is None:
            return None
        if "error" in line:
            return str(line["error"])
        return Entered(line["constant"], line["values"], line["seen"], self._outcome(line, "select"))

    def score(self, name: str, split: str) -> Outcome | str | None:
        """Return the outcome of a model on a split, or why there is none; None if it is not known."""
        if (line := self._lines.get((split, name))) is None:
            return None
        return str(line["error"]) if "error" in line else self._outcome(line, split)

    def add_choice(self, name: str, found: Entered | str) -> None:
        """Write what a contestant reached on the select split, or why it reached nothing."""
        if isinstance(found, str):
            self._add({"kind": "choice", "name": name, "error": found})
        else:
            own = {"constant": found.constant, "values": found.values, "seen": found.seen}
            self._add({"kind": "choice", "name": name, **own, "results": self._results(found.outcome)})

    def add_score(self, name: str, split: str, found: Outcome | str) -> None:
        """Write the outcome of a model on a split, or why there is none."""
        own = {"error": found} if isinstance(found, str) else {"results": self._results(found)}
        self._add({"kind": "score", "name": name, "split": split, **own})

    def add_cost(self, name: str, cost: Cost) -> None:
        """Take note of what a contestant took; beside the log, since clocks say it."""
        with (self._directory / COSTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, **vars(cost)}) + "\n")

    def costs(self) -> dict[str, Cost]:
        """Return what contestants took: of several numbers the first, since later runs find rows that are prepared."""
        found: dict[str, Cost] = {}
        for row in read_timings(self._directory / COSTS):
            before = vars(found.get(row["name"], Cost()))
            both = {key: row[key] if old is None else old for key, old in before.items()}
            found[row["name"]] = Cost(**both)
        return found

    def _add(self, line: Mapping[str, Any]) -> None:
        written = json.loads(json.dumps(finite(line)))
        self._journal.append(written)
        self._lines[_key(written)] = written

    def _results(self, outcome: Outcome) -> dict[str, list[float]]:
        return {task: found[self._metric].tolist() for task, found in outcome.results.items()}

    def _outcome(self, line: Mapping[str, Any], split: str) -> Outcome:
        results = {task: {self._metric: np.array(row)} for task, row in line["results"].items()}
        return Outcome({task: list(self._ids[split][task]) for task in results}, results)

    def _check(self, header: Mapping[str, Any]) -> None:
        if header.get("kind") != "header" or header.get("format") != FORMAT:
            raise LogError(
                f"{self._directory / LOG} is no log of a comparison that this version of evomerge reads: name another "
                f"directory with --out, or go on with the version that wrote it."
            )
        old, new = header["identity"], self._header["identity"]
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if changed:
            what = list(dict.fromkeys(WORDS.get(str(name), str(name)) for name in changed))
            raise LogError(
                f"{self._directory} holds another comparison, which differs in {', '.join(what)}. Going on would mix "
                f"the two: name another directory with --out, or put the settings back."
            )
        self.moved = header["fingerprint"] != self._header["fingerprint"]


def _key(line: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a line is about: the choice of a contestant, or a model on a split."""
    return line.get("split", line["kind"]), line["name"]
