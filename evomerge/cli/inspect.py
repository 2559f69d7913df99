"""`evomerge inspect`: looks at base and experts before a search, and prints tables or one JSON document.

In: directories, or settings in the grammar of `evomerge search`. the package `inspection` does the rest.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.common.errors import ConfigError

if TYPE_CHECKING:  # torch and transformers take seconds to import; `--help` needs neither
    from evomerge.cli.progress import Reporter
    from evomerge.inspection.estimates import Costs
    from evomerge.inspection.sources import Inspection
    from evomerge.problem import Sources
    from evomerge.selection.curves import Curve

DESCRIPTION = """\
Look at a base and its experts before a search: what fits, what differs, how large the task vectors are, how they lie
to each other, and what a search would need. Nothing is merged, and no task vector is written.

BASE and EXPERT are model directories. setting=value is as for `evomerge search`, instead of directories (model=text,
model.base=... 'model.experts=[...]') or beside them (model.auto_class=AutoModelForCausalLM, method=ties). Tasks are
not needed; where there are some, the base is scored on them, to say how long a search takes.
"""
EXAMPLES = """\
What does not fit is said of each expert, the others are compared all the same, and the exit status is 1.

  evomerge inspect path/to/base path/to/a path/to/b
  evomerge inspect model=text
  evomerge inspect base a b model.auto_class=AutoModelForCausalLM --json > inspection.json
  evomerge inspect base a b --node 8x80x1024           where task vectors lie there, with 1, 2, 4 and 8 GPUs a worker
  evomerge inspect model=text --curve                  may these be averaged: the loss on the lines between them
"""
UNREAD = {"-": "-"}
"""Stands for the tasks where there are none; its items are not read."""


def main(arguments: Sequence[str]) -> None:
    """Inspect the models, and print tables or JSON on standard output.

    Args:
        arguments: directories, flags and settings.

    Raises:
        EvomergeError: the base cannot be read, or a setting is wrong.
        SystemExit: with status 1, if something does not fit.
    """
    given = [a for a in arguments if "=" in a and not a.startswith("-") and not os.path.exists(a)]
    options = _parser().parse_intermixed_args([argument for argument in arguments if argument not in given])
    if not 0 < options.density <= 1:
        raise ConfigError(f"--density={options.density}: write a number above 0, up to 1, such as 0.2 for 20 %.")

    from evomerge.cli.curves import show_curves
    from evomerge.cli.progress import Reporter
    from evomerge.cli.settings import compose_settings
    from evomerge.cli.tables import show, show_kinship
    from evomerge.inspection.advice import first_try
    from evomerge.inspection.document import document
    from evomerge.runs.config import check, plain
    from evomerge.trials import finite

    settings = plain(compose_settings(given))
    check(settings)
    _check_curve(options, settings)
    reporter = Reporter()
    found, needs = _inspected(options, settings, reporter)
    result = document(found, needs, settings["budget"])
    lines = [] if options.curve is None or found.refused else _curves(options, settings, reporter)
    result["first"] = first_try(found.whole.cosines, lines) if found.compared else ""
    if options.curve is not None:
        result["curves"] = [asdict(line) for line in lines]
    if options.json:
        print(json.dumps(finite(result), indent=1, allow_nan=False))
    else:
        show(result, reporter)
        if options.kinship:
            show_kinship(result, reporter)
        if lines:
            show_curves(lines, reporter)
    if found.refused:
        raise SystemExit(1)


def _check_curve(options: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """Refuse curves without tasks, and one model where there must be two.

    Raises:
        ConfigError: it is so.
    """
    if options.curve is not None and not _has_tasks(settings):
        raise ConfigError("--curve scores models, so it needs tasks: write fitness.tasks='{mood: mood.jsonl}'.")
    if single := next((text for text in options.curve or () if ":" not in text), None):
        raise ConfigError(f"--curve {single} is one model: write two with a colon, such as --curve base:trees.")


def _has_tasks(settings: Mapping[str, Any]) -> bool:
    return bool(settings["fitness"]["tasks"] or settings["model"]["suite"])


def _inspected(
    options: argparse.Namespace, settings: Mapping[str, Any], reporter: Reporter
) -> tuple[Inspection, Costs | None]:
    """Look at the models, and estimate what a search of them needs, where something can be merged."""
    from evomerge.fitness.capabilities import Headed
    from evomerge.inspection.estimates import estimate
    from evomerge.inspection.sources import inspect_sources
    from evomerge.inspection.workers import Node
    from evomerge.runs.checks import make_fitness
    from evomerge.runs.intent import intent_of

    node = None if options.node is None else Node.read(options.node)
    fitness = make_fitness(settings["fitness"]) if _has_tasks(settings) else None
    sources, model = find_models(options.directories, settings), settings["model"]
    with reporter.bars():
        found = inspect_sources(
            sources,
            model["auto_class"],
            Path(model["cache"]),
            options.density,
            reporter,
            model["vocabulary"],
            allowed=model["allow_missing"] or (),
            part=model["part"],
            pooled=not (sources.tasks and isinstance(fitness, Headed)),
        )
    if found.base.error is not None or len(found.refused) == len(found.experts):
        return found, None
    needs, warnings = estimate(found, intent_of(settings, sources, fitness), reporter, node)
    found.warnings.extend(warnings)
    return found, needs


def _curves(options: argparse.Namespace, settings: dict[str, Any], reporter: Reporter) -> list[Curve]:
    """Score the lines between pairs of models: those that are named, or all pairs of experts."""
    from evomerge.common.limits import TimeLimit
    from evomerge.models.hub import name_directories
    from evomerge.runs.build import build_problem
    from evomerge.selection.curves import curves

    if options.directories:
        base, *experts = options.directories
        settings["model"] |= {"base": base, "experts": name_directories(experts)}
    with reporter.bars():
        problem = build_problem(settings, reporter)
    if (kind := settings["evaluator"]["kind"]) != "serial":
        reporter.say(f"note: this process scores curves, one point after the other, whatever evaluator={kind} says")
    pairs = [(one, other) for one, _, other in (text.partition(":") for text in options.curve)]
    return curves(problem, pairs or combinations(problem.vectors.rows, 2), reporter, TimeLimit(settings["time_limit"]))


def find_models(directories: Sequence[str], settings: Mapping[str, Any]) -> Sources:
    """Return base, experts and tasks, if there are any.

    Args:
        directories: of the base, then of the experts; or none, where the settings name them.
        settings: of a search.

    Raises:
        ConfigError: nothing to inspect is named, or it is named twice.
    """
    from evomerge.models.hub import name_directories
    from evomerge.runs.sources import find_sources

    model, tasks = settings["model"], settings["fitness"]["tasks"]
    named = any(model[name] for name in ("suite", "base", "experts", "trajectory"))
    if directories and named:
        raise ConfigError("Base and experts are named twice, by directories and by settings: leave one of them out.")
    if len(directories) == 1:
        raise ConfigError(f"{directories[0]} is the base; name its experts behind it: evomerge inspect BASE EXPERT ...")
    if not (directories or named):
        raise ConfigError(
            "Nothing to inspect is named: write evomerge inspect BASE EXPERT ..., or the settings of a search, such as "
            "model=text."
        )
    if directories:
        base, *experts = directories
        model = {**model, "base": base, "experts": name_directories(experts)}
    if tasks is None and not model["suite"]:
        return replace(find_sources(model, UNREAD), tasks={})
    return find_sources(model, tasks)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evomerge inspect",
        usage="evomerge inspect BASE EXPERT [EXPERT ...] [--density D] [--kinship] [--curve [A:B ...]] "
        "[--node GPUSxGIBxGIB] [--json] [setting=value ...]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directories", nargs="*", metavar="DIRECTORY", help="the base, then its experts")
    parser.add_argument(
        "--density",
        type=float,
        default=0.2,
        metavar="D",
        help="signs are compared among the largest elements of each task vector, this share of them (0.2, as in TIES)",
    )
    parser.add_argument(
        "--kinship", action="store_true", help="also how far experts are from each other (--json has it)"
    )
    parser.add_argument(
        "--curve",
        nargs="*",
        metavar="A:B",
        help="score 11 points of the straight line between two experts, or base:EXPERT, on search items; left empty, "
        "between each two experts",
    )
    parser.add_argument(
        "--node",
        metavar="GPUSxGIBxGIB",
        help="what fits on a worker of 1, 2, 4 ... GPUs of a machine: how many it has, the GiB of each, and the GiB of "
        "its own memory, such as 8x80x1024",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document with everything")
    return parser
