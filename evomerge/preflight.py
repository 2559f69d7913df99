"""Preflight: what is about to run, what it needs and how long it takes, before anything expensive starts.

The base is scored on the items of the first generation: that measures a candidate's time, and a fitness that does not
work fails here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.assembly import Assembly
from evomerge.errors import ConfigError, EvomergeError
from evomerge.evaluator import Scorer
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.gradients import GradientEvaluator
from evomerge.learning import cautions
from evomerge.progress import Reporter

GIB = 2**30


def preflight(
    assembly: Assembly,
    settings: Mapping[str, Any],
    subset: Subset,
    score: Scorer,
    objective: Objective,
    gradients: GradientEvaluator | None,
    reporter: Reporter,
) -> None:
    """Print sources, dimension, memory and an estimate of time; warn about what the user should know.

    Raises:
        ConfigError: the fitness cannot score the base, or its loss has no gradient there.
    """
    ids, what = subset(0), "fitness"
    try:
        score(ids)  # the first call pays for what is set up lazily
        started = time.perf_counter()
        (value,), _ = objective(score(ids))
        seconds = time.perf_counter() - started
        what = "loss"
        step = gradients.measure() if gradients else None
    except EvomergeError:
        raise
    except Exception as error:  # whatever a model or a user's fitness may raise
        raise ConfigError(
            f"The {what} fails on the base, so it would fail on every candidate: {type(error).__name__}: {error}"
        ) from error
    rows = _facts(assembly, settings, ids, seconds if step is None else step)
    for name, text in [*rows, ["base scores", f"{value:.4f} ({settings['fitness']['metric']}, {objective.aggregate})"]]:
        reporter.say(f"{name:>16}  {text}")
    zero = [name for name, held in assembly.space.frozen.items() if held == 0]
    if zero:
        reporter.say(
            f"{'frozen':>16}  {', '.join(zero[:3])}{f' and {len(zero) - 3} more' if len(zero) > 3 else ''}: no "
            f"task vector there, or as you asked"
        )
    for warning in [*assembly.warnings, *cautions(settings, assembly.space, gradients is not None)]:
        reporter.say(f"{'warning':>16}  {warning}")


def _facts(
    assembly: Assembly, settings: Mapping[str, Any], ids: Mapping[str, Sequence[str]], seconds: float
) -> list[list[str]]:
    """Return what is printed of sources, space, memory and time, as names and texts."""
    space, vectors, transform = assembly.space, assembly.vectors, assembly.method.transform
    model = sum(parameter.numel() * parameter.element_size() for parameter in assembly.live.model.parameters())
    deltas = 4 * sum(
        delta.numel()
        for expert in vectors.experts
        for name in vectors.parameters
        if (delta := vectors.delta(expert, name)) is not None
    )
    return [
        ["base", str(assembly.sources.base)],
        *(["expert " + name, str(path)] for name, path in assembly.sources.experts.items()),
        [
            "tasks",
            ", ".join(
                f"{task} ({len(ids[task])} of {len(items)} search items)"
                for task, items in assembly.items["search"].items()
            ),
        ],
        ["method", assembly.method.name + (f", of task vectors after {transform.name}" if transform else "")],
        [
            "space",
            f"{settings['space']['granularity']}: {len(space.groups)} groups, {space.dim} free coefficients, "
            f"{len(space.frozen)} frozen",
        ],
        [
            "memory",
            f"model {model / GIB:.2f} GiB, {len(space.experts)} task vectors {deltas / GIB:.2f} GiB (memory-mapped)",
        ],
        [
            "time",
            f"about {seconds:.2f} s a candidate; {settings['budget']} candidates take about "
            f"{_span(settings['budget'] * seconds)}",
        ],
    ]


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
