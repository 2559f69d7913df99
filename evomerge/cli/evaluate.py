"""`evomerge evaluate`: scores models side by side on one split of the items, as a table or as JSON.

In: names of models, and settings in the grammar of `evomerge search`; where these name no sources, those of the first
run (or recipe) among the models are taken. `evaluation.py` does the rest.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.common.errors import ConfigError, EvomergeError

if TYPE_CHECKING:  # torch and transformers take seconds to import; `--help` needs neither
    from evomerge.cli.progress import Reporter
    from evomerge.problem import Problem
    from evomerge.selection.comparison import Comparison
    from evomerge.selection.named import Model
    from evomerge.selection.worth import Worth

SIZES = {"search": "items", "select": "select_items", "report": "report_items", "held_out": "report_items"}
"""Split -> the setting that says how many of its items are used."""
PARENTS = ("base", "expert", "ensemble")
"""What a merge stands beside where it is asked what it is worth."""
DESCRIPTION = """\
Score models side by side, all on the same items of one split, and compare each with the first.

MODEL is one of
  base                the base
  experts             each task with its own expert
  NAME                the expert of that name, on all tasks
  soup                the uniform average of all experts
  without:NAME        the uniform average of all others
  constant:0.4        the merge with the same weight everywhere, by the method of the settings
  RUN                 a run directory: its winner
  RECIPE.yaml         a recipe; its groups and its method may be others than those of the settings
  DIRECTORY           a model directory, such as `evomerge merge` writes, of the base's architecture
A name stands for the first of these that fits; what lies at a path of the same name is written ./NAME.
A task is scored with the head that the settings give it, whichever model it is.

setting=value is as for `evomerge search`: model=text, 'fitness.tasks={a: a.jsonl}', fitness.batch_size=64 ...
Where no setting says which models are meant, those of the first run or recipe among the MODELs are.
"""
SPLITS = """\
Which split? search items guide a search, select items choose among its finalists, report items say at the end what
the chosen one is worth. Whoever scores many models on the report items and takes the best has a number that is too
high. So the report split is the default for one merge, alone or beside base and experts; two merges or more are
compared on the select split, and --split report is for those that you report whatever comes out.

Items are those on which a search judges, so `evomerge evaluate runs/x base experts` repeats the numbers of its
summary; on the search split, those of its first generation. What a search has scored on all of them is not scored
again; models that it dropped early are. A model that takes longer than time_limit has no score: auto allows 2 hours, a
number of seconds is for fitness.items items.

What RUN --worth and RUN --around find stays in the run directory, and its page (report.html) is drawn with it; with
other models, items or settings beside them it is only printed.

Tasks that a search never sees (fitness.held_out) are a split of their own, --split held_out; --worth has them beside
the others.

  evomerge evaluate runs/x base experts                             a run's winner beside base and experts
  evomerge evaluate runs/x --worth                                  the same beside each expert on all tasks
  evomerge evaluate runs/x --around                                is it a sharp peak? on the select split
  evomerge evaluate constant:0.8 runs/x runs/y                      which of these, on the select split
  evomerge evaluate --leave-one-out model=text                      which expert harms the uniform average
  evomerge evaluate merged/ base model=text --split report --json   a model directory on the suite `text`
  evomerge evaluate runs/x base 'fitness.tasks={new: {items: new.jsonl, expert: a}}'     on another task
"""


def main(arguments: Sequence[str]) -> None:
    """Score the models, and print a table or JSON on standard output.

    Args:
        arguments: names of models, flags and settings.

    Raises:
        EvomergeError: a model is not there or does not fit, a setting is wrong; or, when all that have a score are
            shown, a model has none.
    """
    given = [a for a in arguments if "=" in a and not a.startswith("-") and not os.path.exists(a)]
    parser = _parser()
    options = parser.parse_intermixed_args([argument for argument in arguments if argument not in given])
    if not (options.models or options.leave_one_out):
        parser.error("there is nothing to score: name a MODEL, or write --leave-one-out")

    from evomerge.cli.keeping import keep_for_page
    from evomerge.cli.progress import Reporter
    from evomerge.selection.worth import worth_of

    reporter = Reporter()
    _check_flags(options)
    asked = _asked(options, given, reporter)
    scored = _scored(options, asked, reporter)
    result, held_out = scored.result, scored.held_out
    if not (options.around or result.of_weights):
        _caution(scored.models, options.split, asked.split, reporter)
    errors = {**result.errors, **(held_out.errors if held_out else {})}
    worth = worth_of(result, asked.experts, held_out) if options.worth and not errors else None
    _print(options, scored, worth, reporter)
    keep_for_page(options, given, scored, reporter)
    _say_left_out(scored, asked.split, reporter)
    if errors:
        raise EvomergeError(f"{len(errors)} of {len(result.models)} models have no score: {', '.join(errors)}.")


@dataclass(frozen=True)
class Asked:
    """What is to be scored.

    Attributes:
        settings: of the search whose items and sources are taken.
        models: by the names that they were given.
        experts: the names of all.
        split: whose items.
    """

    settings: dict[str, Any]
    models: Mapping[str, Model]
    experts: Sequence[str]
    split: str


@dataclass(frozen=True)
class Scored:
    """What was scored.

    Attributes:
        problem: whose items.
        models: by name, those that flags put beside what was named included.
        rows: which of the first one were scaled one by one.
        result: what came of it.
        held_out: the first one beside its parents, on tasks that were held out, where it is asked what it is worth;
            None where there are none.
    """

    problem: Problem
    models: Mapping[str, Model]
    rows: Sequence[str]
    result: Comparison
    held_out: Comparison | None


def _asked(options: argparse.Namespace, given: Sequence[str], reporter: Reporter) -> Asked:
    """Return what is to be scored, before anything is loaded.

    Raises:
        EvomergeError: a model is not there, a setting is wrong, or a flag does not go with the models.
    """
    from evomerge.cli.borrowed import settings_of
    from evomerge.runs.config import check
    from evomerge.runs.sources import find_sources
    from evomerge.selection.named import WITHOUT, find_model
    from evomerge.selection.worth import check_names

    wanted: list[str] = [*options.models, *(["base"] if options.worth else [])]
    names = list(dict.fromkeys(["soup", *wanted] if options.leave_one_out else wanted))
    for name in names:
        if "/" in name or name.endswith((".yaml", ".yml")):  # no name of an expert, so it is refused before all else
            find_model(name, ())
    settings = settings_of(given, names, reporter)
    if options.metric:
        settings["fitness"]["report_metric"] = options.metric
    check(settings)
    experts = find_sources(settings["model"], settings["fitness"]["tasks"]).experts
    if options.worth:
        check_names(experts, "--worth")
    names += [name for name in experts if options.worth and name not in names]
    names += [f"{WITHOUT}{name}" for name in experts if options.leave_one_out]
    models = {name: find_model(name, experts) for name in names}
    _check_first(options, names[0], models[names[0]])
    _say_ambiguous(models, experts, reporter)
    several = options.around or sum(model.choosable for model in models.values()) > 1
    split = options.split or ("select" if several else "report")
    if options.items is not None:
        settings["fitness"][SIZES[split]] = options.items
    return Asked(settings, models, list(experts), split)


def _scored(options: argparse.Namespace, asked: Asked, reporter: Reporter) -> Scored:
    """Score the models, and those that flags put beside them."""
    from tempfile import TemporaryDirectory

    from evomerge.common.limits import AUTO, TimeLimit
    from evomerge.fitness.capabilities import Reads
    from evomerge.fitness.items import HELD_OUT
    from evomerge.runs.build import build_problem
    from evomerge.runs.checks import make_fitness
    from evomerge.runs.engine import engine_of, of_this_process, planned
    from evomerge.search.evaluators.splits import make_subsets
    from evomerge.selection.evaluation import evaluate
    from evomerge.selection.workers import Workers

    settings = asked.settings
    fitness = make_fitness(settings["fitness"])
    if not isinstance(fitness, Reads):  # whose metrics may be those of its tasks
        _check_metric(options, settings["fitness"]["report_metric"], fitness.metrics)
    plan = planned(settings, None, fitness)
    with reporter.bars():
        problem = build_problem(of_this_process(settings, plan), reporter, fitness)
    for warning in problem.warnings:
        reporter.say(f"warning: {warning}")
    _check_metric(options, problem.goal.report_metric, problem.fitness.metrics)
    if problem.reports_distance:
        problem = _of_weights(problem, asked.split, options.items)
    models, rows = _beside(options, asked.models, problem, reporter)
    limit = TimeLimit(settings.get("time_limit", AUTO))  # settings of earlier versions have none
    with TemporaryDirectory() as place, plan.threaded():
        size = make_subsets(problem)["search"].size
        with engine_of(plan, problem, settings, {}, None, limit, size, Path(place), reporter) as engine:
            workers = Workers(engine.scorer, engine.blocks) if engine.workers else None
            result = evaluate(engine.problem, models, asked.split, reporter, limit, workers)
            held_out = None
            if options.worth and asked.split == "report" and HELD_OUT in problem.items:
                own = {
                    name: models[name] for name in models if name == next(iter(models)) or models[name].kind in PARENTS
                }
                held_out = evaluate(engine.problem, own, HELD_OUT, reporter, limit, workers)
    return Scored(problem, models, rows, result, held_out)


def _print(options: argparse.Namespace, scored: Scored, worth: Worth | None, reporter: Reporter) -> None:
    """Print tables, or one JSON document."""
    from evomerge.cli.around import show_around
    from evomerge.cli.scores import show, show_worth
    from evomerge.selection.around import around_of
    from evomerge.selection.worth import harmful

    result, held_out = scored.result, scored.held_out
    harm = {"harmful": harmful(result)} if options.leave_one_out else {}
    around = around_of(result, scored.rows) if options.around else []
    if options.json:
        more = {"worth": asdict(worth)} if worth else {}
        more |= {"held_out": held_out.to_plain()} if held_out else {}
        print(result.to_json(**more, **({"around": [asdict(each) for each in around]} if around else {}), **harm))
    elif around:
        show_around(around, result, reporter)
    else:
        show(result, reporter, harm.get("harmful"))
        if held_out:
            show(held_out, reporter)
        if worth:
            show_worth(worth, reporter)


def _say_left_out(scored: Scored, split: str, reporter: Reporter) -> None:
    """Say what of the search the table does not have."""
    from evomerge.fitness.items import HELD_OUT

    problem = scored.problem
    if problem.goal.several:
        reporter.say(
            "the search of these settings has several values: a run stands for the point of its front that was chosen, "
            "and means are over all tasks, which is none of its values"
        )
    if split == "report" and HELD_OUT in problem.items and scored.held_out is None:
        reporter.say(f"held out, and not in this table: {', '.join(problem.items[HELD_OUT])} (--split held_out)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evomerge evaluate",
        usage="evomerge evaluate MODEL [MODEL ...] [--split search|select|report|held_out] [--items N] [--metric NAME] "
        "[--worth] [--around [--each]] [--leave-one-out] [--json] [setting=value ...]",
        description=DESCRIPTION,
        epilog=SPLITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="what to score; see above")
    parser.add_argument("--split", choices=list(SIZES), help="whose items; left out: see below")
    parser.add_argument("--items", type=int, metavar="N", help="how many items in all; left out: as the settings say")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="of the fitness, or distance, that of the weights from the base's, for which one item a task is asked; "
        "left out: its fitness.report_metric",
    )
    parser.add_argument("--worth", action="store_true", help="say what the first is worth beside base and every expert")
    parser.add_argument(
        "--leave-one-out", action="store_true", help="score the uniform average, and again without each of the experts"
    )
    parser.add_argument("--around", action="store_true", help="say what becomes of it when its weights are scaled")
    parser.add_argument("--each", action="store_true", help="with --around: those of each expert by itself as well")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    return parser


def _check_flags(options: argparse.Namespace) -> None:
    """Refuse flags that do not go together.

    Raises:
        ConfigError: there are such.
    """
    if options.each and not options.around:
        raise ConfigError("--each scales the weights of each expert around a winner: write --around --each.")
    if options.around and (options.worth or options.leave_one_out or len(options.models) > 1):
        raise ConfigError("--around looks at one merge alone: name one run or recipe, and leave other flags out.")


def _check_metric(options: argparse.Namespace, metric: str, metrics: Collection[str]) -> None:
    """Refuse to say what is better by the distance from the base, where the fitness has no metric of that name.

    Args:
        options: the flags.
        metric: of the report.
        metrics: those of the fitness.

    Raises:
        ConfigError: that is asked for.
    """
    from evomerge.fitness.values import DISTANCE

    if metric == DISTANCE and metric not in metrics and (options.around or options.worth or options.leave_one_out):
        raise ConfigError(
            f"The metric {DISTANCE} says how far a model lies from the base, not how good it is: leave out --worth, "
            f"--around and --leave-one-out."
        )


def _of_weights(problem: Problem, split: str, items: int | None) -> Problem:
    """Return the same problem, of which it is asked how far models lie from the base.

    Every item says the same then, so that one of each task is enough; and nothing is forgotten.
    """
    judged = "report" if split == "held_out" else split  # which has as many items
    few = {judged: max(len(problem.items.get(name, ())) for name in (split, judged))} if items is None else {}
    return replace(problem, goal=replace(problem.goal, forget=()), sampling=replace(problem.sampling, **few))


def _check_first(options: argparse.Namespace, name: str, first: Model) -> None:
    """Refuse flags that say something of the first model where it is none of which that can be said.

    Raises:
        ConfigError: it is none.
    """
    if options.around and first.kind != "recipe":
        raise ConfigError(f"--around scales the weights of a recipe, and {name} is none: name a run or a recipe.")
    if options.worth and not first.choosable:
        raise ConfigError(f"--worth says what a merge is worth, and {name} is none: name a run or a recipe first.")


def _beside(
    options: argparse.Namespace, named: Mapping[str, Model], problem: Problem, reporter: Reporter
) -> tuple[dict[str, Model], Sequence[str]]:
    """Return the models that were named with those that flags put beside them, and the rows that are scaled one by one.

    Raises:
        ConfigError: what a merge is worth means nothing here.
    """
    from evomerge.fitness.capabilities import Probable
    from evomerge.selection.around import neighbours
    from evomerge.selection.contenders import read_recipe
    from evomerge.selection.named import Model
    from evomerge.selection.worth import ENSEMBLE

    first = next(iter(named.values()))
    rows = read_recipe(first.value).row_names if options.each else ()
    if options.around:
        return {**named, **neighbours(first, rows)}, rows
    if not options.worth:
        return dict(named), ()
    if problem.goal.forget:
        raise ConfigError("--worth says what is gained, and with objective.forget the aim is to lose: leave it out.")
    if isinstance(problem.fitness, Probable):
        return {**named, ENSEMBLE: Model("ensemble")}, ()
    kind = type(problem.fitness).__name__
    reporter.say(f"no ensemble of the experts: the fitness {kind} gives no probabilities of classes")
    return dict(named), ()


def _say_ambiguous(models: Mapping[str, Model], experts: Mapping[str, Path], reporter: Reporter) -> None:
    """Say what a name was taken for that could be something else as well."""
    for name, model in models.items():
        if model.kind in ("base", "experts") and name in experts:
            reporter.say(f"{name} is taken as the {name} of the search; the expert of that name is {experts[name]}")
        if model.kind in ("base", "experts", "expert") and Path(name).exists():
            what = f"the expert {name}" if model.kind == "expert" else f"the {name} of the search"
            reporter.say(f"{name} is taken as {what}; what lies at that path is ./{name}")


def _caution(models: Mapping[str, Model], asked: str | None, split: str, reporter: Reporter) -> None:
    """Say where a comparison of several merges runs, and what must not be done with it."""
    several = [name for name, model in models.items() if model.choosable]
    if len(several) < 2:
        return
    if asked is None:
        reporter.say(
            f"{len(several)} models to choose from are compared on the {split} split; report the chosen one with "
            f"--split report."
        )
    elif split == "report":
        reporter.say(
            "Do not choose among these by their report scores: the best of several looks better than it is. Choose "
            "with --split select."
        )
