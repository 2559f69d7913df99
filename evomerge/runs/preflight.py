"""Preflight: what is about to run, what it needs and how long it takes, before anything expensive starts.

The base is scored on the items of the first generation: that measures a candidate's time, and a fitness that does not
work fails here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from evomerge.common.errors import NotFinite
from evomerge.common.limits import TimeLimit
from evomerge.common.progress import Progress
from evomerge.fitness.losses import CrossEntropy
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.problem import Problem
from evomerge.runs.config import classes
from evomerge.search.evaluators.gradient import GradientEvaluator
from evomerge.search.evaluators.serial import LiveFitness, check_finite, explained
from evomerge.searchers.base import Part, Searcher, cautions_of, parts_of
from evomerge.selection.choosing import work
from evomerge.transforms.chain import said

GIB = 2**30


def preflight(
    problem: Problem,
    searcher: Searcher,
    settings: Mapping[str, Any],
    subsets: Mapping[str, Subset],
    score: LiveFitness,
    objective: Objective,
    gradients: GradientEvaluator | None,
    limit: TimeLimit,
    reporter: Progress,
) -> None:
    """Print sources, dimension, memory and an estimate of time; warn about what the user should know.

    Args:
        problem: what is searched.
        searcher: says what it will ask for.
        settings: its settings.
        subsets: choose the items of each split.
        score: scores the live model on search items.
        objective: makes a value of an outcome.
        gradients: takes the steps of a gradient, if the searcher asks for any.
        limit: of the time of a candidate; it is told what the base takes.
        reporter: prints.

    Raises:
        ConfigError: the fitness cannot score the base, or its loss has no gradient there.
    """
    ids = subsets["search"](0)
    with failing_on_base("fitness"):
        limit.first(lambda: score(ids))  # pays for what is set up lazily
        started = time.perf_counter()
        outcome = limit(lambda: score(ids))
        check_finite(outcome)
        (value,), _ = objective(outcome)
        seconds = time.perf_counter() - started
    with failing_on_base("loss"):
        step = limit.first(gradients.measure) if gradients else None
    limit.measured(max(seconds, step or 0.0))
    rows = _facts(problem, settings, ids, gradients is not None)
    times = _times(problem, searcher, settings, subsets, seconds, gradients and (step or 0.0, gradients.size))
    limited = f"; a candidate that takes longer than {limit.seconds:.4g} s fails (time_limit)" if limit.seconds else ""
    rows.append(["time", times + limited])
    rows.append(["base scores", f"{value:.4f} ({settings['fitness']['metric']}, {objective.aggregate})"])
    for name, text in rows:
        reporter.say(f"{name:>16}  {text}")
    zero = [name for name, held in problem.space.frozen.items() if held == 0]
    if zero:
        reporter.say(
            f"{'frozen':>16}  {', '.join(zero[:3])}{f' and {len(zero) - 3} more' if len(zero) > 3 else ''}: no "
            f"task vector there, or as you asked"
        )
    for warning in [*problem.warnings, *_cautions(settings, searcher)]:
        reporter.say(f"{'warning':>16}  {warning}")


@contextmanager
def failing_on_base(what: str) -> Iterator[None]:
    """Say of whatever goes wrong while the base is scored that every candidate would end like it.

    Args:
        what: `fitness` or `loss`.

    Raises:
        EvomergeError: something did.
    """
    try:
        with explained(f"The {what} fails on the base, so it would fail on every candidate"):
            yield
    except NotFinite as error:
        raise NotFinite(
            f"The base has no score, so no candidate would have one: {error}. Take another base. "
            f"`evomerge inspect` names the weights that are not finite, if there are any."
        ) from error


def _facts(
    problem: Problem, settings: Mapping[str, Any], ids: Mapping[str, Sequence[str]], learns: bool
) -> list[list[str]]:
    """Return what is printed of sources, space and memory, as names and texts."""
    space, vectors, chain = problem.space, problem.vectors, problem.transforms
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
            f"model {model / GIB:.2f} GiB, {len(space.rows)} task vectors {vectors.nbytes / GIB:.2f} GiB "
            f"({'float32 in memory, experts kept as they are mapped' if learns else 'memory-mapped'})",
        ],
    ]


def _times(
    problem: Problem,
    searcher: Searcher,
    settings: Mapping[str, Any],
    subsets: Mapping[str, Subset],
    seconds: float,
    step: tuple[float, int] | None,
) -> str:
    """Return how long search and selection will take, as a sentence.

    Args:
        problem: what is searched.
        searcher: says what it will ask for.
        settings: its settings.
        subsets: choose the items of each split.
        seconds: that a candidate takes.
        step: the seconds that a step of the gradient takes, and the number of its inputs; None without a gradient.
    """
    size = {split: subset.size for split, subset in subsets.items()}
    step_seconds, inputs = step or (0.0, 1)
    candidates, steps = affordable(
        parts_of(searcher, settings["budget"]), settings["budget_items"], size["search"], inputs
    )
    costs = [(candidates, "candidate", seconds), (steps, "step", step_seconds)]
    costs = [cost for cost in costs if cost[0]]
    prices = " and ".join(f"{each:.2f} s a {kind}" for _, kind, each in costs)
    asked = " and ".join(f"{count:,} {kind}{'s' * (count > 1)}" for count, kind, _ in costs)
    searching = sum(count * each for count, _, each in costs)
    incumbents = sum(part.incumbents for part in parts_of(searcher, candidates + steps))
    weight = next(variable for variable in problem.space.variables if variable.name == "weight")
    judged = work((weight.low, weight.high), incumbents, settings["objective"]["normalised"], size)
    judging = judged * seconds / size["search"]
    return (
        f"about {prices}; {asked} take{'s' * (candidates + steps == 1)} about {_span(searching)}, choosing the winner "
        f"on {size['select']:,} select and {size['report']:,} report items at most {_span(judging)}"
    )


def affordable(parts: Sequence[Part], items: int | None, candidate: int, step: int) -> tuple[int, int]:
    """Return how many candidates and how many steps a budget of items buys.

    Args:
        parts: what will be asked for.
        items: the budget; None for no limit.
        candidate: the items of a candidate.
        step: the inputs of a step.
    """
    bought = {False: 0, True: 0}
    for part in parts:
        price = step if part.gradient else candidate
        count = part.count if items is None else min(part.count, items // price)
        bought[part.gradient] += count
        items = None if items is None else items - count * price
    return bought[False], bought[True]


def _cautions(settings: Mapping[str, Any], searcher: Searcher) -> list[str]:
    """Return what is allowed but often a mistake: a loss that nothing learns from, a budget that ends too early."""
    said, loss = cautions_of(searcher, settings["budget"]), next(classes(settings["loss"])).__name__
    if not searcher.needs.gradient and loss != CrossEntropy.__name__:
        unused = f"the loss {loss} is not used: this searcher goes by the fitness alone; searcher=gradient learns by it"
        return [unused, *said]
    return said


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
