"""`evomerge export`: a run's winner, or any other point of it, as a recipe, as mergekit's YAML, or as JSON.

In: a run directory and the name of a point. Out: text on standard output or in a file, with the heads beside it; or a
directory of models that mergekit can merge where it cannot express the recipe.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from evomerge.common.errors import ConfigError

if TYPE_CHECKING:  # torch and transformers take seconds to import; `--help` needs neither
    from evomerge.cli.progress import Reporter
    from evomerge.problem import Problem
    from evomerge.recipes.recipe import Recipe
    from evomerge.runs.directory import Run

    Parts = Callable[[], Problem]  # opened when they are needed: the winner's recipe needs none

FORMS = ("recipe", "mergekit", "json")
NAMES = "point I of batch B as B.I, or point N of all as N, or step N of a gradient as step_N; all count from 0"
DESCRIPTION = """\
Write a point of a run, complete, stopped or still going on: its winner, or any other.

Only the winner was chosen on the select split and scored on the report split; of a search with several values, each
point of the front was scored there. What else is exported says so in its scores, with the value that it reached on
search items.
"""
EXAMPLES = """\
  evomerge export runs/x -o winner/recipe.yaml              the winner, with the heads of the tasks beside it
  evomerge export runs/x --as mergekit > merge.yaml         for mergekit-yaml
  evomerge export runs/x --trial 12.3 --as json             coefficients of point 3 of generation 12
  evomerge export runs/x --trial step_40                    where a search by gradient was after 40 steps
  evomerge export runs/x --best                             the best so far of a search that goes on
  evomerge export runs/x --finalist mean                    one of those among which the selection chooses
  evomerge export runs/x --point 3                          point 3 of the front of a search with several values
  evomerge export runs/x --materialise experts/             where mergekit cannot express a recipe (task vectors that
                                                            were trimmed over the whole model, random masks, parts of
                                                            tensors): writes a float32 model for each expert in which
                                                            that is done, and mergekit.yaml, which merges them
"""


def main(arguments: Sequence[str]) -> None:
    """Write the point that is asked for.

    Args:
        arguments: of the command line.

    Raises:
        EvomergeError: there is no such run or point, its sources are gone, or it cannot be written in this form.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.materialise and (options.output or options.form not in (None, "mergekit")):
        parser.error("--materialise writes its own mergekit.yaml: leave out --as and -o")

    from evomerge.cli.progress import Reporter
    from evomerge.common.files import write_atomically
    from evomerge.runs.directory import open_run
    from evomerge.runs.points import open_problem

    reporter, run, output = Reporter(), open_run(options.run), options.output
    _check_output(output, run)
    parts = cache(lambda: open_problem(run, reporter))
    recipe = _choose(run, options, parts, reporter)
    if options.materialise:
        from evomerge.recipes.materialise import materialise

        yaml = materialise(parts(), recipe, options.materialise, reporter)
        return reporter.say(f"written: {len(recipe.row_names)} models and {yaml}; now: mergekit-yaml {yaml} OUTPUT")
    text = _text(run, recipe, options, parts, reporter)
    if output is None:
        print(text, end="")
        return None
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, text)
    return reporter.say(f"written: {output}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evomerge export",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--trial", metavar="NAME", help=NAMES)
    which.add_argument("--best", action="store_true", help="the trial with the highest value on the search items")
    which.add_argument("--finalist", metavar="NAME", help="one of those in summary.json, or what would be one now")
    which.add_argument("--point", metavar="N", help="a point of the front, as the tables number them")
    parser.add_argument("--as", dest="form", choices=FORMS, help="recipe when left out")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write there, and heads beside a recipe")
    parser.add_argument("--materialise", type=Path, metavar="DIR", help="write experts that mergekit can merge")
    return parser


def _choose(run: Run, options: argparse.Namespace, parts: Parts, reporter: Reporter) -> Recipe:
    """Return the recipe of the point that is asked for; the winner's has heads, beside that of the run."""
    from evomerge.runs.points import best_trial, find_finalist, find_point_recipe, find_trial, is_current, recipe_of

    if options.point is not None:
        return find_point_recipe(run, options.point, parts)
    if options.trial is not None:
        point = find_trial(run, options.trial)
    elif options.best:
        point = best_trial(run)
        if any(batch.gradient for batch in run.batches):
            reporter.say("warning: steps along a gradient are left out: each has the loss on other inputs.")
    elif options.finalist is not None:
        point = find_finalist(run, parts(), options.finalist)
    elif run.recipe is None:
        raise ConfigError(
            f"The search in {run.path} is not complete, so it has no winner yet. Write --best for its best trial so "
            f"far, --trial N or --finalist NAME for another point, or run the search's command again to complete it."
        )
    else:
        if not is_current(run):
            reporter.say(f"warning: the search in {run.path} went on after this winner was chosen and is not complete.")
        return run.recipe
    return recipe_of(run, parts(), point)


def _text(run: Run, recipe: Recipe, options: argparse.Namespace, parts: Parts, reporter: Reporter) -> str:
    """Return what is to be written; the heads of a recipe that goes to a file are written beside it."""
    from evomerge.recipes.handover import mergekit_yaml
    from evomerge.recipes.mergekit.write import caveat

    if options.form == "mergekit":
        text = mergekit_yaml(parts(), recipe)
        if comments := caveat(recipe):
            reporter.say(f"warning: {comments.removeprefix('# ').replace(chr(10) + '# ', ' ').strip()}")
        return text
    if options.form == "json":
        winner = run.summary and run.summary.select.value
        scores = {"point": "winner", "value": winner, **recipe.scores}
        about = {"run": str(run.path), "point": scores["point"], "value": scores["value"], "scores": recipe.scores}
        return json.dumps({**about, "coefficients": recipe.coefficients}, indent=1, allow_nan=False) + "\n"
    if options.output is not None:
        return _with_heads(run, recipe, options.output.parent, parts).to_yaml()
    if recipe.heads:
        reporter.say(f"The heads of this recipe are in {run.path / 'heads'}; -o FILE also writes them beside FILE.")
    return recipe.to_yaml()


def _with_heads(run: Run, recipe: Recipe, directory: Path, parts: Parts) -> Recipe:
    """Write the heads to a directory, and return the recipe that names them."""
    from dataclasses import replace

    from evomerge.recipes.handover import copy_heads, keep_heads

    if recipe is run.recipe:
        copy_heads(recipe.heads, run.path, directory)
        return recipe
    with TemporaryDirectory() as scratch:
        heads = keep_heads(parts(), Path(scratch))
        copy_heads(heads, Path(scratch), directory)
    return replace(recipe, heads=heads)


def _check_output(output: Path | None, run: Run) -> None:
    """Refuse to write over a file of the run itself."""
    if output is None:
        return
    if output.is_dir():
        raise ConfigError(f"{output} is a directory: name a file in it, such as {output / 'recipe.yaml'}.")
    if output.exists() and output.resolve().parent == run.path.resolve():
        raise ConfigError(f"{output} belongs to the run: choose another name, or a directory of its own.")
