"""Where models and tasks come from: a suite, or the user's own directories and files, or the hub, or all of these.

In: the settings `model` and `fitness.tasks`. Out: the directories of base and experts, and the tasks with their items
and heads. Paths are read here and nowhere later, and names on the hub become directories here (`hub.py`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.common.errors import ConfigError
from evomerge.common.names import nearest
from evomerge.fitness.heads import FrozenHead, Head, OwnHead, count_classes
from evomerge.fitness.items import Item, Task, read_items
from evomerge.models.adapter_files import is_adapter
from evomerge.models.dequantised import dequantised, is_quantised
from evomerge.models.hub import find_directory, short_name
from evomerge.models.trajectory import base_of, find_checkpoints
from evomerge.models.vocabulary import read_object
from evomerge.problem import Sources
from evomerge.runs.suite import Suite, load_suite

TASK_SETTINGS = ("items", "head", "expert", "classes")
FURTHER = ("task", "split", "splits", "fewshot", "metric", "include_path", "subset", "field")
"""Settings of a task that only some fitnesses have; `task` is another word for `items`."""


def find_sources(model: Mapping[str, Any], tasks: Any, known: Sources | None = None) -> Sources:
    """Return the directories of base and experts and the tasks, from a suite, the user's own settings, or both.

    Args:
        model: the settings `model`: name, suite, base, and experts or a trajectory.
        tasks: the settings `fitness.tasks`, or None for those of the suite.
        known: base and experts, where they were found before.

    Raises:
        ConfigError: something is missing, or a name is unknown.
        CheckpointError: neither the hub nor its cache has a model of a name that is no directory.
        SuiteError: the suite is missing or damaged.
    """
    if known is not None:
        named, further = _tasks(tasks, known.experts)
        return replace(known, tasks=named, further=further)
    if trajectory := model.get("trajectory"):  # earlier versions have none
        model = {**model, **_of_trajectory(model, trajectory)}
    suite, experts = _open_suite(model), model["experts"]
    experts = experts if experts is None or isinstance(experts, list | dict) else [experts]
    if suite is not None and experts != []:
        chosen = list(suite.experts) if experts is None else _known(experts, suite.experts, "model.experts")
        found = {name: suite.experts[name] for name in chosen}
        own = {name: task for name, task in suite.tasks.items() if task.expert is None or task.expert in found}
        named, further = (own, {}) if tasks is None else _tasks(tasks, found)
        places, hub = _locate({"": model["base"] or suite.base})
        return Sources(places[""], found, named, further, hub)
    if not model["base"] or not experts:
        raise ConfigError(
            "There is nothing to merge yet. Write model.base=path/to/base 'model.experts=[path/to/a,path/to/b]' for "
            "your own models (or owner/name, as on the hub), or model=text for the suite of scripts/build_suite.py, "
            "or experiment=smoke for a first look."
        )
    if tasks is None:
        raise ConfigError(
            "There are no tasks to score candidates on. Write for example "
            "'fitness.tasks={a: {items: a.jsonl, classes: [no, yes]}, b: {items: b.jsonl}}': each line of a file is "
            '{"text": ..., "label": ...}, or {"image": path, "label": ...}.'
        )
    named = experts if isinstance(experts, dict) else {short_name(str(path)): path for path in experts}
    if len(named) < len(experts):
        raise ConfigError(
            "Two experts have the same directory name. Name them: 'model.experts={first: path/a, second: other/a}'."
        )
    places, hub = _locate({"": model["base"], **named})
    base = places.pop("")
    codes = as_numbers(places, hub, model)
    return Sources(base, places, *_tasks(tasks, places, [*places][-1] if trajectory else None), hub, codes)


def _of_trajectory(model: Mapping[str, Any], given: Any) -> dict[str, Any]:
    """Return base and experts of the settings `model`, where these name the checkpoints of a training run."""
    if not (isinstance(given, str) or (isinstance(given, list) and all(isinstance(one, str) for one in given))):
        raise ConfigError(
            f"model.trajectory is {given}; write a pattern, 'model.trajectory=run/checkpoint-*', or a list of "
            f"directories in their order."
        )
    if other := next((name for name in ("suite", "experts") if model[name]), None):
        raise ConfigError(
            f"model.trajectory={given} names the models that are merged, and so does model.{other}={model[other]}: "
            f"leave one of them out."
        )
    found = find_checkpoints(given)
    return {"base": base_of(found, model["base"]), "experts": found}


def as_numbers(places: dict[str, Path], hub: dict[str, str], model: Mapping[str, Any]) -> dict[str, str]:
    """Put directories of numbers in place of those experts that are quantised, where `model.dequantise` asks for it.

    Args:
        places: the directories of the experts by name; changed.
        hub: what those that come from the hub are called there; changed.
        model: the settings `model`.

    Returns:
        By expert, the quantised model that its numbers are made of.

    Raises:
        CheckpointError: transformers cannot make numbers of one here.
    """
    codes: dict[str, str] = {}
    for name in [name for name, path in places.items() if model.get("dequantise") and is_quantised(path)]:
        codes[name] = hub.pop(name, None) or str(places[name])
        places[name] = dequantised(places[name], model["auto_class"], Path(model["cache"]))
    return codes


def _locate(models: Mapping[str, Any]) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the directories of models, and what those that come from the hub are called there, both by name."""
    places = {str(name): find_directory(str(given)) for name, given in models.items()}
    hub = {name: place.hub for name, place in places.items() if place.hub}
    return {name: place.path for name, place in places.items()}, hub


def read_split(tasks: Mapping[str, Task], split: str, labelled: bool = True) -> dict[str, list[Item]]:
    """Return the items of a split by task, each of which needs a label or not."""
    return {
        name: read_items(task.items, split, task.classes or None, labelled, task.known) for name, task in tasks.items()
    }


def make_heads(sources: Sources, parameters: Mapping[str, Any]) -> dict[str, Head]:
    """Return the head of each task: the frozen one that it names, or else its expert's own.

    Raises:
        ConfigError: a task has none, or its expert is an adapter.
    """
    heads: dict[str, Head] = {}
    for name, task in sources.tasks.items():
        if task.head is not None:
            heads[name] = FrozenHead(task.head)
        elif task.expert and is_adapter(sources.experts[task.expert]):
            raise ConfigError(
                f"The task {name} is scored with the head of its expert {task.expert}, which is an adapter "
                f"({sources.experts[task.expert]}), and a head runs in a whole classifier. Fold the adapter into it: "
                f"PeftModel.from_pretrained(classifier, adapter).merge_and_unload().save_pretrained(DIR), and name DIR "
                f"as the expert; or give the task a frozen head: fitness.tasks.{name}.head=path.safetensors."
            )
        elif task.expert:
            heads[name] = OwnHead(sources.experts[task.expert], parameters)
        else:
            raise ConfigError(
                f"The task {name} has no head. Name the expert whose head it uses (fitness.tasks.{name}.expert=one of "
                f"{', '.join(sources.experts)}) or a file with frozen class embeddings "
                f"(fitness.tasks.{name}.head=path.safetensors)."
            )
    return heads


def _open_suite(model: Mapping[str, Any]) -> Suite | None:
    if not model["suite"]:
        return None
    build_suite = _builder(model["builder"]) if model.get("builder") else load_suite  # earlier versions have none
    return build_suite(Path(model["suite"]))


def _builder(name: str) -> Callable[[Path], Suite]:
    """Return the function that builds a suite where it is missing, by its name with its module."""
    module, _, function = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"model.builder={name} is no function that builds a suite: {error}. Write model.builder=null to open the "
            f"suite as it is."
        ) from error


def _known(names: Any, known: Mapping[str, Any], setting: str) -> list[str]:
    for name in names:
        if name not in known:
            near = nearest(str(name), known, cutoff=0.0)
            raise ConfigError(
                f"{setting} names '{name}', which is not there. Did you mean '{near[0]}'? There is {', '.join(known)}."
            )
    return list(names)


def _tasks(
    tasks: Any, experts: Mapping[str, Path], usual: str | None = None
) -> tuple[dict[str, Task], dict[str, dict[str, Any]]]:
    """Return the tasks, and those settings of each that only some fitnesses have; `usual` is the expert of a task that
    names none.
    """
    if not isinstance(tasks, Mapping) or not tasks:
        raise ConfigError(f"fitness.tasks is {tasks}; write 'fitness.tasks={{name: items.jsonl, ...}}'.")
    further = {
        str(name): {key: value for key, value in given.items() if key in FURTHER and key != "task"}
        for name, given in tasks.items()
        if isinstance(given, Mapping)
    }
    return {str(name): _task(str(name), given, experts, usual) for name, given in tasks.items()}, further


def _task(name: str, given: Any, experts: Mapping[str, Path], usual: str | None) -> Task:
    setting = f"fitness.tasks.{name}"
    if not name or "/" in name or name.startswith("."):
        raise ConfigError(f"'{name}' cannot name a task, since its head becomes a file of that name: use letters.")
    given = {"items": given} if isinstance(given, str) else given
    if not isinstance(given, Mapping):
        raise ConfigError(f"{setting} is {given}; write the path of its items, or {{items: ..., expert: ...}}.")
    known = (*TASK_SETTINGS, *FURTHER)
    if unknown := sorted(set(map(str, given)) - set(known)):
        near = nearest(unknown[0], known, cutoff=0.0)
        raise ConfigError(
            f"{setting} has the setting '{unknown[0]}'. Did you mean '{near[0]}'? There are {', '.join(known)}."
        )
    for part in ("items", "task", "head"):
        if not isinstance(given.get(part), str | None):
            raise ConfigError(f"{setting}.{part} is {given[part]}; write a path.")
    if given.get("items") and given.get("task"):
        raise ConfigError(f"{setting} has `items` and `task`, two words for one thing: leave one of them out.")
    items = given.get("items") or given.get("task")
    if not items:
        raise ConfigError(f"{setting} has no items: write {setting}.items=path/to/items.jsonl.")
    expert = given.get("expert", name if name in experts else usual)
    if expert is not None:
        _known([expert], experts, f"{setting}.expert")
    head, classes = given.get("head"), given.get("classes") or ()
    if isinstance(classes, str):
        raise ConfigError(f"{setting}.classes is '{classes}'; write a list of names: '{setting}.classes=[no,yes]'.")
    own = _own_classes(experts[expert]) if expert is not None and not head else ()
    if expert is not None and not head and classes:
        _check_classes(setting, tuple(map(str, classes)), own, experts[expert])
    return Task(name, Path(items), Path(head) if head else None, expert, tuple(map(str, classes)), own)


def _check_classes(setting: str, classes: tuple[str, ...], own: tuple[str, ...], expert: Path) -> None:
    """Refuse class names that are not those of the expert's own head, by their number or by their order."""
    rows = count_classes(expert)
    if rows not in (None, len(classes)):
        raise ConfigError(
            f"{setting}.classes has {len(classes)} names, but the expert's own head has {rows} rows: write the names "
            f"of all of them, in that order."
        )
    if own and own != classes:
        raise ConfigError(
            f"{setting}.classes is [{','.join(classes)}], but the expert's own head has [{','.join(own)}] in its "
            f"config.json: write them in that order, or correct id2label there."
        )


def _own_classes(expert: Path) -> tuple[str, ...]:
    """Return the class names that an expert's own head has in its config.json; none where they are only numbered, or
    those of an earlier head are left there.

    Raises:
        CheckpointError: the head has another number of rows than its config.json says.
    """
    try:
        names = read_object(expert / "config.json")["id2label"]
        own = tuple(str(names[str(i)]) for i in range(len(names)))
    except (KeyError, TypeError):
        return ()  # whatever is wrong with the directory is said where it is opened
    if all(name.startswith("LABEL_") for name in own):
        return ()
    return own if count_classes(expert) in (None, len(own)) else ()
