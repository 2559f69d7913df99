"""What is known of a search at its end: the content of `summary.json`.

In: what the selection found, and how the search ended; or the text of a file, also of one that version 0.2 wrote. Out:
a `Summary`, or that text. JSON has no NaN: what is not finite is written, and comes back, as None.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from evomerge.selection.forgetting import Forgetting, taken
from evomerge.selection.front import Front
from evomerge.selection.limits import Limits
from evomerge.selection.noise import Noise
from evomerge.selection.raced import Raced
from evomerge.selection.statistics import Numbers, Paired, Score
from evomerge.trials import finite

GAIN = "winner_vs_best_constant"
"""The name of the one difference that is tested."""
START = "start "
"""Before the name of a start among the finalists, which is judged beside what was found: `start metagpt`."""
OVER = "winner_vs_base"
"""That of another one, which tells whether anything is gained."""
OVER_EXPERTS = "winner_vs_experts"
"""That of a third one, to each task's own expert, which tells how much is lost."""

LATER = (
    *("marks", "rescored", "held_out", "forgetting", "noise", "raced", "responses", "remembered"),
    *("limits", "front", "chosen", "files"),
)
"""What is left out of the file where there is nothing to say: it came later than others."""
PLAIN = ("limits", "front")
"""What says by itself what of it is left out."""


@dataclass(frozen=True)
class Selected:
    """What was compared on the select split, and chosen there.

    Attributes:
        winner: the name of the finalist that won.
        finalists: the value of each by name; what could not be scored has no finite one.
        constant: the best constant, as it is written.
        constants: the value of each.
        seen: on how many select items each finalist and each constant was scored; fewer than all for one that was
            dropped, or like its neighbours, so its value is only about comparable. Summaries of version 0.2 have none.
        trials: the batch and the index of the trial that each finalist is; None for one that no trial scored. Empty in
            summaries of version 0.2.
    """

    winner: str
    finalists: Numbers
    constant: str
    constants: Numbers
    seen: Mapping[str, int] = field(default_factory=dict)
    trials: Mapping[str, tuple[int, int] | None] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The winner's value."""
        value = self.finalists[self.winner]
        return -math.inf if value is None else value


@dataclass(frozen=True)
class Rescored:
    """The winner once more, on the report split in the dtype of the checkpoint, where the search has used another.

    Attributes:
        dtype: of the checkpoint, to which weights are rounded.
        compute: in which the search has scored them.
        score: in `dtype`; None where there is none, as the next.
        paired: that minus the winner in `compute`, on the same items.
        error: why that is so.
    """

    dtype: str
    compute: str
    score: Score | None = None
    paired: Paired | None = None
    error: str = ""


@dataclass(frozen=True)
class HeldOut:
    """Scores on tasks that the search never saw, on their report items.

    Attributes:
        report: of the same models as that of a `Summary`.
        paired: the winner minus the best constant, and minus the base.
        measures: what the metric is, by task.
    """

    report: Mapping[str, Score]
    paired: Mapping[str, Paired]
    measures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A search that has ended, in numbers and sentences.

    Attributes:
        report: scores on the report split of `base`, `experts` (left out where no task has one), `best_constant` and
            `winner`.
        paired: differences on the same items; `gain` is the one, and summaries of earlier versions have no other.
        alike: the models that have the winner's result on every report item.
        metric: of the scores.
        select: what was compared on the select split, and chosen.
        items: how many items of each split were used.
        measures: what the metric is, by task.
        stop: why the search ended: the name of a `StopReason` in small letters.
        trials: how many candidates there were.
        failed: how many of them have no value.
        run: a hash of all that this summary depends on, the log included.
        marks: by row of the report, sentences on what is otherwise than its name says.
        warnings: what should be known of the sources.
        doubts: why the numbers could not tell candidates apart.
        seconds: where the time of candidates went: merge, forward, other.
        versions: of this program and of those that it stands on.
        bounds: the lowest and the highest value of each variable; None where there is none. Empty in summaries of
            version 0.2, as is the next.
        logged: warnings in the log of the last process that worked on it, and how often each came; without those of
            candidates that failed.
        rescored: the winner in the checkpoint's own dtype; None where everything was.
        held_out: scores on tasks that the search never saw; None where there are none, as the next.
        forgetting: what was forgotten and what was kept. Means and `gain` are then of minus the score over the tasks to
            forget.
        responses: the item evaluations of base and experts by which search items were drawn, or values estimated; they
            are paid as well.
        remembered: how many item evaluations of the last call were taken from other searches.
        noise: how much of the values at the end of the search is the sample of items; None where that is not known.
        raced: what races have saved; None where nobody was dropped.
        limits: what the winner had to keep by constraints, and whether it does; None where there are none.
        front: of a search with several values, its points; None where there is one value. `report` has the point that
            was chosen as the winner then, and means over all tasks.
        chosen: a hash of the select items, of the report items and, where there are some, of those of tasks that were
            held out: `digest` of their ids by task; empty in summaries of earlier versions.
        files: hashes of the files among the starts that were judged beside what was found, by their names among the
            finalists.
    """

    report: Mapping[str, Score]
    paired: Mapping[str, Paired]
    alike: Sequence[str] = field(default_factory=list)
    metric: str
    select: Selected
    items: Mapping[str, int]
    measures: Mapping[str, str] = field(default_factory=dict)
    stop: str
    trials: int
    failed: int
    run: str | None
    marks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    warnings: Sequence[str] = field(default_factory=list)
    doubts: Sequence[str] = field(default_factory=list)
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    bounds: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    logged: Mapping[str, int] = field(default_factory=dict)
    rescored: Rescored | None = None
    held_out: HeldOut | None = None
    forgetting: Forgetting | None = None
    noise: Noise | None = None
    raced: Raced | None = None
    responses: int = 0
    remembered: int = 0
    limits: Limits | None = None
    front: Front | None = None
    chosen: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def constant(self) -> str:
        """The best constant, and of which experts it is, where it is of some alone."""
        return f"{self.select.constant}{taken(self.forgetting.negated) if self.forgetting else ''}"

    @property
    def base(self) -> Score:
        """The base on the report split."""
        return self.report["base"]

    @property
    def experts(self) -> Score | None:
        """Each task with its own expert on the report split; None where no task has one."""
        return self.report.get("experts")

    @property
    def best_constant(self) -> Score:
        """The best constant on the report split."""
        return self.report["best_constant"]

    @property
    def winner(self) -> Score:
        """The winner on the report split."""
        return self.report["winner"]

    @property
    def gain(self) -> Paired:
        """The winner minus the best constant."""
        return self.paired[GAIN]

    def to_json(self) -> str:
        """Return it as the text of `summary.json`."""
        content = asdict(self) | {name: one.to_plain() for name in PLAIN if (one := getattr(self, name))}
        for name in LATER:
            if not content[name]:
                del content[name]
        return json.dumps(finite(content), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Summary:
        """Read the text of `summary.json`.

        Raises:
            ValueError: it is none.
        """
        try:
            content = json.loads(text)
            return cls(
                **content
                | {
                    **_rows(content),
                    "select": _choice(content["select"]),
                    "rescored": _rescored(content.get("rescored")),
                    "held_out": _held_out(content.get("held_out")),
                    "forgetting": Forgetting.from_plain(told) if (told := content.get("forgetting")) else None,
                    "noise": Noise(**known) if (known := content.get("noise")) else None,
                    "raced": Raced(**saved) if (saved := content.get("raced")) else None,
                    "limits": Limits(**kept) if (kept := content.get("limits")) else None,
                    "front": Front.from_plain(found) if (found := content.get("front")) else None,
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no summary of a search ({error})") from error


def _choice(content: Mapping[str, Any]) -> Selected:
    places = content.get("trials", {}).items()  # JSON has lists for pairs
    return Selected(**{**content, "trials": {name: place and (place[0], place[1]) for name, place in places}})


def _rows(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "report": {name: Score(**row) for name, row in content["report"].items()},
        "paired": {name: Paired(**row) for name, row in content["paired"].items()},
    }


def _held_out(content: Mapping[str, Any] | None) -> HeldOut | None:
    return None if content is None else HeldOut(**{**content, **_rows(content)})


def _rescored(content: Mapping[str, Any] | None) -> Rescored | None:
    if content is None:
        return None
    score, difference = content["score"], content["paired"]
    both = {"score": score and Score(**score), "paired": difference and Paired(**difference)}
    return Rescored(**{**content, **both})
