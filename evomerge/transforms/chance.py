"""Transforms that keep elements by chance, once, before the search; the methods of the same names do it with densities
that are searched.

In: task vectors. Out: the same, with zeros where elements were dropped, and the others rescaled so that the expectation
stays. Draws depend on seed, row, parameter and element alone (`task_vectors/draws.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.task_vectors.draws import keys, uniforms
from evomerge.transforms.base import Transform
from evomerge.transforms.parts import Parts, as_rows, by_chunks, share, whole


class Dare(Transform):
    """Drop elements at random and rescale the others (Yu et al. 2024, section 3).

    Args:
        density: the chance of an element to be kept: one less the drop rate of the paper.
        rescale: whether what is kept is divided by the density.
        seed: of the draws.

    Raises:
        ConfigError: a setting means nothing.
    """

    name = "dare"
    title = "DARE: differences to the base dropped at random and rescaled, once"
    paper = "Yu et al. 2024, arXiv 2311.03099"
    mergekit = "dare_linear"

    def __init__(self, density: float = 0.1, rescale: bool = True, seed: int = 0) -> None:
        self.density = share(self.name, "density", density, example=0.1)
        self.rescale, self.seed = bool(rescale), whole(self.name, "seed", seed, 0)

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: None) -> dict[str, Tensor]:
        """Return the rows with what is kept of them."""

        def dropped(start: int, parts: Parts) -> Parts:
            return {
                row: torch.where(
                    uniforms(keys(self.seed, row, name), start, len(part)) < self.density,
                    part / self.density if self.rescale else part,
                    0,
                )
                for row, part in parts.items()
            }

        return by_chunks(deltas, list(deltas), dropped)


class Della(Transform):
    """Drop elements by chance, small ones more often, and rescale the others (Deep et al. 2024, section 3: MAGPRUNE).

    The chance to be kept grows with the rank of an element by magnitude within its row, from density - epsilon to
    density + epsilon; that of a row of one element is the density.

    Args:
        density: the mean chance of an element to be kept.
        epsilon: half of what the chances in a row are apart.
        rescale: whether what is kept is divided by its chance.
        seed: of the draws.

    Raises:
        ConfigError: a setting means nothing, or some chance would not be between 0 and 1.
    """

    name = "della"
    title = "DELLA: differences to the base dropped by chance, small ones more often, and rescaled, once"
    paper = "Deep et al. 2024, arXiv 2406.11617"
    mergekit = "della_linear"

    def __init__(self, density: float = 0.4, epsilon: float = 0.15, rescale: bool = True, seed: int = 0) -> None:
        self.density = share(self.name, "density", density, example=0.4)
        self.epsilon = share(self.name, "epsilon", epsilon, zero=True, example=0.15)
        self.rescale, self.seed = bool(rescale), whole(self.name, "seed", seed, 0)
        if not self.density - self.epsilon > 0 or not self.density + self.epsilon <= 1:
            raise ConfigError(
                f"The transform della has density={density} and epsilon={epsilon}, so its chances go from "
                f"{density - epsilon:g} to {density + epsilon:g}: write an epsilon with which both are between 0 and 1."
            )

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: None) -> dict[str, Tensor]:
        """Return the rows with what is kept of them."""
        return {row: self._dropped(name, row, delta) for row, delta in deltas.items()}

    def chances(self, delta: Tensor) -> Tensor:
        """Return the chance of each element to be kept.

        Args:
            delta: float32 (rows, n).
        """
        length = delta.shape[1]
        order = torch.argsort(delta.abs(), dim=1, stable=True)
        steps = torch.arange(length, dtype=torch.float32) / max(length - 1, 1) if length > 1 else torch.tensor([0.5])
        chances = (self.density - self.epsilon) + steps * (2 * self.epsilon)
        return torch.empty_like(delta).scatter_(1, order, chances.expand_as(delta))

    def _dropped(self, name: str, row: str, delta: Tensor) -> Tensor:
        rows = as_rows(delta)
        chances = self.chances(rows)
        drawn = uniforms(keys(self.seed, row, name), 0, rows.numel()).reshape(rows.shape)
        return torch.where(drawn < chances, rows / chances if self.rescale else rows, 0).reshape(delta.shape)
