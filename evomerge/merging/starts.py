"""Coefficients in closed form, to begin a search with: they follow from the task vectors, or from the depth alone.

In: task vectors, or the rows that transforms made of them, and the groups of a space; or what the experts reach. Out: a
weight for each group and row. Only the last one needs data.

    metagpt       ‖τ_k‖² / Σ_j ‖τ_j‖² in all groups (Zhou et al. 2024, arXiv 2406.11385, section 3)
    model_stock   t / K with t = K c / (1 + (K - 1) c), group by group, where c is the mean of the cosines between the
                  task vectors of each two experts (Jang et al. 2024, arXiv 2403.19522, section 3.3)
    lines         1 / K + d / 2 at depth d, from 0 in the first block to 1 in the last (Wang et al. 2025, arXiv
                  2410.17146, section 4; the paper searches the slope); 1 / K outside blocks. One expert alone has
                  1 / 2 in place of 1 / K, since the paper's slope is 1 less that then
    cocktail      exp(-loss_k / T) / Σ_j exp(-loss_j / T) in all groups (Xiao et al. 2023, arXiv 2311.13534)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from evomerge.common.errors import ConfigError, MergeError
from evomerge.space.groups import Group
from evomerge.task_vectors.spans import CHUNK, Span, chunks
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.averages import way

SLOPE = 0.5
"""What LiNeS adds to the weight of the last block."""


def metagpt(vectors: TaskVectors, groups: Sequence[Group]) -> np.ndarray:
    """Return each row's share of the squared lengths, float64 (G, K).

    Raises:
        MergeError: all task vectors are zero.
    """
    squares = sum(np.diag(products(vectors, group.spans)) for group in groups)
    total = np.sum(squares)
    if not total > 0:
        raise MergeError("All task vectors are zero, so start=metagpt has no shares: write start=1/K.")
    return np.tile(squares / total, (len(groups), 1))


def model_stock(vectors: TaskVectors, groups: Sequence[Group]) -> np.ndarray:
    """Return the ratio of Model Stock over K, float64 (G, K); 0 where task vectors point away from each other, as the
    transform of that name has it.
    """
    found = [_ratio(products(vectors, group.spans)) / len(vectors.rows) for group in groups]
    return np.repeat(np.array(found)[:, None], len(vectors.rows), axis=1)


def lines(vectors: TaskVectors, groups: Sequence[Group]) -> np.ndarray:
    """Return a line over the depth, float64 (G, K); for one expert alone it ends at 1."""
    first = 1 / len(vectors.rows) if len(vectors.rows) > 1 else 1 - SLOPE
    found = [first + SLOPE * (group.depth or 0.0) for group in groups]
    return np.repeat(np.array(found)[:, None], len(vectors.rows), axis=1)


class Start(NamedTuple):
    """A closed form.

    Attributes:
        title: what it does, in a few words.
        paper: where it was published.
        weights: the function.
    """

    title: str
    paper: str
    weights: Callable[[TaskVectors, Sequence[Group]], np.ndarray]


STARTS = {
    "metagpt": Start("weights by the squared lengths of task vectors", "Zhou et al. 2024, arXiv 2406.11385", metagpt),
    "model_stock": Start(
        "one weight for all, by the angles between them", "Jang et al. 2024, arXiv 2403.19522", model_stock
    ),
    "lines": Start("weights that grow with the depth", "Wang et al. 2025, arXiv 2410.17146", lines),
}
"""By the names that the setting `start` gives them."""


@dataclass(frozen=True)
class Cocktail:
    """Shares of the experts by what they reach.

    Args:
        temperature: the higher, the more alike they are.
    """

    title: ClassVar[str] = "shares of the experts by what they reach on the search items"
    paper: ClassVar[str] = "Xiao et al. 2023, arXiv 2311.13534"
    temperature: float = 5.0

    def weights(self, losses: np.ndarray) -> np.ndarray:
        """Return exp(-loss / T) as shares, float64 (K,).

        Args:
            losses: of the experts, (K,).

        Raises:
            ConfigError: the temperature is not positive.
        """
        if not self.temperature > 0:
            raise ConfigError(f"cocktail: a temperature of {self.temperature:g} means nothing: write one above 0.")
        shares = np.exp((losses.min() - losses) / self.temperature)
        return shares / shares.sum()


def products(vectors: TaskVectors, spans: Sequence[Span]) -> np.ndarray:
    """Return the inner products of all rows in some elements, float64 (K, K); chunks alone are in memory."""
    gram = np.zeros((len(vectors.rows), len(vectors.rows)))
    for span in spans:
        held = [(k, d) for k, row in enumerate(vectors.rows) if (d := vectors.delta(row, span.parameter)) is not None]
        places = np.ix_([k for k, _ in held], [k for k, _ in held])
        for chunk in chunks(span.stop - span.start, CHUNK) if held else ():
            part = slice(span.start + chunk.start, span.start + chunk.stop)
            rows = torch.stack([delta[part].dense() for _, delta in held]).double()
            gram[places] += (rows @ rows.T).numpy()
    return gram


def _ratio(gram: np.ndarray) -> float:
    """Return how far Model Stock goes from the base to the average, 0 to 1."""
    number, lengths = len(gram), np.sqrt(np.diag(gram))
    if number == 1:
        return 1.0
    pairs = [(j, k) for k in range(number) for j in range(k) if lengths[j] > 0 and lengths[k] > 0]
    cosine = float(np.mean([gram[j, k] / (lengths[j] * lengths[k]) for j, k in pairs])) if pairs else 0.0
    return way(number, cosine)
