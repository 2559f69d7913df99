"""Kernels for the small models of these tests as well, which would be merged without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def kernels_for_all() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("evomerge.merging.builder.SMALL", 0)
        yield
