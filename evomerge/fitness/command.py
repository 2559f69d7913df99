"""A user's command as a fitness: the way to vLLM, judges and private harnesses, which read a model from a directory.

    fitness=command fitness.command='python my_eval.py {model} {items} {out}'

Every candidate is written as a model directory, in the dtype of the checkpoint, and the command is run with it, once.
In: `{model}`, that directory; `{items}`, a file of JSON lines {"id", "task", "text" or "image", "label"}. Out: `{out}`,
a file that the command writes, one JSON line {"id": ..., "score": ...} for each item, higher is better, in any order;
with "task" where two tasks have an item of the same id, and a number under each name of `fitness.metrics`. No shell
reads the command. A status other than 0, a time-out, and an answer that is not one number for each item cost that
candidate. The directory is gone when the command has ended; what a killed search leaves behind, the next one removes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shlex
import shutil
import string
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.common.directories import ScratchDirectory
from evomerge.common.errors import CommandError, ConfigError
from evomerge.common.limits import Shielded
from evomerge.common.names import listed
from evomerge.common.processes import ProcessGroup
from evomerge.fitness.base import Outcome
from evomerge.fitness.capabilities import Requirements, Writer
from evomerge.fitness.items import Item, row_of

PLACES = ("model", "items", "out")
"""What a command is told, each in braces."""
MEMORY = Path("/dev/shm")
"""Where files are held in memory."""
SPARE = 1 << 24
"""Bytes that must be free beside a model, for items and answers."""
SAID = 3
"""How many of the last lines that a command has said are told when it has failed."""

Key = tuple[str, str]
"""Task and id of an item."""


@dataclass(frozen=True)
class _Prepared:
    items: dict[Key, Item]


class Command:
    """Fitness by a command of the user's; its one metric is `score`, unless others are named.

    Args:
        command: its words, with `{model}`, `{items}` and `{out}` where these belong, each once or more; a brace that
            stands for itself is doubled.
        directory: where models are written to; None for memory where a model fits, else the temporary directory.
        files: those whose content counts beside the files that are words of the command, such as modules that its
            script imports; another content is another search.
        metrics: the names of the numbers that each line has; None for `score` alone.

    Raises:
        ConfigError: the command cannot be read, a place is missing or unknown, there is no such program, directory
            or file, or metrics are no names.
    """

    pure = False  # the command may draw, ask others, or change between two runs
    requires = Requirements(processor=False)

    def __init__(
        self,
        command: str,
        directory: str | None = None,
        files: Sequence[str] = (),
        metrics: Sequence[str] | None = None,
    ) -> None:
        self.metrics: tuple[str, ...] = _metrics(metrics)
        if isinstance(files, str):
            raise ConfigError(f"fitness.files={files} is no list: write fitness.files=[{files}].")
        self._words, self._files = _words(command), [Path(file).expanduser() for file in files]
        if lost := [file for file in self._files if not file.is_file()]:
            raise ConfigError(f"fitness.files: {lost[0]} is no file: write the path of one, or leave it out.")
        self._directory = None if directory is None else Path(directory).expanduser()
        if self._directory is not None and not self._directory.is_dir():
            raise ConfigError(f"fitness.directory={directory} is no directory: make it, or write null.")
        self._writer: Writer | None = None
        self._scratch: ScratchDirectory | None = None

    def identity(self) -> dict[str, Any]:
        """Return the words of the command, those that are files by name and hash, as further files; where it works does
        not count.
        """
        files = [_named(str(file)) for file in self._files]
        return {"command": [_named(word) for word in self._words], "directory": None, "files": files}

    def with_writer(self, writer: Writer) -> Command:
        """Return the same command, with somebody who writes its models."""
        other = copy.copy(self)
        other._writer, other._scratch = writer, None
        return other

    def prepare(self, processor: Any, items: Mapping[str, Sequence[Item]]) -> _Prepared:
        """Keep the items; the rest is the command's."""
        return _Prepared({(task, item.id): item for task, chosen in items.items() for item in chosen})

    def __call__(self, model: Any, prepared: _Prepared, ids: Mapping[str, Sequence[str]]) -> Outcome:
        """Write the model, run the command and read its answers.

        Raises:
            CommandError: it has failed, or has not answered as it must.
            NotFinite: the weights are not.
            ConfigError: there is no room for a model.
        """
        keys = [(task, item) for task, chosen in ids.items() for item in chosen]
        with self._written(model) as folder:
            rows = ({"task": task, **row_of(prepared.items[task, item])} for task, item in keys)
            (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            self._run(folder)
            scores = _read(folder / "out.jsonl", keys, self.metrics)
        return Outcome(
            {task: list(chosen) for task, chosen in ids.items()},
            {
                task: {
                    metric: np.array([scores[task, item][place] for item in chosen])
                    for place, metric in enumerate(self.metrics)
                }
                for task, chosen in ids.items()
            },
        )

    @contextmanager
    def _written(self, model: Any) -> Iterator[Path]:
        """Write a model into a directory of its own, which is removed at the end."""
        if self._writer is None:
            raise ConfigError("A command scores directories, and nobody here writes the model as one: search with it.")
        if self._scratch is None:
            scratch = ScratchDirectory(self._place(self._writer.nbytes), f"evomerge-{os.getuid()}")
            (scratch.path / "same").mkdir()
            self._writer.prepare(scratch.path / "same")
            self._scratch = scratch  # last: whoever is interrupted before leaves nothing that looks whole
        with _Folder(self._scratch.path) as folder:
            shutil.copytree(self._scratch.path / "same", folder / "model")  # no links: the command may write there
            self._writer.write(model, folder / "model")
            yield folder

    def _place(self, needed: int) -> Path:
        """Return where there is room for a model."""
        needed += SPARE
        places = [self._directory] if self._directory else [MEMORY, Path(tempfile.gettempdir())]
        free = {place: shutil.disk_usage(place).free for place in places if place.is_dir()}
        for place, left in free.items():
            if left >= needed and os.access(place, os.W_OK):
                return place
        there = ", ".join(f"{place} has {left / 2**30:.2f} GiB" for place, left in free.items())
        raise ConfigError(
            f"A model is written for the command, which takes {needed / 2**30:.2f} GiB, and there is no room for it: "
            f"{there}. Write fitness.directory=DIR, a directory on a larger disk that can be written to."
        )

    def _run(self, folder: Path) -> None:
        """Run the command on what is in a folder."""
        places = {"model": folder / "model", "items": folder / "items.jsonl", "out": folder / "out.jsonl"}
        said = folder / "stderr"
        with ProcessGroup([word.format_map(places) for word in self._words], said) as running:
            status = running.wait()
        if status:
            how = f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"
            raise CommandError(f"the command {how}{_last(said)}")


class _Folder(Shielded):
    """A directory of one candidate, as a context."""

    def __init__(self, place: Path) -> None:
        self._path = Path(tempfile.mkdtemp(dir=place))

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


def _words(command: str) -> tuple[str, ...]:
    """Return the words of a command, in which places are in braces."""
    setting, example = f"fitness.command={command}", "fitness.command='python my_eval.py {model} {items} {out}'"
    try:
        words = tuple(shlex.split(command))
        found = [name for word in words for _, name, form, how in string.Formatter().parse(word) if name is not None]
        odd = [name for name in found if name not in PLACES]
        for word in words:
            word.format_map(dict.fromkeys({*PLACES, *found}, Path()))
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{setting} cannot be read: {error}. Write {example}; a brace that stands for itself is doubled."
        ) from error
    if odd:
        raise ConfigError(
            f"{setting} has the place {{{odd[0]}}}, and a command is told {{model}}, {{items}} and {{out}}: write "
            f"{example}; a brace that stands for itself is doubled."
        )
    if missing := [f"{{{name}}}" for name in PLACES if name not in found]:
        raise ConfigError(f"{setting} lacks {listed(missing)}, so it cannot score a model: write {example}.")
    if shutil.which(words[0]) is None:
        raise ConfigError(f"{setting}: there is no program {words[0]} that can be run: write its path.")
    return words


def _metrics(given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the numbers of a line."""
    if given is None:
        return ("score",)
    named = isinstance(given, Sequence) and not isinstance(given, str) and all(isinstance(one, str) for one in given)
    if not named or not given or len(set(given)) < len(given) or {"", "id", "task"} & set(given):
        raise ConfigError(
            f"fitness.metrics is {given}: write a list of different names, none of them id or task, such as "
            f"fitness.metrics=[score,length]."
        )
    return tuple(given)


def _named(word: str) -> str | list[str]:
    """Return a word of a command; of one that is a file, its name and a hash of its content."""
    path = Path(word)
    return [path.name, hashlib.sha256(path.read_bytes()).hexdigest()[:16]] if path.is_file() else word


def _last(said: Path) -> str:
    """Return the last lines that a command has said, as one."""
    with said.open("rb") as file:
        file.seek(max(said.stat().st_size - 4096, 0))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return f", saying: {' / '.join(lines[-SAID:])[-240:]}" if lines else ", and said nothing on stderr"


def _read(out: Path, keys: Sequence[Key], metrics: Sequence[str]) -> dict[Key, list[float]]:
    """Return the numbers that a command has written, in the order of the metrics, by task and id.

    Raises:
        CommandError: they are not one number of each metric for each item.
    """
    form = _form(metrics)
    try:
        lines = out.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = "has written no {out}" if isinstance(error, FileNotFoundError) else "has an {out} that nobody can read"
        raise CommandError(f"the command {what}: it must hold {form} for each item") from error
    tasks: dict[str, list[str]] = {}
    for task, item in keys:
        tasks.setdefault(item, []).append(task)
    scores: dict[Key, list[float]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            key, score = _row(line, tasks, metrics, f"line {number} of the command's {{out}}")
            if key in scores:
                raise CommandError(f"line {number} of the command's {{out}} scores the item {key[1]} once more")
            scores[key] = score
    if missing := [key for key in keys if key not in scores]:
        task, item = missing[0]
        n = len(keys)
        raise CommandError(
            f"the command has scored {len(scores)} of {n} items: {item} of {task} has no line in {{out}}"
        )
    return scores


def _row(line: str, tasks: Mapping[str, Sequence[str]], metrics: Sequence[str], where: str) -> tuple[Key, list[float]]:
    """Return what a line says.

    Args:
        line: as the command has written it.
        tasks: item -> the tasks that have it.
        metrics: what it must say.
        where: the line, for messages.
    """
    try:
        row = json.loads(line)
        item, scores, task = row["id"], {metric: row[metric] for metric in metrics}, row.get("task")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CommandError(f"{where} is no {_form(metrics)}: {line!r:.80}") from None
    for metric, score in scores.items():
        if not isinstance(score, int | float) or (abs(score) > sys.float_info.max and isinstance(score, int)):
            raise CommandError(f"{where}: the {metric} of {item} is {score!r:.40}, which is no number")
    if not isinstance(item, str) or item not in tasks or task not in (None, *tasks[item]):
        raise CommandError(f"{where} scores {item!r:.40}, and it was not asked for{f' of {task}' if task else ''}")
    if task is None and len(tasks[item]) > 1:
        raise CommandError(f'{where}: {listed(tasks[item])} have the item {item}, so the line needs its "task"')
    return (task or tasks[item][0], item), [float(score) for score in scores.values()]


def _form(metrics: Sequence[str]) -> str:
    """Return what a line looks like."""
    return "{" + ", ".join(f'"{name}": ...' for name in ("id", *metrics)) + "}"
