"""Fixtures shared by all tests: the pico suite, built once per session, and its assembled parts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def pico_suite(tmp_path_factory: pytest.TempPathFactory, worker_id: str):
    """The pico suite; under xdist one worker builds it (build_pico takes a lock) and the others open it."""
    from evomerge.pico import build_pico

    root = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        root = root.parent
    return build_pico(Path(root) / "suites" / "pico")


@pytest.fixture(scope="session")
def assembly(pico_suite, tmp_path_factory: pytest.TempPathFactory):
    """Everything that a search on the pico suite is made of. Tests that merge must restore."""
    from evomerge.assembly import assemble
    from evomerge.progress import Reporter
    from tests.helpers import compose

    overrides = ["model=pico", f"model.suite={pico_suite.path}", f"model.cache={tmp_path_factory.mktemp('cache')}"]
    return assemble(compose(*overrides), Reporter())
