"""What experts may have been trained on that they are scored on: looked for, and said as notes.

In: the model cards of base and experts, the training files that the user names (`model.trained_on`), and the items and
data sets of the tasks. Out: sentences. Cards are held against tasks by the names of data sets; training files by their
texts, word for word. Nothing is refused for what is found: some people want to score on what they trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.common.errors import ConfigError, SuiteError
from evomerge.common.names import unknown
from evomerge.fitness.items import Item
from evomerge.models.cards import data_sets_of
from evomerge.problem import Sources

READ = (".jsonl", ".txt")
"""Kinds of training files."""
GENERIC = {
    *("json", "jsonl", "csv", "tsv", "text", "txt", "parquet", "arrow", "generator", "imagefolder", "pandas", "xml"),
    *(
        "none",
        "null",
        "default",
        "main",
        "all",
        "plaintext",
        "data",
        "dataset",
        "datasets",
        "custom",
        "items",
        "english",
    ),
    *("train", "training", "test", "validation", "dev", "search", "select", "report", "unlabeled"),
}
"""Names that say nothing about a data set."""


def training_files(given: Any, experts: Iterable[str]) -> dict[str, list[Path]]:
    """Return the training files of experts.

    Args:
        given: the setting `model.trained_on`: expert -> a path, or a list of them; None for none.
        experts: their names.

    Raises:
        ConfigError: there is no such expert, or a file is missing or of another kind.
    """
    example = "'model.trained_on={expert: train.jsonl}'"
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"model.trained_on is {given}; write the training files of experts by name: {example}.")
    names, files = list(experts), {}
    for expert, paths in (given or {}).items():
        setting = f"model.trained_on.{expert}"
        if expert not in names:
            raise ConfigError(f"{setting}: {unknown('expert', str(expert), names)}")
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise ConfigError(f"{setting} is {paths}; write a path or a list of paths: {example}.")
        files[str(expert)] = [Path(path).expanduser() for path in paths]
        for path in files[str(expert)]:
            if path.suffix not in READ:
                raise ConfigError(f"{setting} names {path}; write a {' or a '.join(READ)} file, with the texts in it.")
            if not path.is_file():
                raise ConfigError(f"{setting} names {path}, which is no file: write where the training data are.")
    return files


def leakage_notes(
    sources: Sources,
    items: Mapping[str, Mapping[str, Sequence[Item]]],
    data_sets: Mapping[str, Iterable[str]],
    trained_on: Mapping[str, Sequence[Path]],
) -> list[str]:
    """Return what of the tasks the base and the experts may have been trained on.

    Args:
        sources: base, experts and tasks.
        items: split -> task -> items.
        data_sets: task -> names of the data sets that it is made of, as far as its fitness knows them.
        trained_on: what `training_files` returned.

    Raises:
        SuiteError: a training file cannot be read.
    """
    names = {task: _of_task(sources, task, data_sets.get(task, ())) for task in sources.tasks}
    who = {"the base": sources.base, **{f"expert {name}": path for name, path in sources.experts.items()}}
    notes = [note for model, path in who.items() for note in _named_by_cards(model, path, names)]
    return notes + [note for expert, files in trained_on.items() for note in _word_for_word(expert, files, items)]


def _of_task(sources: Sources, task: str, known: Iterable[str]) -> set[str]:
    """Return the names of the data sets of a task: of its own, of its file and of what its fitness knows."""
    place = sources.tasks[task].items
    return {plain for name in (task, place.stem, *known) if (plain := _plain(name))}


def _named_by_cards(model: str, path: Path, tasks: Mapping[str, set[str]]) -> Iterator[str]:
    """Say which tasks are made of data sets that a model's card names."""
    named = {plain: name for name in data_sets_of(path) if (plain := _plain(name))}
    found = {task: sorted(plain & named.keys()) for task, plain in tasks.items() if plain & named.keys()}
    if found:
        pairs = ", ".join(f"{named[common[0]]} (task {task})" for task, common in found.items())
        yield (
            f"the model card of {model} names the data set of tasks, {pairs}: what it was trained on may be among the "
            f"items, and make its scores on them better than it is"
        )


def _plain(name: str) -> str:
    """Return the name of a data set without owner, case and punctuation; nothing where it says nothing."""
    plain = re.sub(r"[^a-z0-9]", "", name.strip("/").rpartition("/")[2].lower())
    return "" if plain in GENERIC or len(plain) < 3 else plain


def _word_for_word(
    expert: str, files: Sequence[Path], items: Mapping[str, Mapping[str, Sequence[Item]]]
) -> Iterator[str]:
    """Say how many items of each split stand in an expert's training files, and name one of each."""
    everything = {split: [item for chosen in tasks.values() for item in chosen] for split, tasks in items.items()}
    wanted = {text for chosen in everything.values() for item in chosen for text in _texts(item)}
    seen = {text for file in files for text in _strings(file) if text in wanted}
    counts = []
    for split, chosen in everything.items():
        if found := [item.id for item in chosen if not seen.isdisjoint(_texts(item))]:
            counts.append(f"{len(found)} of {len(chosen)} {split} items (such as {found[0]})")
    if counts:
        yield (
            f"expert {expert} was trained on {', '.join(counts)}, word for word (model.trained_on): its scores on "
            f"these say what it remembers"
        )
    if images := sum(bool(item.image) for chosen in everything.values() for item in chosen):
        yield f"model.trained_on compares texts, so the {images} images of the tasks were not looked for"


def _texts(item: Item) -> list[str]:
    """Return the texts of which any gives an item away: its own, and of a document of lm-eval the longest in it."""
    text = item.text.strip()
    if not text:
        return []
    if text.startswith("{"):
        try:
            return [text, max(_walk(json.loads(text)), key=len, default=text)]
        except ValueError:
            pass  # a text that begins with a brace
    return [text]


def _strings(file: Path) -> Iterator[str]:
    """Yield the texts of a training file without the blanks around them: of a .jsonl every string in its objects, of a
    .txt every line, and what stands between blank lines.
    """
    block: list[str] = []
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if file.suffix == ".jsonl" and line.strip():
                    yield from _walk(_parsed(line, file, number))
                elif file.suffix == ".txt" and line.strip():
                    block.append(line)
                    yield line.strip()
                else:
                    yield "".join(block).strip()
                    block = []
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"{file} cannot be read: {error}; model.trained_on needs text files in UTF-8.") from error
    yield "".join(block).strip()


def _parsed(line: str, file: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise SuiteError(
            f"{file}, line {number} is no JSON ({error}): model.trained_on needs a .jsonl with an object on each line, "
            f"or a .txt."
        ) from error


def _walk(value: Any) -> Iterator[str]:
    """Yield every string of a JSON value, at any depth."""
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _walk(inner)
