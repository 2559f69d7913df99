"""No fourth outcome: of a family with one thing changed at random, evomerge refuses or names it, or scores every model
as transformers loads it.

`constant:1` of one expert, that expert by name, and its directory as a model must give the logits of `from_pretrained`
of that directory, to 1e-5 in float32. EVOMERGE_MUTATIONS=3000 tries so many; the default takes a quarter of a minute.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.kit.mutations import Mutation, mutate
from tests.kit.yardstick import FAMILIES, outcome, save_families, settings_of

CASES = int(os.environ.get("EVOMERGE_MUTATIONS", "60"))
CHUNKS = 6


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("families")
    save_families(root)
    return root


def verdict(mutation: Mutation, done: str, said: str, equal: Mapping[str, bool]) -> str | None:
    """What is wrong with an outcome, or None."""
    noted = "\n".join(line for line in said.splitlines() if "tasks or" not in line)
    if mutation.kind == "control":
        if done == "refused":
            return f"refused: {said}"
        warned = [line for line in noted.splitlines() if line.startswith(("expert ", "base ", "the base", "warning"))]
        return f"warned: {warned}" if warned else None if all(equal.values()) else f"other logits: {equal}"
    if any(word in noted for word in mutation.words):
        return None
    if done == "refused":
        return f"refused without naming it: {said}"
    return None if all(equal.values()) else f"other logits without a word: {equal}; said: {noted}"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_fourth_outcome(families: Path, tmp_path: Path, chunk: int) -> None:
    settings, wrong = settings_of(families), []
    for seed in range(chunk, CASES, CHUNKS):
        rng = random.Random(seed)
        family = rng.choice(sorted(FAMILIES))
        who = rng.choice(["one", "one", "one", "base"])
        place = tmp_path / str(seed)
        shutil.copytree(families / family, place)
        mutation = mutate(place / who, rng, control=seed % 5 < 2)
        problem = verdict(mutation, *outcome(settings, place, FAMILIES[family][2]))
        if problem:
            wrong.append(f"seed {seed}, {family}, {who}: {mutation.kind} {mutation.words}: {problem}")
        shutil.rmtree(place)
    assert not wrong, "\n".join([f"{len(wrong)} wrong", *wrong])
