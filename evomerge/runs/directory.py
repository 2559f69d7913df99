"""A run directory, read back: settings, every trial, times, and what was written at the end.

In: `runs/<name>` of a search that is complete, was stopped, or still goes on in another process. Out: a `Run`. Nothing
is locked and nothing is changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evomerge.common.errors import ConfigError, LogError
from evomerge.common.files import write_atomically
from evomerge.recipes.recipe import Recipe
from evomerge.runs.earlier import in_todays_words, with_missing
from evomerge.runs.transforms import in_order
from evomerge.search.journal import read_log
from evomerge.selection.summary import Summary
from evomerge.trials import Batch, Trial

COMMAND = "command.txt"
"""In a run directory: the command that makes the run."""


@dataclass(frozen=True)
class Run:
    """One search as its directory tells it.

    Attributes:
        path: the directory.
        settings: of the search, as plain containers.
        identity: what was searched, from the log's header: names and hashes.
        batches: all batches that were asked for, in order, with the trials that are there.
        timings: merge, forward and total seconds of candidates: {"batch", "index", "merge", "forward", "total"}.
        summary: scores of the selection; None before the search is complete.
        recipe: the winner; None before the search is complete.
        command: what makes the run, or goes on with it, in a shell; None where no command line made it.
    """

    path: Path
    settings: dict[str, Any]
    identity: dict[str, Any]
    batches: list[Batch]
    timings: list[dict[str, Any]]
    summary: Summary | None
    recipe: Recipe | None
    command: str | None = None

    @property
    def coordinates(self) -> list[str]:
        """The names of the coordinates of a point: variable/group/expert."""
        return self.identity["space"]["coordinates"]

    def trials(self) -> Iterator[Trial]:
        """Yield the trials, in the order of the points."""
        for batch in self.batches:
            yield from (trial for trial in batch.trials if trial is not None)


def open_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        ConfigError: it is no run directory.
        LogError: its log, or its summary, is damaged.
    """
    log = path / "trials.jsonl"
    if not log.is_file():
        known = sorted(str(found.parent) for found in path.glob("*/trials.jsonl")) if path.is_dir() else []
        hint = f" There is {', '.join(known[:4])}{' ...' if len(known) > 4 else ''}." if known else ""
        raise ConfigError(
            f"{path} is no run directory: it has no trials.jsonl. Name one that `evomerge search` made.{hint}"
        )
    identity: dict[str, Any] = {}
    batches: list[Batch] = []
    for line in read_log(log):
        kind = line["kind"]
        if kind == "header":
            identity = with_missing(in_todays_words(line["identity"]))
        elif kind == "ask":
            batches.append(Batch(line["batch"], line["points"], gradient=line.get("gradient", False)))
        elif kind == "trial":
            batches[line["batch"]].trials[line["index"]] = Trial.from_record(line)
    if not identity:
        raise LogError(f"{log} is empty: the search has not begun. Run it, then try again.")
    recipe, command = path / "recipe.yaml", path / COMMAND
    return Run(
        path,
        _settings(path / "config.yaml"),
        identity,
        batches,
        read_timings(path / "timings.jsonl"),
        read_summary(path),
        Recipe.from_yaml(recipe.read_text(encoding="utf-8")) if recipe.is_file() else None,
        command.read_text(encoding="utf-8").strip() if command.is_file() else None,
    )


def read_summary(path: Path) -> Summary | None:
    """Return the summary of a run directory, or None where its search has not ended.

    Raises:
        LogError: it is damaged.
    """
    file = path / "summary.json"
    try:
        return Summary.from_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise LogError(
            f"{file} cannot be read ({error}): delete it, and run the search's own command again to write it."
        ) from error


def record_command(path: Path, command: str | None) -> None:
    """Write into a run directory by what command it is made; without one, remove what another one has written."""
    if command is None:
        (path / COMMAND).unlink(missing_ok=True)
    else:
        write_atomically(path / COMMAND, f"{command}\n")


def read_timings(path: Path) -> list[dict[str, Any]]:
    """Return the lines of `timings.jsonl`, without one that a kill cut off; none if there is no such file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _settings(path: Path) -> dict[str, Any]:
    try:
        return with_missing(in_order(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): run the search's own command again to write it."
        ) from error
