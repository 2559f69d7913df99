"""Which of many experts changed alike: clusters by the cosines of their task vectors, and what follows from them.

In: names and cosines. Out: `Clusters`, and sentences. Experts are joined by average linkage (Sokal and Michener 1958),
the nearest ones first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MANY = 5
"""Experts above which there is something to say."""
TWINS = 0.95
"""Mean cosine from which on experts are nearly the same."""
ALIKE = 0.5
"""Mean cosine from which on they changed more alike than not."""
NEAR = 0.1
"""What half of the experts must have with their nearest one, if one with less than half of that is to be far."""


@dataclass(frozen=True)
class Clusters:
    """What many experts are to each other.

    Attributes:
        groups: all experts by clusters of those that changed alike, the largest cluster first.
        twins: those that are nearly the same.
        far: expert -> its highest cosine, of those that are far from all others.
        usual: the median of the highest cosines of all; experts of one cluster count once, by their highest one to
            others, since near-duplicates say nothing of what is usual.
    """

    groups: tuple[tuple[str, ...], ...]
    twins: tuple[tuple[str, ...], ...]
    far: dict[str, float]
    usual: float

    def notes(self) -> list[str]:
        """Return what should be known of them, and what follows."""
        number = sum(map(len, self.groups))
        texts = [
            f"{number} experts are many to merge at once: each weight must be small, and a search needs more "
            f"candidates; searcher=greedy or searcher=topk says which of them are worth it"
        ]
        if self.twins:
            texts.append(
                f"nearly the same (cosine of task vectors {TWINS} or more): {_said(self.twins)}; keep one of them, or "
                f"give them one weight ({_tied(self.twins)})"
            )
        pairs = [group for group in self.groups if len(group) > 1 and group not in self.twins]
        if pairs:
            texts.append(
                f"changed more alike than not (cosine {ALIKE} or more): {_said(pairs)}; their weights add up, so one "
                f"weight for each cluster may do ({_tied(pairs)})"
            )
        if self.far:
            said = ", ".join(f"{name} ({cosine:.2f})" for name, cosine in self.far.items())
            texts.append(
                f"far from all others, whose highest cosines are {self.usual:.2f} in the middle: {said}; what they "
                f"alone know is lost first in an average, so leave their weights free; if nothing explains it, look "
                f"whether they were tuned from this base"
            )
        return texts


def find_clusters(names: Sequence[str], cosines: np.ndarray) -> Clusters | None:
    """Return the clusters of experts; None where there are few.

    Args:
        names: of K experts.
        cosines: of their task vectors, (K, K); NaN for one that changed nothing, which is left out.
    """
    there = np.flatnonzero(np.isfinite(np.diag(cosines)))
    if len(there) <= MANY:
        return None
    from scipy.cluster.hierarchy import fcluster, linkage  # takes long to load
    from scipy.spatial.distance import squareform

    found, names = cosines[np.ix_(there, there)], [names[k] for k in there.tolist()]
    tree = linkage(squareform(1 - found, checks=False), "average")

    def cut(cosine: float) -> tuple[tuple[str, ...], ...]:
        groups: dict[int, list[str]] = {}
        for name, label in zip(names, fcluster(tree, 1 - cosine, "distance").tolist(), strict=True):
            groups.setdefault(label, []).append(name)
        return tuple(sorted(map(tuple, groups.values()), key=lambda group: -len(group)))

    nearest = np.where(np.eye(len(found), dtype=bool), -np.inf, found).max(axis=1)
    groups = cut(ALIKE)
    usual = _usual([[names.index(name) for name in group] for group in groups], found)
    far = {name: float(one) for name, one in zip(names, nearest, strict=True) if usual > NEAR and one < usual / 2}
    return Clusters(groups, tuple(group for group in cut(TWINS) if len(group) > 1), far, usual)


def _usual(groups: Sequence[Sequence[int]], cosines: np.ndarray) -> float:
    """Return the median over clusters of the highest cosine to an expert of another one; 0 where there is one."""
    every = set(range(len(cosines)))
    others = [(group, sorted(every - set(group))) for group in groups]
    return float(np.median([cosines[np.ix_(group, rest)].max() for group, rest in others if rest] or [0.0]))


def _said(groups: Sequence[Sequence[str]]) -> str:
    return "; ".join(", ".join(group) for group in groups)


def _tied(groups: Sequence[Sequence[str]]) -> str:
    ties = ", ".join("{" + ", ".join(f"{name}: 1" for name in group) + "}" for group in groups)
    return f"'space.tied=[{ties}]'"
