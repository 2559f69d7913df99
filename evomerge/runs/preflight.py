"""Preflight: what is about to run, what it needs and how long it takes, before anything expensive starts.

The base is scored on the items of the first generation, and a merge is made: that measures a candidate's time, and a
fitness that does not work fails here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from evomerge.common.errors import ConfigError, NotFinite
from evomerge.common.names import dtype_name
from evomerge.common.progress import Progress
from evomerge.fitness.base import Outcome
from evomerge.fitness.goal import Goal
from evomerge.fitness.items import HELD_OUT
from evomerge.fitness.losses import CrossEntropy
from evomerge.fitness.objectives import Objective
from evomerge.models.live import LiveModel
from evomerge.problem import Problem
from evomerge.runs.budget import affordable, paid
from evomerge.runs.config import classes
from evomerge.runs.engine import Engine
from evomerge.runs.kept import store_text
from evomerge.runs.objectives import several
from evomerge.runs.racing import lags, racing_text
from evomerge.runs.ready import Ready
from evomerge.runs.responses import responses_cost, sampling_text
from evomerge.runs.sampled import changing, growth_of, unusual
from evomerge.runs.weighing import items_of_worth, wants_worth
from evomerge.search.deadline import Deadline
from evomerge.search.evaluators.blocks import Items
from evomerge.search.evaluators.gradient import GradientEvaluator
from evomerge.search.evaluators.racing import Racing
from evomerge.search.evaluators.scoring import check_finite, explained
from evomerge.searchers.base import Part, Searcher, cautions_of, parts_of
from evomerge.selection.choosing import merges, work
from evomerge.selection.limits import surely
from evomerge.transforms.chain import said

GIB = 2**30
SLOWER = 5
"""How many times as long a model takes that is scored in a dtype that this processor has no arithmetic for."""


def preflight(
    ready: Ready,
    engine: Engine,
    objective: Objective,
    gradients: GradientEvaluator | None,
    deadline: Deadline,
    computing: Sequence[str],
    racing: Racing | None,
    reporter: Progress,
) -> None:
    """Print sources, dimension, memory and an estimate of time; warn about what the user should know.

    Args:
        ready: what the search is made of; the limit of a candidate's time is told what the base takes.
        engine: scores the base, and candidates.
        objective: makes a value of an outcome.
        gradients: takes the steps of a gradient, if the searcher asks for any.
        deadline: the end of the search's hours; it is told what a candidate and choosing take.
        computing: in which dtype it is scored, where that was a choice.
        racing: how generations are raced; None where they are not.
        reporter: prints.

    Raises:
        ConfigError: the fitness cannot score the base, its loss has no gradient there, or the hours are too few.
    """
    ids = ready.subsets["search"](0)
    outcome, values, costs = _measured(ready, engine, objective, gradients, ids)
    together = engine.workers > 0 or racing is not None
    inputs, dropping = gradients.size if gradients else 1, objective.weights_of(ids) is not None
    times = _times(ready, costs, dropping, inputs, deadline, engine.workers, together, whole=racing is not None)
    limit = ready.limit.seconds
    limited = f"; a candidate that takes longer than {limit:.4g} s fails (time_limit)" if limit else ""
    rows = [
        *_facts(ready.problem, ready.settings, ids, engine.placed),
        *_ways(ready, engine, objective, racing, ids, computing),
        ["time", times + limited],
        ["base scores", _worth(ready.problem.goal, objective, values, outcome)],
        *_aims(ready.problem),
    ]
    for name, text in rows:
        reporter.say(f"{name:>16}  {text}")
    for warning in [
        *ready.problem.warnings,
        *_cautions(ready.settings, ready.searcher, _paid(ready, gradients)),
        *filter(None, [_ungrown(ready, costs, deadline.left * max(engine.workers, 1)), engine.caution]),
    ]:
        reporter.say(f"{'warning':>16}  {warning}")


@dataclass(frozen=True)
class Costs:
    """What was measured of a candidate, in seconds.

    Attributes:
        merge: of its merge.
        scoring: of scoring it on the search items.
        step: of a step of the gradient, without its merge; 0 where there are none.
    """

    merge: float
    scoring: float
    step: float

    @property
    def each(self) -> dict[bool, float]:
        """The seconds of a candidate (False) and of a step of the gradient (True), with its merge."""
        return {False: self.merge + self.scoring, True: self.merge + self.step}


def _measured(
    ready: Ready, engine: Engine, objective: Objective, gradients: GradientEvaluator | None, ids: Items
) -> tuple[Outcome, Sequence[float], Costs]:
    """Score the base on items and return its outcome, the values that the objective makes of it, and what a candidate
    costs.

    Raises:
        EvomergeError: the fitness cannot score the base, or its loss has no gradient there.
    """
    live = ready.problem.live
    with failing_on_base("fitness", live):
        engine.score("base", ids, first=True)  # pays for what is set up lazily
        outcome, scored = engine.timed("base", ids)
        check_finite(outcome)
        values, _ = objective(outcome)
    with failing_on_base("loss", live):
        step = gradients.measure() if gradients else 0.0
    seconds = scored.total - scored.merge
    ready.limit.measured(max(seconds, step))
    return outcome, values, Costs(_merge_seconds(ready.problem, engine, ids), seconds, step)


def _ways(
    ready: Ready,
    engine: Engine,
    objective: Objective,
    racing: Racing | None,
    ids: Mapping[str, Sequence[str]],
    computing: Sequence[str],
) -> list[list[str]]:
    """Return what is printed of how candidates are scored, as names and texts: only what is not usual."""
    parts = parts_of(ready.searcher, ready.settings["budget"])
    growing = growth_of(ready.settings) is not None
    found = [
        ("sampling", sampling_text(ready.problem)),
        ("workers", engine.said),
        ("store", store_text(ready.problem)),
        *(("compute", text) for text in computing),
        ("races", racing_text(racing, objective, ids, parts, changing(ready.settings), growing)),
    ]
    return [[name, text] for name, text in found if text]


def _aims(problem: Problem) -> list[list[str]]:
    """Return what is printed of what a winner must keep, of what is held out, and of what is not searched."""
    goal, rows = problem.goal, list[list[str]]()
    sure = f", finalists{surely(goal.sure)} on the select items" if goal.sure else ""
    rows += [["must keep", f"{name}: {limit}{sure}"] for name, limit in goal.constraints.items()]
    if goal.forget:
        rows.append(["to keep", f"{goal.keep:.4g} of the base's {goal.report_metric} on the other tasks"])
        own = ", ".join(problem.negated)
        alike = (
            f"all rows alike, since none belongs to the expert of {', '.join(goal.forget)}, or all do, or the space "
            f"ties them with others"
        )
        away = f"{own} alone; all others are 0" if own else alike
        rows.append(["constants", f"take away {away}"])
    if HELD_OUT in problem.items:
        rows.append(["held out", f"{', '.join(problem.items[HELD_OUT])}: scored in the report alone"])
    if zero := [name for name, held in problem.space.frozen.items() if held == 0]:
        more = f" and {len(zero) - 3} more" if len(zero) > 3 else ""
        rows.append(["frozen", f"{', '.join(zero[:3])}{more}: no task vector there, or as you asked"])
    return rows


@contextmanager
def failing_on_base(what: str, live: LiveModel) -> Iterator[None]:
    """Say of whatever goes wrong while the base is scored that every candidate would end like it.

    Args:
        what: `fitness` or `loss`.
        live: holds the base; where it computes in another dtype than its checkpoint's, that may be the reason.

    Raises:
        EvomergeError: something did.
    """
    try:
        base = "the base"
        if live.compute:
            base += f" in {dtype_name(live.compute)} (model.compute={dtype_name(live.dtype)} computes as its files are)"
        with explained(f"The {what} fails on {base}, so it would fail on every candidate"):
            yield
    except NotFinite as error:
        raise NotFinite(
            f"The base has no score, so no candidate would have one: {error}. Take another base. "
            f"`evomerge inspect` names the weights that are not finite, if there are any."
        ) from error


def _facts(
    problem: Problem, settings: Mapping[str, Any], ids: Mapping[str, Sequence[str]], worker: str
) -> list[list[str]]:
    """Return what is printed of sources, space and memory, as names and texts; of a worker, where there are any."""
    space, chain, placed = problem.space, problem.transforms, problem.merger.placed
    where = f"; of each worker: {worker}" if worker else f"; {placed.said}" if placed else ""
    model = sum(parameter.numel() * parameter.element_size() for parameter in problem.live.model.parameters())
    return [
        ["base", str(problem.sources.base)],
        *(["expert " + name, str(path)] for name, path in problem.sources.experts.items()),
        [
            "tasks",
            ", ".join(
                f"{task} ({len(ids[task])} of {len(items)} search items)"
                for task, items in problem.items["search"].items()
            ),
        ],
        ["method", problem.method.name + (f", of task vectors after {said(chain)}" if chain else "")],
        [
            "space",
            f"{settings['space']['granularity']}: {len(space.groups)} groups, {space.dim} free coefficients, "
            f"{len(space.frozen)} frozen",
        ],
        [
            "memory",
            f"model {model / GIB:.2f} GiB, {len(space.rows)} task vectors {problem.rows.nbytes / GIB:.2f} GiB{where}",
        ],
    ]


def _worth(goal: Goal, objective: Objective, values: Sequence[float], outcome: Outcome) -> str:
    """Return what is printed of the base's value, or values."""
    if objective.values:
        return ", ".join(
            f"{one.name} {one.score(outcome):.4f} ({one.metric}{', to be small' * one.minimise})"
            for one in objective.values
        )
    of = f"negated, over {', '.join(goal.forget)}" if goal.forget else objective.aggregate
    return f"{values[0]:.4f} ({goal.metric}, {of})"


def _times(
    ready: Ready,
    costs: Costs,
    dropping: bool,
    inputs: int,
    deadline: Deadline,
    workers: int,
    together: bool,
    whole: bool,
) -> str:
    """Return how long search and selection will take, as a sentence.

    Args:
        ready: what the search is made of.
        costs: of a candidate.
        dropping: whether models are dropped while the winner is chosen.
        inputs: of a step.
        deadline: the end of the search's hours; it is told.
        workers: how many score side by side; 0 for this process alone.
        together: whether candidates of a generation end together.
        whole: whether that is always so, and a part of a generation of no use.

    Raises:
        ConfigError: the hours are too few.
    """
    settings, size = ready.settings, ready.sizes
    parts = parts_of(ready.searcher, settings["budget"])
    if (items := settings["budget_items"]) is not None:
        parts = affordable(parts, items - responses_cost(ready.problem), {False: size["search"], True: inputs})
    count = sum(part.count for part in parts)
    each, choosing = costs.each, _choosing_seconds(ready, costs, dropping, count)
    if workers:
        each, choosing = {kind: seconds / workers for kind, seconds in each.items()}, choosing / workers
    deadline.measured(each, [part.gradient for part in parts], choosing / each[False], together, whole)
    _check_hours(deadline)
    if math.isfinite(left := deadline.left):
        parts = affordable(parts, left, each)
    prices, asked, seconds, scored = _totals(parts, each)
    takes = f"{asked} take{'s' * (scored == 1)} about {_span(seconds)}"
    if scored < count:
        takes = f"budget.hours={deadline.hours:g} leaves time for about {asked} ({_span(seconds)})"
    return (
        f"about {prices}; {takes}, choosing the winner on {size['select']:,} select and {size['report']:,} report "
        f"items at most {_span(deadline.choosing)}"
    )


def _choosing_seconds(ready: Ready, costs: Costs, dropping: bool, count: int) -> float:
    """Return how long it takes at most to choose the winner among what a search of so many candidates finds."""
    problem, size = ready.problem, ready.sizes
    incumbents = sum(part.incumbents for part in parts_of(ready.searcher, count))
    incumbents += len(ready.settings.get("baselines") or [])
    bounds = problem.space.weight.low, problem.space.weight.high
    judged = work(bounds, incumbents, size, problem.goal)
    judged += SLOWER * size["report"] if problem.live.compute else 0  # the winner in the checkpoint's dtype
    judged += items_of_worth(problem, size) if wants_worth(ready.settings) else 0
    tasks = [*map(len, ready.subsets["select"](0).values())] if dropping else []
    merged = merges(bounds, incumbents, tasks, problem.goal)
    return judged / size["search"] * costs.scoring + merged * costs.merge


def _totals(parts: Sequence[Part], each: Mapping[bool, float]) -> tuple[str, str, float, int]:
    """Return prices and numbers of candidates and steps in words, the seconds of all, and how many these are."""
    totals = {kind: sum(part.count for part in parts if part.gradient is kind) for kind in (False, True)}
    costs = [(total, "step" if kind else "candidate", each[kind]) for kind, total in totals.items() if total]
    prices = " and ".join(f"{price:.2f} s a {kind}" for _, kind, price in costs)
    asked = " and ".join(f"{total:,} {kind}{'s' * (total > 1)}" for total, kind, _ in costs)
    return prices, asked, sum(total * price for total, _, price in costs), sum(totals.values())


def _merge_seconds(problem: Problem, engine: Engine, ids: Mapping[str, Sequence[str]]) -> float:
    """Return how long a merge takes; 0 where there is none: each candidate then fails, and says why."""
    coefficients = problem.space.constant(0.4)
    try:
        if engine.workers:
            task, items = next(iter(ids.items()))
            one = {task: list(items[:1])}
            engine.score(coefficients, one)  # each worker pays by itself for what is set up lazily
            return engine.timed(problem.space.constant(0.41), one)[1].merge  # another one: the same is not merged again
        problem.merger.apply(coefficients)  # reads task vectors from the disk, which later merges need not
        started = time.perf_counter()
        problem.merger.apply(coefficients)
        return time.perf_counter() - started
    except Exception:  # whatever a method of the user's may raise
        return 0.0
    finally:
        problem.merger.restore()


def _check_hours(deadline: Deadline) -> None:
    """Refuse hours into which one candidate and choosing the winner do not fit.

    Raises:
        ConfigError: they do not.
    """
    if deadline.hours is None or not deadline.over:
        return
    needed = deadline.hours + (deadline.next - deadline.left) / 3600
    enough = math.ceil(120 * needed) / 100  # a fifth more
    raise ConfigError(
        f"budget.hours={deadline.hours:g} is too little: one candidate takes about {_span(deadline.next)}, and "
        f"choosing the winner up to {_span(deadline.choosing)}. Write budget.hours={enough:g} or more, or lower "
        f"fitness.select_items and fitness.report_items."
    )


def _paid(ready: Ready, gradients: GradientEvaluator | None) -> int:
    """Return how many candidates and steps the budget buys."""
    parts, subset = parts_of(ready.searcher, ready.settings["budget"]), ready.subsets["search"]
    return paid(ready.problem, ready.settings, parts, subset, gradients and gradients.size)


def _cautions(settings: Mapping[str, Any], searcher: Searcher, count: int) -> list[str]:
    """Return what is allowed but often a mistake: a budget that ends too early, a loss that nothing learns from, a lag
    without workers, items that change under a searcher that compares generations or where no candidate is scored on
    any.

    Args:
        settings: of the search.
        searcher: of the search.
        count: how many candidates and steps the budget buys.
    """
    said, loss = _early(settings, searcher, count), next(classes(settings["loss"])).__name__
    if settings["evaluator"]["kind"] == "serial":
        alone = "lets workers go on, and this process scores alone: write evaluator=processes"
        said = [*(f"{name}={lag} {alone}" for name, lag in lags(settings["searcher"]).items()), *said]
    parts = [part for part in parts_of(searcher, settings["budget"]) if not part.gradient]
    if (items := changing(settings)) and any(
        part.parents is None or part.parents.earlier is not None for part in parts
    ):
        said = [
            f"with {items} generations have other items each, and this searcher compares values of all of them, which "
            f"misleads it: {_comparing_less(settings)}leave {items} out",
            *said,
        ]
    if not parts and (items := unusual(settings)):
        verb = "is" if len(items) == 1 else "are"
        unused = f"{' and '.join(items)} {verb} not used: this search takes steps of a gradient alone (loss.inputs)"
        said = [unused, *said]
    if not searcher.needs.gradient and loss != CrossEntropy.__name__:
        unused = f"the loss {loss} is not used: this searcher goes by the fitness alone; searcher=gradient learns by it"
        return [unused, *said]
    return said


def _comparing_less(settings: Mapping[str, Any]) -> str:
    """Return which searchers do not compare values of generations with other items, to write instead, for one value."""
    if several(settings):
        return ""
    lag = " searcher.lag=0" if any(lags(settings["searcher"]).values()) else ""
    return (
        f"write searcher=cmaes, which compares those of one generation, or searcher=tpe searcher.share=0.125 "
        f"searcher.batch=8{lag}, where a regression takes out what a generation has in common, or "
    )


def _early(settings: Mapping[str, Any], searcher: Searcher, count: int) -> list[str]:
    """Return what a searcher says of a budget; where `budget.items` is the reason, with what these buy."""
    whole = cautions_of(searcher, settings["budget"])
    bought = (
        f" (budget.items={settings['budget_items']} buys {count} in all: a candidate begins once all of fitness.items "
        f"are paid for)"
    )
    return [text if text in whole else f"{text}{bought}" for text in cautions_of(searcher, count)]


def _ungrown(ready: Ready, costs: Costs, left: float) -> str:
    """Return what is to be said where samples grow with a budget that the hours will not spend; else nothing.

    Args:
        ready: what the search is made of.
        costs: of a candidate of full size.
        left: the seconds for the search, of all workers together; infinite where no hours are set.
    """
    growth, parts = ready.problem.sampling.growth, parts_of(ready.searcher, ready.settings["budget"])
    if growth is None or not math.isfinite(left):
        return ""
    mean = {**costs.each, False: costs.merge + costs.scoring * (1 + growth.first) / 2}
    bought = affordable(parts, left, mean)
    count = sum(part.count for part in bought if not part.gradient)
    if count >= growth.points:
        return ""
    enough = max(1, sum(part.count for part in bought))
    return (
        f"search items grow to their full number over {growth.points:,} candidates (fitness.grow), and budget.hours="
        f"{ready.settings['budget_hours']:g} leaves time for about {count:,} of them, so the last ones will not see "
        f"all items: write budget={enough}, or run the same command again until the "
        f"budget is spent"
    )


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
