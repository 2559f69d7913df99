"""What `inspect` says to try first."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.inspection.advice import first_try
from evomerge.runs.targets import choices_of
from evomerge.selection.curves import Curve


def cosines(number: int, between: float) -> np.ndarray:
    return np.full((number, number), between) + (1 - between) * np.eye(number)


@pytest.mark.parametrize(
    ("number", "between", "expected"),
    [
        (1, 0.0, "one expert: searcher=grid"),
        (2, 0.01, "two experts: weights of 0.3, 0.5, 0.7 and 1"),
        (3, 0.01, "transform=iso_c with weights up to 3, 5 and 2 points"),
        (4, 0.05, "transform=iso_c or wudi, 9 and 6 points"),
        (3, 0.9, "the experts changed alike (mean cosine 0.90): an average"),
        (2, 0.9, "the experts changed alike"),
        (3, float("nan"), "transform=iso_c with weights up to 3"),
    ],
)
def test_it_goes_by_number_and_cosine(number: int, between: float, expected: str) -> None:
    assert first_try(cosines(number, between)).startswith(expected)


def test_nothing_is_said_of_nothing() -> None:
    assert first_try(np.zeros((0, 0))) == ""


@pytest.mark.parametrize(("barrier", "expected"), [(0.0, "no barrier is no promise"), (0.5, "with a barrier between")])
def test_it_goes_by_barriers(barrier: float, expected: str) -> None:
    line = Curve("a", "b", (0.0,) * 11, barrier, 0.1, 0.0)
    assert expected not in first_try(cosines(3, 0.0))
    assert f"; {expected}" in first_try(cosines(3, 0.0), [line])


def test_what_it_names_is_there() -> None:
    assert {"tsvm", "iso_c", "wudi"} <= set(choices_of("transform"))
    assert "grid" in choices_of("searcher")
