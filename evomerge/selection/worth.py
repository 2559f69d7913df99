"""What a merge is worth beside its parents, the base and each expert, on every task; and which parents harm it.

In: a `Comparison` whose first model is the merge, and which has the base and the experts on all tasks. Out: by task the
best expert, how much of its gain over the base the merge keeps, and whether the merge passes it; and the one expert
that is best over all tasks. All differences are paired, since all models were scored on the same items. Tasks that were
held out of the search stand apart, without shares that are kept: to the search no expert is theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from evomerge.common.errors import ConfigError
from evomerge.fitness.items import HELD_OUT
from evomerge.fitness.objectives import can_normalise
from evomerge.selection.comparison import Comparison
from evomerge.selection.named import WITHOUT
from evomerge.selection.statistics import Paired

BASE, WINNER, ENSEMBLE = "base", "winner", "ensemble of the experts"
ROLES = (BASE, "experts", WINNER, ENSEMBLE)
"""What stands beside experts under these names, and so no expert can."""


@dataclass(frozen=True)
class OfTask:
    """What a merge is worth on one task.

    Attributes:
        base: the score of the base.
        merge: that of the merge.
        best: the expert with the highest score; its own task's expert need not be it.
        score: of that expert.
        kept: the share of that expert's gain over the base which the merge has, (merge - base) / (score - base); it
            means the same for losses as for accuracies. None where the expert gains nothing, and on a task that was
            held out.
        over: the merge minus that expert,
        se: and its standard error, paired.
    """

    base: float
    merge: float
    best: str
    score: float
    kept: float | None
    over: float
    se: float | None

    @property
    def of_best(self) -> float | None:
        """The merge over that expert, the share that papers print as retention; None where a score is below 0."""
        return share_of(self.base, self.merge, self.score)

    @property
    def passes(self) -> bool:
        """Whether the merge is above every expert by more than two standard errors."""
        return self.se is not None and self.over > 2 * self.se


@dataclass(frozen=True)
class Worth:
    """What a merge is worth.

    Attributes:
        merge: its name.
        tasks: by task.
        single: the expert with the highest mean over all tasks,
        over_single: and the merge minus that one.
        over_base: the merge minus the base.
        kept: the mean of the shares that are kept, over the tasks that have one; None where none has.
        over_ensemble: the merge minus the mean of what all experts say; None where that was not scored.
        apart: whether these are tasks that were held out of the search, so that no share is kept.
        held_out: what the merge is worth on such tasks, beside those of the search; None where there are none.
    """

    merge: str
    tasks: dict[str, OfTask]
    single: str
    over_single: Paired
    over_base: Paired
    kept: float | None
    over_ensemble: Paired | None = None
    apart: bool = False
    held_out: Worth | None = None


def worth_of(result: Comparison, experts: Sequence[str], held_out: Comparison | None = None) -> Worth:
    """Return what the first model of a comparison is worth.

    Args:
        result: scores and paired differences on all tasks; it holds the base and all experts, and no errors.
        experts: their names, one or more.
        held_out: the same on tasks that were held out of the search; None where there are none.
    """
    if held_out:
        return replace(worth_of(result, experts), held_out=worth_of(held_out, experts))
    merge, apart = next(iter(result.models)), result.split == HELD_OUT
    tasks = {task: _of_task(result, task, merge, experts) for task in result.models[merge].tasks}
    if apart:
        tasks = {task: replace(one, kept=None) for task, one in tasks.items()}
    single = max(experts, key=lambda name: _number(result.models[name].mean))
    shares = [one.kept for one in tasks.values() if one.kept is not None]
    kept = sum(shares) / len(shares) if shares else None
    over = {name: turned(result.paired[name]) for name in (single, BASE, ENSEMBLE) if name in result.paired}
    return Worth(merge, tasks, single, over[single], over[BASE], kept, over.get(ENSEMBLE), apart)


def check_names(experts: Iterable[str], flag: str) -> None:
    """Refuse experts that would stand under the name of something else.

    Args:
        experts: their names.
        flag: by what it is asked what a merge is worth.

    Raises:
        ConfigError: there is one.
    """
    for name in experts:
        if name in ROLES:
            raise ConfigError(
                f"{flag} sets the merge beside the base and every expert, and the expert {name} has a name that stands "
                f"for something else there ({', '.join(ROLES)}): leave {flag} out, or search with another name for it "
                f"(model.experts={{{name}_expert: ...}})."
            )


def share_kept(base: float, merge: float, expert: float) -> float | None:
    """Return the share of an expert's gain over the base that a merge has; None where the expert gains nothing."""
    return (merge - base) / (expert - base) if can_normalise(base, expert) else None


def share_of(base: float, merge: float, expert: float) -> float | None:
    """Return a merge's score over an expert's; None where it means nothing: for scores below 0, as those of losses."""
    return merge / expert if expert > 0 and min(base, merge) >= 0 else None


def harmful(result: Comparison) -> list[str]:
    """Return the experts without which the first model of a comparison is better by more than two standard errors."""
    left_out = {name.removeprefix(WITHOUT): one for name, one in result.paired.items() if name.startswith(WITHOUT)}
    return [name for name, one in left_out.items() if one.diff is not None and one.se and one.diff > 2 * one.se]


def _of_task(result: Comparison, task: str, merge: str, experts: Sequence[str]) -> OfTask:
    scores = {name: _number(result.models[name].tasks[task]) for name in (BASE, merge, *experts)}
    best = max(experts, key=lambda name: scores[name])
    base, own, high = scores[BASE], scores[merge], scores[best]
    return OfTask(
        base, own, best, high, share_kept(base, own, high), own - high, result.paired[best].tasks_se.get(task)
    )


def turned(one: Paired) -> Paired:
    """Return b - a in place of a - b."""
    tasks = {name: None if value is None else -value for name, value in one.tasks.items()}
    return Paired(None if one.diff is None else -one.diff, one.se, tasks, one.tasks_se)


def _number(value: float | None) -> float:
    return -math.inf if value is None else value
