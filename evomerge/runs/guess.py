"""What a search should be, guessed from what is given: tasks, fitness, heads, space, searcher, and how much of each.

In: directories of base and experts, and where the tasks are. Out: a `Guess`: settings as the command line takes them,
and sentences that say why. What to search with comes from experiments/choosing.md: where there are labels and heads, a
gradient with a coefficient for each tensor gained most; else CMA-ES with one for each layer. How much comes from the
time that a candidate takes here.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evomerge.common.errors import ConfigError
from evomerge.fitness.heads import count_classes
from evomerge.models.hub import find_directory, name_directories
from evomerge.models.vocabulary import read_object
from evomerge.selection.choosing import merges, work

SHARE = 0.8
"""Of the time that is given, that the search is meant to take: what is measured on the base is an estimate."""
FINALISTS = 5
"""Of the searcher, at most."""
STEP = 4.0
"""How many times as long as scoring an input it takes to learn from it (`scripts/bench_gradient.py`)."""
BY_VALUES = ((200, 200, None), (100, 200, None), (100, 200, 600), (100, 100, 300), (64, 60, 150), (32, 40, 60))
"""Search items of a candidate, candidates, select items; the dearest first."""
BY_GRADIENT = ((100, 60, None), (100, 60, 600), (64, 40, 300), (48, 20, 150))
"""The same, with steps in place of candidates."""
NO_NAMES = ("null", "true", "false", "inf", "nan")
"""Words that Hydra reads as something else than a name."""
INPUTS = 16
"""Of each task in a step."""
BOUNDS = (0.0, 1.5)
"""Of the weight, as spaces have it."""
WARM = 6
"""Constants that are scored before the first step."""


@dataclass(frozen=True)
class Found:
    """A task as it was found.

    Attributes:
        name: of its file or directory, or of lm-eval.
        place: where its items are; a name that lm-eval knows.
        kind: `lm_eval`, `labels` or `texts`.
        head: its frozen head, where there is one.
        listed: whether it is there since its directory was named, and stands where the alphabet puts it.
    """

    name: str
    place: str
    kind: str
    head: Path | None = None
    listed: bool = False


@dataclass(frozen=True)
class Guess:
    """What to search, and with what.

    Attributes:
        settings: by name. Names of experts and tasks are such as the command line has no quotes for.
        fitness: why this fitness, and which expert is whose.
        search: why this space and this searcher.
        gradient: whether coefficients are learned by a gradient.
        tasks: how many there are.
    """

    settings: dict[str, Any]
    fitness: str
    search: str
    gradient: bool
    tasks: int


@dataclass(frozen=True)
class Effort:
    """How much to search.

    Attributes:
        settings: by name, as the command line takes them.
        seconds: how long that takes at most, about: as if no model were dropped early.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def guess(base: str, experts: Sequence[str], tasks: Sequence[str]) -> Guess:
    """Guess what to search, and with what.

    Args:
        base: its directory, or its name on the hub.
        experts: the same of the experts.
        tasks: files, directories, or names that lm-eval knows.

    Raises:
        ConfigError: there are no tasks there, tasks of several kinds or of one name, or an expert is named twice; or
            names do not tell whose head scores a task.
    """
    found = [one for given in tasks for one in _find(given)]
    _refuse_namesakes(found)
    kinds = sorted({one.kind for one in found})
    if len(kinds) > 1:
        named = ", ".join(f"{one.name} ({one.kind})" for one in found[:6])
        raise ConfigError(
            f"These tasks are of several kinds, and a search has one fitness: {named}. Give labelled texts, or plain "
            f"texts, or tasks of lm-eval."
        )
    places = name_directories(experts)
    words = words_for([*places, *(one.name for one in found)])
    settings: dict[str, Any] = {"model.base": base, "model.experts": {words[name]: at for name, at in places.items()}}
    renamed = "".join(f"; {name} is called {word}" for name, word in words.items() if name != word)
    if kinds == ["labels"]:
        owners, how = _owners(found, places)
        pairs = {words[one.name]: _setting(one, words.get(owners[one.name] or "")) for one in found}
        settings |= {"fitness": "classification", "fitness.tasks": pairs}
        settings |= {"searcher": "gradient", "space": "tensor", "loss.inputs": INPUTS}
        why = "labels and heads give a gradient, which gained most where it was measured (experiments/choosing.md)"
        return Guess(
            settings, how + renamed, f"a gradient, with a coefficient for each tensor: {why}", True, len(found)
        )
    own = {words[one.name]: _setting(one, words[one.name] if one.name in places else None) for one in found}
    fitness = "lm_eval" if kinds == ["lm_eval"] else "perplexity"
    settings |= {"fitness": fitness, "fitness.tasks": own, "searcher": "cmaes", "space": "layer"}
    settings["model.auto_class"] = "AutoModelForCausalLM"
    how = "tasks of lm-eval" if fitness == "lm_eval" else "how probable the texts are, since they have no labels"
    why = "this fitness is searched by values, for which few coefficients are best (experiments/choosing.md)"
    return Guess(settings, how + renamed, f"CMA-ES, with a coefficient for each layer: {why}", False, len(found))


def effort(chosen: Guess, merge: float, item: float, sizes: Mapping[str, int], seconds: float) -> Effort:
    """Choose the dearest search that the time allows, or the cheapest of all.

    Args:
        chosen: what is searched.
        merge: the seconds that it takes to build a candidate.
        item: the seconds that it takes to score it on an item.
        sizes: how many items each split has.
        seconds: that there are.
    """
    efforts = []
    for items, count, select in BY_GRADIENT if chosen.gradient else BY_VALUES:
        judged = min(select or sizes["select"], sizes["select"])
        report = min(4 * select if select else sizes["report"], sizes["report"])
        candidate = merge + item * min(items, sizes["search"])
        step = merge + STEP * item * INPUTS * chosen.tasks
        searching = WARM * candidate + count * step if chosen.gradient else count * candidate
        sized = {"select": judged, "report": report}
        scoring = work(BOUNDS, FINALISTS, sized) * item
        took = searching + scoring + merges(BOUNDS, FINALISTS, [judged // chosen.tasks] * chosen.tasks) * merge
        settings: dict[str, Any] = {"fitness.items": items, "budget": count + (WARM if chosen.gradient else 0)}
        settings |= {"searcher.steps": count} if chosen.gradient else {}
        settings |= {"fitness.select_items": judged} if judged < sizes["select"] else {}
        settings |= {"fitness.report_items": report} if report < sizes["report"] else {}
        efforts.append(Effort(settings, took))
    return next((one for one in efforts if one.seconds <= SHARE * seconds), efforts[-1])


def _find(given: str) -> list[Found]:
    """Return the tasks of a file, of a directory, or the one of lm-eval that has this name."""
    path = Path(given).expanduser()
    if path.is_dir():
        path = path / "tasks" if (path / "suite.json").is_file() else path
        if (path / "search.jsonl").is_file():
            return [_one(path)]
        inside = [
            child
            for child in sorted(path.iterdir())
            if not child.name.startswith((".", "_"))
            and (child.suffix in (".jsonl", ".txt", ".yaml", ".yml") or (child / "search.jsonl").is_file())
        ]
        if not inside:
            raise ConfigError(
                f"--tasks {given}: there are no tasks in this directory: put files there (.jsonl, .txt, or .yaml of "
                f"lm-eval), or directories with search.jsonl, select.jsonl and report.jsonl."
            )
        of_lm_eval = [child for child in inside if child.suffix in (".yaml", ".yml")]
        tasks = of_lm_eval or inside  # files beside task files are the data of these
        return [replace(_one(child), listed=True) for child in tasks]
    if not path.is_file() and (path.suffix in (".jsonl", ".txt", ".yaml", ".yml") or "/" in given):
        raise ConfigError(f"--tasks {given}: there is no such file or directory.")
    return [_one(path)] if path.is_file() else [Found(given, given, "lm_eval")]


def _one(path: Path) -> Found:
    if path.suffix in (".yaml", ".yml"):
        return Found(path.stem, str(path), "lm_eval")
    name = path.name if path.is_dir() else path.stem
    beside = (path / "head.safetensors", path.parent / f"{name}.safetensors")
    head = next(
        (file for file in (*beside, path.parent.parent / "heads" / f"{name}.safetensors") if file.is_file()), None
    )
    labelled = path.suffix != ".txt" and _has_label(path / "search.jsonl" if path.is_dir() else path)
    return Found(name, str(path), "labels" if labelled else "texts", head)


def _has_label(file: Path) -> bool:
    """Whether the first line of a file has a label; what is wrong with a file is said where it is read."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            first = json.loads(next((line for line in lines if line.strip()), "null"))
    except (OSError, ValueError):
        return True
    return isinstance(first, dict) and first.get("label") is not None


def _refuse_namesakes(tasks: Sequence[Found]) -> None:
    """Refuse two tasks of one name.

    Raises:
        ConfigError: there are two.
    """
    places: dict[str, str] = {}
    for task in tasks:
        if task.name in places:
            raise ConfigError(
                f"Two tasks are called {task.name}, {places[task.name]} and {task.place}: a task has the name of its "
                f"file. Rename one of them, or name with --tasks those that you mean."
            )
        places[task.name] = task.place


def words_for(names: Sequence[str]) -> dict[str, str]:
    """Return names that the command line can have for experts and tasks, by what these are called."""
    words: dict[str, str] = {}
    for name in dict.fromkeys(names):
        letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        word = re.sub(r"[^\w.-]", "_", letters) or "unnamed"
        word = word if re.match(r"[A-Za-z_]", word) and word.lower() not in NO_NAMES else f"n_{word}"
        taken, number, first = {*words.values(), *names} - {name}, 2, word
        while word in taken:
            word, number = f"{first}_{number}", number + 1
        words[name] = word
    return words


def _setting(task: Found, expert: str | None) -> dict[str, str]:
    """Return the settings of a task."""
    head = {"head": str(task.head)} if task.head else {}
    return {"items": task.place, **head, **({"expert": expert} if expert else {})}


def _owners(tasks: Sequence[Found], places: Mapping[str, str]) -> tuple[Mapping[str, str | None], str]:
    """Return the expert of each labelled task by the task's name, and a sentence on where the heads are from.

    Args:
        tasks: as they were found.
        places: the paths of the experts by name.

    Raises:
        ConfigError: names do not tell whose head a task has, and an order that is not the user's would say it.
    """
    owners: Mapping[str, str | None] = {task.name: task.name if task.name in places else None for task in tasks}
    if any(task.head for task in tasks) and all(task.head or owners[task.name] for task in tasks):
        return owners, "classification of labelled items, with the frozen heads that lie beside the tasks"
    how = "of the same names"
    with_head = [name for name, path in places.items() if _has_head(find_directory(path).path)]
    as_many = len(tasks) == len(places) == len(with_head)
    if as_many and not any(owners.values()) and not any(task.head or task.listed for task in tasks):
        owners = dict(zip(owners, places, strict=True))
        how = "in the order in which both are given"
    lost = [task for task in tasks if not task.head and owners[task.name] is None]
    if lost and with_head:  # without any, `search` says that there are no heads, or no such models
        raise ConfigError(
            f"Names do not tell which expert's head scores the task {lost[0].name} ({lost[0].place}): no expert has "
            f"this name. There is {', '.join(places)}. Give the file of items its expert's name, such as "
            f"{next(iter(places), 'mood')}.jsonl; or name as many tasks as experts one by one, in the order of the "
            f"experts; or put a frozen head beside it, {lost[0].name}.safetensors."
        )
    pairs = ", ".join(f"{task} <- {places[owner]}" for task, owner in owners.items() if owner)
    return owners, f"classification of labelled items, with the heads of the experts {how}: {pairs}"


def _has_head(path: Path) -> bool:
    return bool(read_object(path / "config.json")) and count_classes(path) is not None
