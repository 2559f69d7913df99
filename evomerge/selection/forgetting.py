"""What was forgotten and what was kept: both numbers of every model, since neither means anything without the other.

In: outcomes of models and of the base on the same items, and the goal of a search. Out: the mean over the tasks to
forget and that over the controls, each with its standard error, and the share of the base's control score that is kept.
The protocol is that of Ilharco et al. (2023, Editing Models with Task Arithmetic, section 3): a constant takes away the
task vectors of what is to be forgotten alone, and a merge counts if it keeps 95 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.fitness.base import Outcome
from evomerge.fitness.conditions import ROUNDING
from evomerge.selection.statistics import Score, paired, score_of

if TYPE_CHECKING:  # reports of finished runs load no torch
    from evomerge.fitness.goal import Goal


@dataclass(frozen=True)
class Kept:
    """One model.

    Attributes:
        forget: its mean score over the tasks to forget, where lower is better,
        control: and over the others.
        kept: the share of the base's control score that it keeps; None where the base has the score 0.
        se: its standard error, from paired differences to the base; None where it is not known.
    """

    forget: Score
    control: Score
    kept: float | None
    se: float | None


@dataclass(frozen=True)
class Forgetting:
    """What was forgotten and what was kept.

    Attributes:
        tasks: those to be forgotten.
        share: of the base's control score that was to be kept.
        models: by name, on the same items, the base among them.
        select: the share that the winner keeps on the select items; None where nothing was chosen there.
        negated: the rows that constants take away, and the others are 0 in them; none where they are of all rows.
    """

    tasks: Sequence[str]
    share: float
    models: Mapping[str, Kept]
    select: float | None = None
    negated: Sequence[str] = ()

    def lacks(self, kept: float | None) -> bool:
        """Return whether a share of the base's control score is less than was to be kept, by more than rounding."""
        return kept is not None and round(kept - self.share, ROUNDING) < 0

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Forgetting:
        """Return it from the plain data that `asdict` makes."""
        models = {
            name: Kept(**{**row, "forget": Score(**row["forget"]), "control": Score(**row["control"])})
            for name, row in content["models"].items()
        }
        return cls(**{**content, "models": models})


def taken(negated: Sequence[str]) -> str:
    """Say of which rows a constant is, behind its number; nothing where it is of all."""
    return f" of {', '.join(negated)}" if negated else ""


def forgetting_of(
    outcomes: Mapping[str, Outcome],
    base: Outcome,
    metric: str,
    goal: Goal,
    select: float | None = None,
    negated: Sequence[str] = (),
) -> Forgetting | None:
    """Return what models have forgotten and kept; None where nothing was to be forgotten.

    Args:
        outcomes: by name; one that lacks a task is left out.
        base: on the same items.
        metric: of the scores.
        goal: of the search.
        select: see `Forgetting`.
        negated: the same.
    """
    if not goal.forget:
        return None
    whole = {name: each for name, each in outcomes.items() if each.results.keys() == base.results.keys()}
    models = {name: _kept(outcome, base, metric, goal) for name, outcome in whole.items()}
    return Forgetting(list(goal.forget), goal.keep, models, select, list(negated))


def _kept(outcome: Outcome, base: Outcome, metric: str, goal: Goal) -> Kept:
    controls = [task for task in outcome.results if task not in goal.forget]
    known, own = part_of(base, controls), part_of(outcome, controls)
    weights = {task: weight for task, weight in (goal.weights or {}).items() if task in controls} or None
    forgotten = {task: weight for task, weight in (goal.weights or {}).items() if task in goal.forget} or None
    control, difference = score_of(own, metric, weights), paired(own, known, metric, weights)
    before = score_of(known, metric, weights).mean
    kept = 1 + difference.diff / abs(before) if before and difference.diff is not None else None
    se = difference.se / abs(before) if before and difference.se is not None else None
    return Kept(score_of(part_of(outcome, goal.forget), metric, forgotten), control, kept, se)


def part_of(outcome: Outcome, tasks: Sequence[str]) -> Outcome:
    """Return what an outcome says of some tasks."""
    items = {task: outcome.items[task] for task in tasks}
    return Outcome(items, {task: outcome.results[task] for task in tasks})


def doubts_of(found: Forgetting | None) -> list[str]:
    """Return what must be said of a winner that keeps less than it was asked to, on either split."""
    winner = found and found.models.get("winner")
    if not found or not winner:
        return []
    lines = []
    if found.lacks(found.select):
        lines.append(
            f"No finalist keeps {found.share:.4g} of the base's control score on the select items: the winner, which "
            f"comes nearest, keeps {found.select:.4g}. Weights nearer to 0 keep more; bounds up to 0 have the base too."
        )
    if found.lacks(winner.kept):
        lines.append(
            f"On the report items the winner keeps {winner.kept:.4g} of the base's control score, and "
            f"{found.share:.4g} was asked for: {'raise objective.keep, or ' * (found.share < 1)}take more select items "
            f"(fitness.select_items)."
        )
    return lines
