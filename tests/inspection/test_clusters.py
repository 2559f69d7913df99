"""Clusters of many experts, by cosines that are given."""

from __future__ import annotations

import numpy as np

from evomerge.inspection.clusters import find_clusters

NAMES = list("abcdefg")


def cosines(*pairs: tuple[str, str, float], usual: float = 0.02) -> np.ndarray:
    found = np.full((len(NAMES), len(NAMES)), usual)
    np.fill_diagonal(found, 1)
    for one, other, value in pairs:
        j, k = NAMES.index(one), NAMES.index(other)
        found[j, k] = found[k, j] = value
    return found


def test_near_duplicates_clusters_and_strangers() -> None:
    kin = [("c", "d", 0.7), ("c", "e", 0.6), ("d", "e", 0.65)]
    found = find_clusters(NAMES, cosines(("a", "b", 0.98), *kin))
    assert found is not None
    assert found.groups == (("c", "d", "e"), ("a", "b"), ("f",), ("g",))
    assert found.twins == (("a", "b"),)
    assert found.far == {}  # 0.02 is what experts of different tasks have, whatever the others are to each other
    many, twins, alike = found.notes()
    assert many.startswith("7 experts are many to merge at once")
    assert "a, b; keep one of them, or give them one weight ('space.tied=[{a: 1, b: 1}]')" in twins
    assert "'space.tied=[{c: 1, d: 1, e: 1}]'" in alike


def test_a_stranger_among_kin() -> None:
    found = find_clusters(NAMES, cosines(*(("g", name, 0.05) for name in "abcdef"), ("a", "b", 0.98), usual=0.3))
    assert found is not None
    assert (found.usual, found.far) == (0.3, {"g": 0.05})
    assert "0.30 in the middle: g (0.05)" in found.notes()[-1]


def test_near_duplicates_make_nobody_a_stranger() -> None:
    """Two thirds of the experts are one of a pair; the others are as far from these as pairs are from each other."""
    pairs = (("a", "b", 0.98), ("c", "d", 0.97), ("e", "f", 0.99))
    found = find_clusters(NAMES, cosines(*pairs, usual=0.15))
    assert found is not None
    assert (found.usual, found.far) == (0.15, {})


def test_experts_that_are_all_as_far() -> None:
    found = find_clusters(NAMES, cosines())
    assert found is not None
    assert len(found.notes()) == 1
    assert all(len(group) == 1 for group in found.groups)


def test_few_experts_and_those_that_changed_nothing() -> None:
    some = cosines()
    some[:2], some[:, :2] = np.nan, np.nan
    assert find_clusters(NAMES, some) is None
