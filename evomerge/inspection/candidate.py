"""A candidate by hand: the live model of a family, and whatever merge of it somebody wants to look at.

In: a `Family`, a space and a method, by their names. Out: a `Candidate`, which puts constants, points, coefficients and
recipes into the live model, and takes gradients of a loss there. Searches write into the same live model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from evomerge.common.progress import Progress, Silent
from evomerge.inspection.family import Family
from evomerge.recipes.recipe import Recipe
from evomerge.runs.choices import Choice, load_choice, settings_of
from evomerge.runs.config import build, check_method
from evomerge.runs.given import make_merge
from evomerge.runs.transforms import in_order
from evomerge.space.coefficients import CoefficientSpace


class Candidate:
    """The live model of a family, which any merge of it can be put into.

    Args:
        family: base and experts.
        space: which coefficients there are: model, blocks:n, layer, module, tensor, chunk:n or line.
        method: how models are combined: linear, ties, dare_ties; or its settings.
        transform: what is done to the task vectors before: a name, such as ties, or a list of names and of
            {name: settings}, in order.
        sharing: `shared` for one coefficient for all experts of a group.
        frozen: pattern -> value at which coefficients are held.
        tied: patterns, each of which makes one coordinate.
        bounds: variable -> (low, high).
        progress: is told what goes on.

    Attributes:
        family: the same.
        model: the live model.
        space: the coefficient space: `dim`, `names`, `low`, `high`, `decode`, `start`.
    """

    def __init__(
        self,
        family: Family,
        space: str = "layer",
        method: str | Choice | Mapping[str, Any] = "linear",
        *,
        transform: str | Sequence[Any] | Mapping[str, Any] | None = None,
        sharing: str = "separate",
        frozen: Mapping[str, float] | None = None,
        tied: Sequence[str] | None = None,
        bounds: Mapping[str, Sequence[float]] | None = None,
        progress: Progress | None = None,
    ) -> None:
        given = {"sharing": sharing, "frozen": frozen and dict(frozen), "tied": tied and [*tied]}
        given["bounds"] = bounds and {name: [*pair] for name, pair in bounds.items()}
        chain = [*transform] if isinstance(transform, list | tuple) else transform
        settings = in_order({"method": settings_of("method", method), "transform": chain})
        settings["space"] = load_choice("space", space, given)
        check_method(settings["method"], settings["transform"])
        self.family = family
        self.merge = make_merge(family.opened, build(settings["method"], "method"), settings, progress or Silent())
        self.model: Any = family.opened.live.model
        self.space: CoefficientSpace = self.merge.space

    def set(self, what: float | np.ndarray | Mapping[str, Any] | Recipe | str | Path) -> Any:
        """Put a merge into the live model, and return the model.

        Args:
            what: a number, the weight of all experts everywhere; {expert: weight}; a point of the space, (dim,); the
                coefficients {variable: (G, K)}; a recipe, or the path of one.
        """
        if isinstance(what, str | Path):
            what = Recipe.from_yaml(Path(what).read_text(encoding="utf-8"))
        if isinstance(what, Recipe):
            known = what.on_groups(self.space.groups, self.space.rows, self.family.opened.parameters)
            coefficients: Mapping[str, Any] = known
        elif isinstance(what, Mapping) and set(what) <= set(self.space.rows):
            coefficients = self.space.constant(np.array([what.get(name, 0.0) for name in self.space.rows]))
        elif isinstance(what, Mapping):
            coefficients = {name: np.asarray(values, dtype=np.float64) for name, values in what.items()}
        elif isinstance(what, int | float):
            coefficients = self.space.constant(what)
        else:
            coefficients = self.space.decode(np.asarray(what, dtype=np.float64))
        self.merge.merger.apply(coefficients)
        return self.model

    def apply(self, x: np.ndarray) -> Any:
        """Put the candidate of a point, (dim,), into the live model, and return the model."""
        self.merge.merger.apply(self.space.decode(x))
        return self.model

    def base(self) -> Any:
        """Put the base back, bit for bit, and return the model."""
        self.merge.merger.restore()
        return self.model

    def gradient(self, loss: Callable[[Any], Tensor | Iterable[Tensor]]) -> np.ndarray:
        """Return the gradient of a loss with respect to the point whose candidate is in the live model, (dim,).

        Args:
            loss: is called with the live model, and returns a scalar, or yields several, each of which is walked
                backward before the next is made: their gradients are added up.
        """

        def losses() -> Iterable[Tensor]:
            found = loss(self.model)
            yield from (found,) if isinstance(found, Tensor) else found

        gradients = self.merge.merger.gradient(losses(), self.space.moves("weight"))
        return self.space.pullback(gradients)
