"""A response bank: what many merges of one family answer to every item of two splits.

In: an .npz as `scripts/response_bank.py` writes it. Out: a `Bank`. There are rows for models and columns for items, the
search items first. No report item is in it.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from evomerge.common.errors import SuiteError
from evomerge.common.files import write_atomically

BASE, EXPERT, CONSTANT = "base", "expert", "constant"
"""Kinds of models that no searcher has asked for; the kind of the others is the name of their searcher."""
SPLITS = ("search", "select")
NONE = -1
"""The generation, and the place in it, of a model that no searcher has asked for."""
RESPONSE = "response:"


def known_one(path: Path, option: str, name: str, known: Collection[str]) -> str:
    """Return a name that a bank has.

    Raises:
        SuiteError: it does not have it; the message says which ones it has.
    """
    if name not in known:
        raise SuiteError(f"{path} has no {name}: write {option} {' or '.join(known) or 'for another bank'}")
    return name


@dataclass(frozen=True)
class Bank:
    """Answers of M models to N items.

    Attributes:
        kinds: of the models (M,).
        names: (M,) of base and experts; the weight of a constant; searcher and seed of the others.
        generations: (M,) of the search, from 0.
        places: (M,) in the generation.
        points: (M, dim), NaN for base and experts.
        tasks: the names of the tasks (T,).
        weights: of the mean of each task in the value (T,).
        items: the ids of the items (N,).
        task: of each item, an index of `tasks` (N,).
        labels: of the items (N,).
        splits: of the items (N,).
        metric: that of the searches.
        responses: by metric, (M, N) numbers; higher is better.
    """

    kinds: np.ndarray
    names: np.ndarray
    generations: np.ndarray
    places: np.ndarray
    points: np.ndarray
    tasks: np.ndarray
    weights: np.ndarray
    items: np.ndarray
    task: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    metric: str
    responses: dict[str, np.ndarray]

    def save(self, path: Path) -> None:
        """Write it as one .npz, in one step."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "responses"}
        stream = io.BytesIO()
        arrays |= {RESPONSE + name: rows for name, rows in self.responses.items()}
        np.savez_compressed(stream, allow_pickle=False, **arrays)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, stream.getvalue())

    @classmethod
    def load(cls, path: Path) -> Bank:
        """Read one.

        Raises:
            SuiteError: the file holds no bank.
        """
        try:
            with path.open("rb") as stream, np.load(stream) as file:
                found = {name: file[name] for name in file.files}
            responses = {name.removeprefix(RESPONSE): found.pop(name) for name in list(found) if RESPONSE in name}
            return cls(**{**found, "metric": str(found["metric"])}, responses=responses)
        except (OSError, EOFError, BadZipFile, ValueError, TypeError, KeyError) as error:
            why = getattr(error, "strerror", None) or str(error).split(". ", 1)[0]
            raise SuiteError(f"{path} is no response bank ({why}): write one with scripts/response_bank.py") from None

    @cached_property
    def searches(self) -> list[str]:
        """The names of the searches whose merges are in it."""
        other = ~np.isin(self.kinds, (BASE, EXPERT, CONSTANT))
        return list(dict.fromkeys(self.names[other].tolist()))

    def of(self, *kinds: str) -> np.ndarray:
        """Return the rows of models of some kinds."""
        return np.flatnonzero(np.isin(self.kinds, kinds))

    def columns(self, split: str) -> np.ndarray:
        """Return the columns of the items of a split."""
        return np.flatnonzero(self.splits == split)

    def shares(self, split: str) -> np.ndarray:
        """Return how much each item of a split counts in the value of a model: its task's weight over the task's size,
        in the order of `columns`.
        """
        task = self.task[self.columns(split)]
        return self.weights[task] / np.bincount(task, minlength=len(self.tasks))[task]
