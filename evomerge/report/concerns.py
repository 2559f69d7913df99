"""What a reader must know before the numbers: the warnings that a report begins with.

In: `RunFacts`, and the grids of coefficients. Out: sentences, the gravest first; none is good news.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import datetime

import numpy as np

from evomerge.common.names import commonest
from evomerge.report.facts import RunFacts
from evomerge.report.grids import CoefficientMap
from evomerge.report.wording import judged, metric, number, verdict, with_error
from evomerge.search.stopping import HOPELESS
from evomerge.selection.doubts import of_search, of_selection
from evomerge.selection.forgetting import doubts_of
from evomerge.selection.front import Front
from evomerge.selection.noise import variances
from evomerge.selection.summary import START

FEW_SEARCH, FEW_CHANGING, FEW_JUDGED = 10, 4, 100
"""Items of a task below which scores are thin: those of a candidate; the same where each generation has others, over
which a search averages (experiments/affordable); and those of the select and report split.
"""
AT_BOUND = 0.1
"""The share of coefficients at a bound above which the bounds decide."""
SHOWN = 6
"""How many different lines of the log are quoted."""


def concerns(facts: RunFacts, grids: list[CoefficientMap]) -> list[str]:
    """Return the warnings of a run."""
    return [
        *_public(facts),
        *_state(facts),
        *_failures(facts),
        *of_search(facts.run.batches),
        *(of_selection(facts.summary.select, facts.summary.alike) if facts.summary else ()),
        *(doubts_of(facts.summary.forgetting) if facts.summary else ()),
        *(facts.summary.limits.doubts if facts.summary and facts.summary.limits else ()),
        *(facts.front.doubts if facts.front else ()),
        *_verdict(facts),
        *_optimism(facts),
        *_tasks(facts),
        *_items(facts),
        *(facts.summary.warnings if facts.summary else ()),
        *_bounds(facts, grids),
        *_logged(facts.summary.logged if facts.summary else {}),
    ]


def _public(facts: RunFacts) -> Iterator[str]:
    if facts.settings["fitness"].get("public_test"):
        yield (
            "This search has looked at splits on which results are published (fitness.public_test=true): its scores "
            "must not stand beside published ones."
        )


def _state(facts: RunFacts) -> Iterator[str]:
    if facts.complete:
        return
    written = datetime.fromtimestamp((facts.run.path / "trials.jsonl").stat().st_mtime)
    budget = facts.settings["budget"]
    stand = f"{facts.done:,} of {budget:,} candidates, the last one written {written:%Y-%m-%d %H:%M}"
    if facts.summary is not None:
        yield (
            f"The search has gone on after its winner was scored ({stand}): the scores below are those of its first "
            f"{facts.summary.trials:,} candidates, until its own command has run to the end again."
        )
    elif facts.done >= HOPELESS and len(facts.failed) == facts.done:
        yield (
            f"The search ended early, because every candidate failed ({stand}). Mend the reason, then search again in "
            f"another run directory."
        )
    elif facts.done >= budget:
        yield (
            f"All candidates are there ({stand}), but no winner was chosen yet: that still goes on, or it was stopped, "
            f"or it failed. The search’s own command goes on with it."
        )
    else:
        yield (
            f"This search is not complete ({stand}): it still runs, or it was stopped. Its own command goes on with "
            f"it. This page shows it as it was then."
        )


def _failures(facts: RunFacts) -> Iterator[str]:
    if not facts.failed:
        return
    reasons = commonest(trial.error or "no error was recorded" for _, trial in facts.failed)
    common = "; ".join(f"“{reason}” ({n} times)" for reason, n in reasons[:3])
    more = f", and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
    yield f"{len(facts.failed):,} of {facts.done:,} candidates failed and were ranked last. Most often: {common}{more}."


def _verdict(facts: RunFacts) -> Iterator[str]:
    if facts.summary is None:
        return
    difference, chosen = facts.summary.gain, facts.summary.select
    if facts.front:
        yield from _gains(facts.front)
    elif difference.diff is None:
        yield "The winner or the best constant has no score on the report items: its results are no finite numbers."
    elif difference.se is None:
        yield "There are too few report items to say how sure the difference from the best constant is."
    elif verdict(difference) == "same":
        yield (
            f"The winner is not better than the best constant by two standard errors "
            f"({with_error(difference.diff, difference.se, sign=True)}): merging with {chosen.constant} "
            f"everywhere may do as well. More search items or another space may find more."
        )
    elif verdict(difference) == "worse":
        yield (
            f"The winner is worse than the best constant on the report items: merge with {chosen.constant} "
            f"everywhere instead. The search has fitted the items that it looked at; give it more of them."
        )
    if chosen.winner.startswith(("constant", START)):
        what = "constant" if chosen.winner.startswith("constant") else "start"
        yield f"The winner is itself a {what} ({chosen.winner}): nothing that was found is better on select."
    tried = sorted(float(constant) for constant, value in chosen.constants.items() if value is not None)
    if len(tried) > 1 and float(chosen.constant) in (tried[0], tried[-1]):
        yield (
            f"The best constant, {chosen.constant}, is at the end of those that were tried ({tried[0]:g} to "
            f"{tried[-1]:g}): a better one may lie beyond, so the gain over it may be smaller."
        )
    lost = [finalist.name for finalist in facts.finalists if finalist.select is None]
    if lost:
        yield f"{', '.join(lost)} could not be scored on the select split, so could not win."


def _gains(front: Front) -> Iterator[str]:
    """Say whether the points of a front gain anything over the best constant."""
    gains = {
        point.name: [name for name in front.values if judged(front, name, point.over.get(name)) == "better"]
        for point in front.points
    }
    if not gains[front.chosen]:
        yield (
            f"In no value is the winner, {front.chosen}, better than the best {front.best_constant.name} by two "
            f"standard errors on the report items."
        )
    if len(gains) > 1 and not any(gains.values()):
        yield "No other point of the front is, either: more search items or another space may find more."


def _optimism(facts: RunFacts) -> Iterator[str]:
    if facts.summary is None or facts.front:
        return
    gain = facts.optimism["gain"]
    lost, se = gain.optimism, facts.summary.gain.se
    if lost is not None and se is not None and lost > max(2 * se, 0.005):
        yield (
            f"The gain over the best constant is {number(gain.select)} on the select items, on which the winner was "
            f"chosen, but {number(gain.report)} on the report items: believe the latter."
        )
    winner = facts.optimism["winner"]
    report_se = facts.summary.winner.se
    won = next((finalist for finalist in facts.finalists if finalist.winner), None)
    if winner.search is None or winner.report is None or report_se is None or won is None:
        return
    if facts.aggregate == "worst" or facts.forget:
        return
    lost, se = winner.search - winner.report, math.hypot(report_se, _search_error(facts, won.number))
    if lost > 2 * se:
        changing = facts.run.settings["fitness"]["rotate"]  # nothing is fitted to items that only one generation saw
        why = "it was lucky with the few items" if changing else "it has fitted the few items"
        yield (
            f"The winner’s {metric(facts.measured)} was {number(winner.search)} on its own search items and is "
            f"{number(winner.report)} on the report items: {why} that it was found on."
        )


def _search_error(facts: RunFacts, found: int | None) -> float:
    """Return the standard error of the mean over tasks on the search items of a trial."""
    trial = next((dot.trial for dot in facts.scored if dot.number == found), None)
    rows = {task: row.get(facts.report_metric) or [] for task, row in trial.results.items()} if trial else {}
    if trial is None or not rows or any(len(row) < 2 or None in row for row in rows.values()):
        return math.inf
    shares = facts.shares(rows)
    counts = {task: np.array(trial.weights.get(task) or [1.0] * len(row)) for task, row in rows.items()}
    with np.errstate(over="ignore"):  # the square of a huge number is infinite
        each = {task: variances(np.array([row], dtype=float), counts[task])[0] for task, row in rows.items()}
        return math.sqrt(sum(shares[task] ** 2 * float(variance) for task, variance in each.items()))


def _tasks(facts: RunFacts) -> Iterator[str]:
    if facts.summary is None:
        return
    summary = facts.summary
    base, constant, winner, experts = (
        {task: math.nan if score is None else score for task, score in (row.tasks if row else {}).items()}
        for row in (summary.base, summary.best_constant, summary.winner, summary.experts)
    )  # what is not known is neither above nor below
    if poor := [task for task, score in experts.items() if score <= base[task]]:
        yield (
            f"The expert of {', '.join(poor)} is no better than the base on its own task: is it the right expert, "
            f"with the right head and the right classes?"
        )
    if worse := [task for task in winner if winner[task] < base[task] and task not in facts.forget]:
        yield f"On {', '.join(worse)} the winner is below the base."
    if beaten := [task for task in experts if constant[task] > experts[task]]:
        yield (
            f"On {', '.join(beaten)} the best constant is better than the task’s own expert: that expert is weak, or "
            f"the others help it."
        )


def _items(facts: RunFacts) -> Iterator[str]:
    few = FEW_CHANGING if facts.run.settings["fitness"]["rotate"] else FEW_SEARCH
    if thin := [f"{task} ({n})" for task, n in facts.items.get("search", {}).items() if n < few]:
        yield f"Few search items of a task, so candidates are ranked by luck: {', '.join(thin)}. Raise fitness.items."
    if facts.summary is None:
        return
    tasks = len(facts.summary.base.tasks)
    for split in ("select", "report"):
        if (each := facts.summary.items[split] / tasks) < FEW_JUDGED:
            yield f"The {split} split has about {each:.0f} items of a task: scores on it are coarse."


def _bounds(facts: RunFacts, grids: list[CoefficientMap]) -> Iterator[str]:
    for grid in grids if facts.summary else ():
        values, bounds = np.array(grid.values), facts.bounds.get(grid.variable)
        if not len(values) or bounds is None:
            continue
        low, high = bounds
        share = float(np.mean((values <= low + 1e-9) | (values >= high - 1e-9)))
        if share > AT_BOUND:
            yield (
                f"{share:.0%} of the {grid.variable}s lie at their bounds [{low:g}, {high:g}]: wider ones "
                f"(space.bounds) may find more."
            )


def _logged(found: Mapping[str, int]) -> Iterator[str]:
    """Quote the warnings of the run's log; failed candidates, which are told above, are not among them."""
    for text, n in list(found.items())[:SHOWN]:
        yield f"From evomerge.log{f', {n} such lines' if n > 1 else ''}: {text}"
    if len(found) > SHOWN:
        yield f"evomerge.log holds {len(found) - SHOWN} more warnings."
