"""Units and what came of them as messages: plain data that JSON holds, between a pool and its workers.

In: a unit, or what came of it. Out: a dictionary, and back, bit for bit: JSON writes a float64 so that the same one is
read again. No message is a pickle, so nothing that arrives can run. Weights never travel: a worker has them.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge.common import errors
from evomerge.common.errors import EvomergeError
from evomerge.fitness.base import Outcome
from evomerge.search.evaluators.units import Model, Named, Scored, Unit

Message = dict[str, Any]
"""What travels; `kind` says what it is."""


MORE = ("written", "first", "scale", "under")
"""What a message says of a unit where it is not as usual."""


class Remote(Exception):
    """An error that a worker has told of, where its class is not known here; the name of its class is kept."""


def packed(message: Mapping[str, Any]) -> bytes:
    """Return a message as bytes."""
    return json.dumps(message, separators=(",", ":")).encode()


def unpacked(data: bytes) -> Message:
    """Return the message of some bytes."""
    return json.loads(data)


def unit_message(number: int, unit: Unit) -> Message:
    """Return a unit as a message, with the number by which it is answered."""
    model: Any = unit.model
    if isinstance(model, np.ndarray):
        model = {"point": model.tolist()}
    elif isinstance(model, Mapping):
        model = {"coefficients": {name: np.asarray(values).tolist() for name, values in model.items()}}
    elif isinstance(model, Named):
        model = {"named": model.what}
    more = {name: value for name in MORE if (value := getattr(unit, name))}
    return {"kind": "unit", "number": number, "model": model, "ids": unit.ids, "split": unit.split, **more}


def unit_of(message: Message) -> Unit:
    """Return the unit of a message."""
    given = message["model"]
    model: Model = given
    if isinstance(given, dict):
        (kind, values), *_ = given.items()
        if kind == "named":
            model = Named(values)
        else:
            model = np.array(values) if kind == "point" else {name: np.array(each) for name, each in values.items()}
    more = {name: message[name] for name in MORE if name in message}
    return Unit(model, message["ids"], message["split"], **more)


def scored_message(number: int, scored: Scored) -> Message:
    """Return what came of a unit as a message."""
    times = {name: getattr(scored, name) for name in ("merge", "forward", "total")}
    said: Message
    if isinstance(scored.outcome, Exception):
        said = {"error": error_message(scored.outcome)}
    else:
        results = {
            task: {name: row.tolist() for name, row in rows.items()} for task, rows in scored.outcome.results.items()
        }
        said = {"items": scored.outcome.items, "results": results, "seconds": scored.outcome.forward_seconds}
        if scored.gradients is not None:
            said["gradients"] = {name: np.asarray(values).tolist() for name, values in scored.gradients.items()}
    return {"kind": "scored", "number": number, **said, **times}


def scored_of(message: Message) -> Scored:
    """Return what came of a unit from its message."""
    times = [message[name] for name in ("merge", "forward", "total")]
    if "error" in message:
        return Scored(error_of(message["error"]), *times)
    results = {
        task: {name: np.array(row, dtype=np.float64) for name, row in rows.items()}
        for task, rows in message["results"].items()
    }
    gradients = {name: np.array(values) for name, values in message.get("gradients", {}).items()} or None
    return Scored(Outcome(message["items"], results, message["seconds"]), *times, gradients=gradients)


def error_message(error: Exception) -> Message:
    """Return an error as a message: its class and its text."""
    return {"class": type(error).__name__, "text": str(error)}


def error_of(message: Message) -> Exception:
    """Return the error of a message: of evomerge's or Python's own class where it has one, else of a class of that
    name.
    """
    name, text = message["class"], message["text"]
    for known in (getattr(errors, name, None), getattr(builtins, name, None)):
        if (
            isinstance(known, type)
            and issubclass(known, Exception)
            and (issubclass(known, EvomergeError) or known in (TimeoutError, MemoryError))
        ):
            return known(text)
    if name == "OutOfMemoryError":
        import torch  # here: what only passes messages on does without

        return torch.OutOfMemoryError(text)
    return type(name, (Remote,), {})(text)
