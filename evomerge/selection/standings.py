"""What is known of a comparison at its end: the content of `comparison.json`.

In: what each contestant reached, or the text of a file. Out: `Standings`, or that text. JSON has no NaN: what is not
finite is written, and comes back, as None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from evomerge.common.shown import Shown
from evomerge.fitness.base import title
from evomerge.selection.statistics import Numbers, Paired, Score, chance_text, plus_minus
from evomerge.trials import finite

RESULT = "comparison.json"
"""In the directory of a comparison that has ended."""
ALPHA = 0.05
"""The chance below which a difference is called one, all tests taken together."""
OTHERWISE = "The order is that of the objective of the settings, which is not the mean that is shown."


@dataclass(frozen=True)
class OnReport:
    """What one of the best is worth on the report split.

    Attributes:
        score: its own.
        difference: it minus task arithmetic on the same items.
        chance: of a difference as large where there is none (two-sided); None where it is not known.
        corrected: the same, corrected for how many were tested (Holm).
        error: why it has no score; then all else is None.
    """

    score: Score | None = None
    difference: Paired | None = None
    chance: float | None = None
    corrected: float | None = None
    error: str = ""

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `same` as task arithmetic, as far as can be said; nothing where there is no test."""
        if self.corrected is None or self.difference is None or self.difference.diff is None:
            return ""
        return "same" if self.corrected >= ALPHA else "better" if self.difference.diff > 0 else "worse"


@dataclass(frozen=True)
class Cost:
    """What a contestant took.

    Attributes:
        prepare: seconds to transform task vectors, or to sort them; None where an earlier run has left them.
        merge: seconds to merge a candidate.
        nbytes: bytes of its rows, as they are kept.
    """

    prepare: float | None = None
    merge: float | None = None
    nbytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A contestant in the table of a comparison.

    Attributes:
        name: of the contestant.
        title: what it does.
        paper: where it was published.
        needs: what it needs beside a base.
        constant: the weight that it chose on the select split.
        values: what each weight reached there, by the weight.
        seen: on how many items; fewer than all for a weight that was dropped, or like its neighbours.
        value: what decides its place: that of the chosen weight.
        select: its score on the select split.
        ahead: it minus task arithmetic there, on the same items; None for task arithmetic.
        tested: on the report split; None for whoever was not scored there.
        cost: what it took.
    """

    name: str
    title: str
    paper: str
    needs: str
    constant: float
    values: Numbers
    seen: Mapping[str, int]
    value: float
    select: Score
    ahead: Paired | None
    tested: OnReport | None
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Standings:
    """A comparison that has ended.

    Attributes:
        rows: who took part, the best on the select split first.
        reference: the name of task arithmetic among them.
        base: the base's score by split; None where it has none.
        left_out: why others have no row, by name.
        metric: of the scores.
        measures: what the metric is, by task.
        items: how many items of each split were used.
        warnings: what should be known of the sources.
        versions: of this program and of those that it stands on.
        command: what a person types to run it again.
    """

    rows: Sequence[Row]
    reference: str
    base: Mapping[str, Score | None]
    left_out: Mapping[str, str]
    metric: str
    measures: Mapping[str, str]
    items: Mapping[str, int]
    warnings: Sequence[str] = field(default_factory=list)
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None

    @property
    def by_mean(self) -> bool:
        """Whether the mean that the table shows is what decides the order; else it is the worst task, say."""
        return all(row.select.mean is not None and abs(row.value - row.select.mean) < 1e-9 for row in self.rows)

    @property
    def tested(self) -> list[Row]:
        """Those that were tested on the report split, in their order."""
        return [row for row in self.rows if row.tested is not None and row.name != self.reference]

    @property
    def at_the_ends(self) -> list[str]:
        """Who chose the smallest or the largest of the weights that were offered, in a sentence each.

        Beyond that weight they may be better, so that the comparison does not do them justice.
        """
        found = []
        for end, which, further in ((min, "smallest", "smaller"), (max, "largest", "larger")):
            chosen = {
                row.name: row.constant
                for row in self.rows
                if len(row.values) > 1 and f"{row.constant:g}" == end(row.values, key=float)
            }
            if chosen:
                found.append(
                    f"{_named([*chosen], self.reference)} took the {which} weight that was offered "
                    f"({end(chosen.values()):g}): offer {further} ones in compare.constants."
                )
        return found

    @property
    def arithmetic(self) -> Row:
        """Task arithmetic."""
        return next(row for row in self.rows if row.name == self.reference)

    def shown(self) -> Shown:
        """Return it as a table, best on the select split first."""
        base = {split: plus_minus(score.mean, score.se) if score else "no score" for split, score in self.base.items()}
        rows = [_cells(row) for row in self.rows]
        rows.append(["base", "", base["select"], base["report"], *[""] * 6])
        ahead = f"- {self.reference} ± se"
        columns = ["", "λ", "select ± se", "report ± se", ahead, "p", "prepare", "merge", "MiB", "needs"]
        tested = self.tested
        notes = [
            *([] if self.by_mean else [OTHERWISE]),
            *self.at_the_ends,
            *(_on_report(self.reference, len(tested)) if tested else []),
            *(f"left out: {name}: {reason}" for name, reason in self.left_out.items()),
            *(
                f"{row.name} has no report score: {row.tested.error}"
                for row in tested
                if row.tested and row.tested.error
            ),
        ]
        items = f"{self.items['select']} select and {self.items['report']} report items"
        what = title(self.metric, self.measures)
        return Shown(f"{what} on {items}; best on select first, higher is better", columns, rows, notes)

    def __str__(self) -> str:
        return str(self.shown())

    def _repr_html_(self) -> str:
        return self.shown().html()

    def to_json(self) -> str:
        """Return it as the text of `comparison.json`."""
        return json.dumps(finite(asdict(self)), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Standings:
        """Read the text of `comparison.json`.

        Raises:
            ValueError: it is none.
        """
        try:
            content = json.loads(text)
            base = {split: score and Score(**score) for split, score in content["base"].items()}
            return cls(**{**content, "rows": [_row(row) for row in content["rows"]], "base": base})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no comparison ({error})") from error


def _row(content: Mapping[str, Any]) -> Row:
    tested = content["tested"]
    if tested is not None:
        score, difference = tested["score"], tested["difference"]
        tested = OnReport(
            **{**tested, "score": score and Score(**score), "difference": difference and Paired(**difference)}
        )
    ahead = content["ahead"] and Paired(**content["ahead"])
    own = {"select": Score(**content["select"]), "ahead": ahead, "tested": tested, "cost": Cost(**content["cost"])}
    return Row(**{**content, **own})


def _named(names: Sequence[str], reference: str) -> str:
    """Return names as a subject: all of up to three, else how many, and whether task arithmetic is among them."""
    if len(names) < 4:
        return " and ".join(names)
    return f"{len(names)} methods" + (f", {reference} among them," if reference in names else "")


def _on_report(reference: str, tested: int) -> list[str]:
    best = f"the {tested} best others" if tested > 1 else "the best other"
    corrected = f", corrected for {tested} tests (Holm)" if tested > 1 else ""
    return [
        f"λ: each chose its own on the select items. Only {reference} and {best} were scored on the report items.",
        f"- {reference}: paired on the report items. p: of such a difference where there is none{corrected}.",
    ]


def _cells(row: Row) -> list[str]:
    tested, cost = row.tested, row.cost
    score, difference = (tested.score, tested.difference) if tested else (None, None)
    return [
        row.name,
        f"{row.constant:g}",
        plus_minus(row.select.mean, row.select.se),
        plus_minus(score.mean, score.se) if score else "",
        plus_minus(difference.diff, difference.se, "+") if difference else "",
        chance_text(tested.corrected) if tested else "",
        "" if cost.prepare is None else f"{cost.prepare:.2f} s",
        "" if cost.merge is None else f"{cost.merge:.3f} s",
        "" if cost.nbytes is None else f"{cost.nbytes / 2**20:.1f}",
        row.needs,
    ]
