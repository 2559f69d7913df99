"""Finds the coefficients with which fine-tuned experts of one base model should be merged.

    import evomerge as em

    family = em.Family("models/base", mood="models/mood", topic="models/topic")
    candidate = em.Candidate(family, space="layer")
    result = em.search(candidate, score, {"mood": em.items("mood.jsonl"), "topic": em.items("topic.jsonl")})
    result.save("merged")

`evomerge.api` says more. A name is imported when it is used first: `import evomerge` loads no torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"

_HOMES = {
    "evomerge.api": (
        *("Candidate", "Choice", "Family", "Item", "Result", "Splits", "items", "load", "search"),
        *(
            "classification",
            "cmaes",
            "compare",
            "evaluate",
            "gradient",
            "grid",
            "hybrid",
            "lm_eval",
            "perplexity",
            "random",
            "processes",
            "ray",
            "screened",
            "tpe",
        ),
    ),
    "evomerge.common.errors": ("EvomergeError",),
    "evomerge.search.stopping": ("Stopped",),
    "evomerge.searchers.cmaes": ("CmaEs",),
    "evomerge.searchers.gradient": ("Gradient",),
    "evomerge.searchers.grid": ("Grid",),
    "evomerge.searchers.hybrid": ("Hybrid",),
    "evomerge.searchers.random": ("Random",),
    "evomerge.searchers.tpe": ("Tpe",),
    "evomerge.trials": ("Batch", "Trial"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from evomerge.api import Candidate as Candidate
    from evomerge.api import Choice as Choice
    from evomerge.api import Family as Family
    from evomerge.api import Item as Item
    from evomerge.api import Result as Result
    from evomerge.api import Splits as Splits
    from evomerge.api import classification as classification
    from evomerge.api import cmaes as cmaes
    from evomerge.api import compare as compare
    from evomerge.api import evaluate as evaluate
    from evomerge.api import gradient as gradient
    from evomerge.api import grid as grid
    from evomerge.api import hybrid as hybrid
    from evomerge.api import items as items
    from evomerge.api import lm_eval as lm_eval
    from evomerge.api import load as load
    from evomerge.api import perplexity as perplexity
    from evomerge.api import processes as processes
    from evomerge.api import random as random
    from evomerge.api import ray as ray
    from evomerge.api import screened as screened
    from evomerge.api import search as search
    from evomerge.api import tpe as tpe
    from evomerge.common.errors import EvomergeError as EvomergeError
    from evomerge.search.stopping import Stopped as Stopped
    from evomerge.searchers.cmaes import CmaEs as CmaEs
    from evomerge.searchers.gradient import Gradient as Gradient
    from evomerge.searchers.grid import Grid as Grid
    from evomerge.searchers.hybrid import Hybrid as Hybrid
    from evomerge.searchers.random import Random as Random
    from evomerge.searchers.tpe import Tpe as Tpe
    from evomerge.trials import Batch as Batch
    from evomerge.trials import Trial as Trial

__all__ = ["__version__", *sorted(_HOME_OF)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'evomerge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})


class _Front(ModuleType):
    """The package, whose `search` is the function, and not the room of the same name: whoever imports a module of a
    room binds the room's name to the package.
    """

    @property
    def search(self) -> Any:
        """The function `evomerge.api.search`."""
        return __getattr__("search")

    @search.setter
    def search(self, room: ModuleType) -> None:
        """Take no note of the room, which `import` finds by itself."""


sys.modules[__name__].__class__ = _Front
