"""`evomerge auto`: a search without settings. It chooses them, says what and why, and runs `evomerge search`.

In: a base, experts, and where the tasks are. Out: a run directory with its page, and the command that merges. Whatever
`search` can refuse it refuses itself, since it is given settings like those that a person would write.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.common.errors import ConfigError
from evomerge.common.files import write_atomically

if TYPE_CHECKING:  # they take seconds to import; `--help` needs neither
    from evomerge.runs.guess import Guess

RECORD = "auto.json"
"""In a run directory: what was chosen, so that the same command goes on with the same search."""
EXAMPLES = """\
  evomerge auto models/base models/mood models/topic --tasks mood.jsonl topic.jsonl
  evomerge auto models/base models/* --tasks tasks/ --hours 8
  evomerge auto org/base org/math org/code --tasks arc_easy my/task.yaml

A task is a file of items ({"text": "...", "label": 1}; plain texts for a language model), a task file of lm-eval, a
name that lm-eval knows, or a directory of any of these. A task that has the name of an expert is that expert's own. As
many tasks with labels as experts, named one by one and otherwise than these, are theirs in that order. The same command
again goes on where it was.
"""


def main(arguments: Sequence[str]) -> None:
    """Choose the settings of a search, say which and why, and run it.

    Args:
        arguments: base, experts, and flags.

    Raises:
        EvomergeError: whatever `evomerge search` refuses.
    """
    given = _parser().parse_args(arguments)
    from evomerge.cli.quoting import written

    if not given.hours > 0:
        raise ConfigError(f"--hours {given.hours:g} is no time: write for example --hours 0.5.")
    asked = {"base": given.base, "experts": given.experts, "tasks": given.tasks, "hours": given.hours}
    chosen = _recorded(given.out, asked) or _choose(asked)
    for line in chosen["said"]:
        print(line)
    settings = [*chosen["settings"], f"hydra.run.dir={written(str(given.out))}"]
    print(f"the same as: {shlex.join(['evomerge', 'search', *settings])}\n", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    write_atomically(given.out / RECORD, json.dumps({"asked": asked, **chosen}, indent=1) + "\n")

    from evomerge.cli import search

    search.main(settings)
    print(f"\npage:   {given.out / 'report.html'}")
    print(f"merge:  {shlex.join(['evomerge', 'merge', str(given.out / 'recipe.yaml'), str(given.out / 'merged')])}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evomerge auto",
        description="Search the best merge of experts without any settings: it chooses them, and says which and why.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", metavar="BASE", help="a model directory, or owner/name on the hub")
    parser.add_argument("experts", nargs="+", metavar="EXPERT", help="the same of models that were tuned from it")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK", help="what the merge should be good at")
    parser.add_argument("--hours", type=float, default=1.0, help="how long it may take, about; 1 when left out")
    parser.add_argument("--out", type=Path, default=Path("runs/auto"), metavar="DIR", help="runs/auto when left out")
    return parser


def _recorded(out: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Return what was chosen for the same question before; None where there is no such search.

    Raises:
        ConfigError: there is one of other models or tasks.
    """
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        before = record.pop("asked")
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    if before == asked:
        return record
    if (out / "trials.jsonl").exists():
        raise ConfigError(f"{out} holds another search: name a new directory with --out, or remove this one first.")
    return None


def _choose(asked: dict[str, Any]) -> dict[str, Any]:
    """Return settings as `evomerge search` takes them, and three lines that say what and why."""
    from evomerge.cli.progress import Reporter
    from evomerge.cli.quoting import written
    from evomerge.runs.guess import effort, guess

    chosen = guess(asked["base"], asked["experts"], asked["tasks"])
    merge, items, sizes = _measure(chosen, Reporter())
    much = effort(chosen, merge, items, sizes, 3600 * asked["hours"])
    count = much.settings.get("searcher.steps", much.settings["budget"])
    what = f"{count} {'steps' if chosen.gradient else 'candidates'}"
    a_candidate = merge + items * min(much.settings["fitness.items"], sizes["search"])
    took = f"{much.seconds / 60:.0f} min" if much.seconds >= 90 else f"{much.seconds:.0f} s"
    said = [
        f"fitness:  {chosen.fitness}",
        f"search:   {chosen.search}",
        f"effort:   {what}, since a candidate takes {a_candidate:.2g} s here: at most about {took} in all",
    ]
    return {"settings": [f"{k}={written(v)}" for k, v in (chosen.settings | much.settings).items()], "said": said}


def _measure(chosen: Guess, reporter: Any) -> tuple[float, float, dict[str, int]]:
    """Return the seconds to build a candidate, those to score it on an item, and how many items each split has."""
    from evomerge.runs.build import build_problem
    from evomerge.runs.choices import load_choice
    from evomerge.runs.config import check
    from evomerge.search.evaluators.splits import live_fitness, make_subsets

    given = {name.removeprefix("model."): value for name, value in chosen.settings.items() if name[:6] == "model."}
    settings: dict[str, Any] = {
        "model": load_choice("model", "directories", given),
        "fitness": load_choice("fitness", chosen.settings["fitness"], {"tasks": chosen.settings["fitness.tasks"]}),
        **{group: load_choice(group, chosen.settings[group]) for group in ("space", "searcher")},
        **{"method": load_choice("method", "linear"), "transform": [], "loss": load_choice("loss", "cross_entropy")},
        "objective": {"aggregate": "mean", "normalised": False, "weights": None},
        **{"seed": 1, "budget": 1, "budget_items": None, "time_limit": "auto", "start": "constants"},
    }
    check(settings)
    with reporter.bars():
        problem = build_problem(settings, reporter)
    score, ids = live_fitness(problem, problem.items["search"]), make_subsets(problem)["search"](0)
    coefficients = problem.space.constant(0.4)

    def once() -> tuple[float, float]:
        started = time.perf_counter()
        problem.merger.apply(coefficients)
        merged = time.perf_counter()
        score(ids)
        return merged - started, time.perf_counter() - merged

    with reporter.working("timing a candidate"):
        once()  # pays for what is set up lazily
        merge, scoring = once()
    sizes = {split: sum(map(len, tasks.values())) for split, tasks in problem.items.items()}
    return merge, scoring / sum(map(len, ids.values())), sizes
