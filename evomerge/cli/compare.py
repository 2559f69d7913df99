"""`evomerge compare`: every method with its own weight, ranked on the select split; the best are tested on report.

In: settings in the grammar of `evomerge search`, and `compare.methods` and `compare.constants`. Out: a directory with
what was scored, one table and one page. `runs/compare.py` does the rest.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.common.errors import ConfigError

OWN = "compare."
CHOSEN_HERE = (
    *("method", "transform", "space", "searcher", "loss", "start"),
    *("budget", "budget_items", "budget_hours", "hydra", "tracker", "fitness.worth"),
)
"""Settings of a search that play no part here."""
SET_BY_EXPERIMENTS = ("method", "transform", "space", "searcher", "loss", "start")
"""Those of them that make another search of an experiment."""
SEARCHED = {"fitness.items": "fitness.select_items", "fitness.metric": "fitness.report_metric"}
"""Settings of search items, and what has that part in a comparison."""
SAFE = "Nothing that was scored is lost: run the same command again to go on."
DESCRIPTION = """\
Run every method and transform with one weight λ for everything, each with its own λ, and rank them.

Each chooses its λ among a few constants on the select items, all in the same way; λ = 1 is a transform as published,
but for two: `transform:ties` adds up what agrees (the paper's mean is trim+elect(join=mean)), and `transform:della`
elects no signs (the paper's is della+elect). Both chains take part as well.
The table is ranked by what they reach there. Only the five best are then scored on the report items, beside task
arithmetic (`linear`) and the base: paired differences to task arithmetic, with chances corrected for five tests (Holm).

setting=value is as for `evomerge search`: model=text, 'fitness.tasks={a: a.jsonl}', fitness.select_items=500 ...
  compare.methods     who takes part: 'compare.methods=[ties,tsvm,[trim,elect],{dare: {density: 0.3}}]'. Names of
                      methods and transforms; a list is a chain; {name: settings} has settings of its own. A name that
                      both have stands for both; method:ties or transform:ties for one, also with settings
                      ({method:ties: {normalize: true}}). start:1/K, start:metagpt,
                      start:model_stock, start:lines, start:cocktail (which scores each expert on search items),
                      and start:ema of checkpoints, are starts in closed form; their.yml is a merge YAML of
                      mergekit's, with its own weights. Left out: all but YAMLs. Task arithmetic (`linear`) always
                      takes part
  compare.constants   the weights to choose among, from 0 to 10: 'compare.constants=[0.4,0.7,1.0,2.0]'
  seed                of random masks
"""
EXAMPLES = """\
  evomerge compare experiment=smoke 'compare.methods=[linear,ties,tsvm]'    tiny models, in seconds
  evomerge compare model=text fitness.select_items=500                     every method there is
  evomerge compare model.base=base 'model.experts=[a,b]' 'fitness.tasks={a: a.jsonl, b: b.jsonl}'

What cannot run on these models is named with the reason. The same command again goes on where it was, also after a
kill, and scores nothing twice; what searches have remembered of these models is not scored again either. Other methods,
weights, items or seeds are another comparison, in a directory of its own.

Exit status: 0 complete; 2 refused; 128 + signal when asked to stop: the same command again goes on.
"""


def main(arguments: Sequence[str]) -> None:
    """Run a comparison, print its table and draw its page.

    Args:
        arguments: settings and flags.

    Raises:
        EvomergeError: a setting or a source is wrong, or the directory holds another comparison.
    """
    options = _parser().parse_intermixed_args(arguments)
    own = [one for one in options.settings if one.startswith(OWN)]
    given = [one for one in options.settings if one not in own]

    from evomerge.cli.common import SIGNALLED, explained
    from evomerge.cli.pages import draw_comparison
    from evomerge.cli.progress import Reporter
    from evomerge.cli.settings import compose_settings, spelled_out
    from evomerge.runs.compare import run_comparison
    from evomerge.runs.config import plain, run_name
    from evomerge.runs.contestants import read_compared
    from evomerge.search.stopping import Interrupt

    compared = read_compared(_values(own))
    spelled = [part for one in given for part in spelled_out(one)]
    typed = [part.lstrip("+~").partition("=")[0] for part in spelled]
    for name in typed:
        if name in CHOSEN_HERE or name.partition(".")[0] in CHOSEN_HERE:
            raise ConfigError(
                f"{name} has no meaning here, since a comparison runs every method with one weight for everything: "
                f"leave it out. Who takes part is compare.methods; a search is `evomerge search`."
            )
    settings = plain(compose_settings(given))
    directory = options.out or Path("runs") / f"compare-{run_name({}, [*spelled, *own])}".rstrip("-")
    command = shlex.join(["evomerge", "compare", *arguments])
    reporter, interrupt = Reporter(), Interrupt()
    for note in _unused(settings, plain(compose_settings([])) if "experiment" in typed else settings, typed):
        reporter.say(f"note: {note}")
    with explained(SAFE):
        found = run_comparison(settings, compared, directory, reporter, interrupt, command)
    if found is None:
        raise SystemExit(SIGNALLED + (interrupt.by or 0))
    table = found.shown()
    reporter.table(table.title, table.columns, table.rows, table.notes)
    draw_comparison(directory, reporter)
    reporter.say(f"all of it: {os.path.relpath(directory)}")


def _unused(settings: Mapping[str, Any], usual: Mapping[str, Any], typed: Sequence[str]) -> list[str]:
    """Return what must be said of settings that count for nothing here, or for little.

    Args:
        settings: of a search.
        usual: the same without any that were given, where an experiment may have set them.
        typed: the names of those that were written.
    """
    found = [
        f"{name} counts for start:cocktail alone, since nothing is searched here: see {instead}"
        for name, instead in SEARCHED.items()
        if name in typed
    ]
    if others := [name for name in SET_BY_EXPERIMENTS if settings[name] != usual[name]]:
        found.append(
            f"{', '.join(others)} of the experiment count{'s' * (len(others) == 1)} for nothing here: every method is "
            f"compared with one weight for everything"
        )
    return found


_KEY = re.compile(r"\b(method|transform|start):(\w+)\s*:")
"""A name with its group before settings of its own; its first colon would end the key in Hydra's grammar."""


def _values(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings `compare` as they were written, by name.

    Raises:
        ConfigError: one is not written in Hydra's grammar, or has a comma without brackets.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from evomerge.cli.quoting import quoted

    found: dict[str, Any] = {}
    for argument in arguments:
        name, _, value = argument.partition("=")
        text = quoted(_KEY.sub(r"\1\:\2:", argument))
        override = OverridesParser.create().parse_override(text) if text else None
        if override is None or override.is_sweep_override():
            listed = f"{name}=[{value.strip('[]')}]"
            raise ConfigError(f"{argument} cannot be read: write a list in brackets, such as '{listed}'.")
        found[name.removeprefix(OWN)] = override.value()
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evomerge compare",
        usage="evomerge compare [setting=value ...] [--out DIR]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="setting=value", help="see above")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where it is kept; left out: runs/compare-..., named by the settings"
    )
    return parser
