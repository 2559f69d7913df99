"""Transformed task vectors on disk: what names their files, when they are computed, how much memory that takes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.task_vectors.packing import pack
from evomerge.task_vectors.store import TaskVectors
from evomerge.task_vectors.stores import LOSSY
from evomerge.transforms.base import Transform
from evomerge.transforms.chain import Chain, Step
from evomerge.transforms.store import transformed
from evomerge.transforms.ties import TrimElect
from tests.kit.models import SHAPES, Family, drawn
from tests.kit.transforms import Scale
from tests.kit.vectors import anonymous_memory, dense, vectors_of, whole


class Counted(Transform):
    """Writes down what is asked of a transform."""

    name, title, paper = TrimElect.name, TrimElect.title, TrimElect.paper

    def __init__(self, density: float) -> None:
        self.inner, self.asked, self.density = TrimElect(density), [], density

    def prepare(self, store: TaskVectors, statistics: Any) -> Any:
        self.asked.append("prepare")
        return self.inner.prepare(store, statistics)

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: Any) -> Mapping[str, Tensor]:
        self.asked.append(name)
        return self.inner.apply(name, deltas, state)


@pytest.fixture
def family(tmp_path: Path) -> Family:
    """Two experts that differ, of which one leaves a parameter alone and has another that a trim sets to zero."""
    base = drawn(0)
    other = {name: base[name] + delta for name, delta in drawn(2, 0.1).items()}
    small = {"norm.weight": base["norm.weight"], "layers.0.bias": base["layers.0.bias"] + 1e-4}
    return Family(tmp_path, a=small, b=other)


def test_transformed_vectors_are_kept_and_read_back(family: Family) -> None:
    vectors, transform = family.vectors(), Counted(0.3)
    first = transformed(vectors, (Step(transform),), family.cache)
    assert transform.asked == ["prepare", *SHAPES]  # one pass for both
    assert len(family.files()) == 4
    assert torch.equal(whole(first), dense(whole(vectors), 0.3))
    assert (first.base, first.experts, first.parameters) == (vectors.base, vectors.experts, vectors.parameters)
    assert first.zero == {("a", "norm.weight"), ("a", "layers.0.bias")}
    assert first.dense("a", "layers.0.bias") is None
    maps = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(family.cache) in line]
    spans = [[int(end, 16) for end in span.split("-")] for span in maps]
    places = [tensor.data_ptr() for tensor in first.deltas["b"]["embed.weight"].layout().tensors]
    assert all(any(low <= place < high for low, high in spans) for place in places)

    again = transformed(family.vectors(), (Step(transform),), family.cache)
    assert len(transform.asked) == 1 + len(SHAPES)  # nothing is computed
    assert again.zero == first.zero
    assert torch.equal(whole(again), whole(first))


def test_progress_is_told_while_the_whole_model_is_looked_at(family: Family) -> None:
    """A threshold over all parameters is found before any row is made."""
    told: list[tuple[str, int, int]] = []
    chain = (Step(TrimElect(0.3)),)
    transformed(family.vectors(), chain, family.cache, lambda *what: told.append(what))
    looked = [(done, total) for what, done, total in told if what == "ties looks at all task vectors"]
    vectors = family.vectors()
    every = sum(math.prod(SHAPES[name]) for held in vectors.deltas.values() for name in held)
    assert {"ties looks at all task vectors", "transform ties"} <= {what for what, _, _ in told}
    names = [what for what, _, _ in told]
    assert names.index("ties looks at all task vectors") < names.index("transform ties")
    assert {total for _, total in looked} == {every}
    assert (every, every) in looked
    assert all(0 < done <= every for done, _ in looked)


def test_what_is_only_trimmed_is_a_mask_over_the_task_vector(family: Family) -> None:
    """An eighth of a byte a parameter; masks over masks lie over the task vector as well."""
    vectors = family.vectors()
    plain, steps = family.files(), (Step(TrimElect(0.5)), Step(TrimElect(0.3)))
    found = transformed(vectors, steps, family.cache)
    kinds = {delta.layout().kind for held in found.deltas.values() for delta in held.values()}
    assert kinds == {"masked dense"}
    words = {delta.layout().tensors[-1].nbytes for held in found.deltas.values() for delta in held.values()}
    assert words == {8 * -(-math.prod(shape) // 64) for name, shape in SHAPES.items() if name in found.deltas["b"]}
    once = dense(whole(vectors), 0.5)
    assert torch.equal(whole(found), dense(once, 0.3))
    assert len(set(family.files()) - set(plain)) == 4


def test_what_is_more_than_trimmed_is_written_out(family: Family) -> None:
    vectors = family.vectors()
    found = transformed(vectors, (Step(Scale(3.0), ("layers.0.*",)),), family.cache)
    kinds = {name: delta.layout().kind for name, delta in found.deltas["b"].items()}
    assert all(kind == ("dense" if name.startswith("layers.0.") else "masked dense") for name, kind in kinds.items())
    assert len(set(kinds.values())) == 2


@pytest.mark.parametrize("store", LOSSY)
@pytest.mark.parametrize("chain", [(), (Step(TrimElect(0.3)),), (Step(TrimElect(0.3)), Step(Scale(3.0)))], ids=len)
def test_rows_are_kept_as_was_chosen(family: Family, store: str, chain: Chain) -> None:
    """Within the bound of the exact rows, which transforms see; what a trim left out is 0."""
    vectors = family.vectors()
    exact, found = transformed(vectors, chain, family.cache), transformed(vectors, chain, family.cache, store=store)
    assert found.zero == exact.zero
    for row, held in found.deltas.items():
        for name, delta in held.items():
            mine, theirs = delta.dense(), exact.deltas[row][name].dense()
            assert (mine.double() - theirs.double()).abs().max() <= delta.bound
            assert delta.bound > 0
            if len(chain) == 1:
                assert torch.equal(
                    mine, torch.where(theirs != 0, pack(vectors.deltas[row][name].dense(), store).dense(), 0.0)
                )
            else:
                assert torch.equal(mine, pack(theirs, store).dense())
    files = family.files()
    again = transformed(vectors, chain, family.cache, store=store)
    assert torch.equal(whole(again), whole(found))
    assert family.files() == files


def test_a_damaged_file_alone_is_computed_again(family: Family, caplog: pytest.LogCaptureFixture) -> None:
    vectors, transform = family.vectors(), Counted(0.3)
    plain_files = family.files()
    transformed(vectors, (Step(transform),), family.cache)
    file = next(file for file in family.files() if file not in plain_files)
    whole = file.read_bytes()
    file.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    transform.asked.clear()
    with caplog.at_level(logging.WARNING):
        transformed(vectors, (Step(transform),), family.cache)
    assert f"{file} is damaged: it is computed again" in caplog.text
    assert transform.asked == ["prepare", *SHAPES]
    assert file.read_bytes() == whole


def test_files_are_named_by_all_that_they_depend_on(tmp_path: Path) -> None:
    """Settings, every expert (each elects the signs of all), their order, and the parameters, of which k is a share."""
    deltas = {"a": drawn(1), "b": drawn(2)}

    def names(vectors: TaskVectors, density: float = 0.3) -> set[str]:
        before = set(tmp_path.glob("*.safetensors"))
        transformed(vectors, (Step(TrimElect(density)),), tmp_path)
        return {file.name for file in set(tmp_path.glob("*.safetensors")) - before}

    vectors = vectors_of(deltas)
    assert len(names(vectors)) == 2
    assert len(names(vectors)) == 0
    assert len(names(vectors, 0.4)) == 2
    assert len(names(vectors_of(dict(reversed(deltas.items()))))) == 2
    assert len(names(replace(vectors, base=replace(vectors.base, sha256="other")))) == 2
    assert len(names(replace(vectors, experts=vectors.experts | {"b": replace(vectors.base, sha256="c")}))) == 2
    assert len(names(vectors_of({name: row | {"more": torch.zeros(99)} for name, row in deltas.items()}))) == 2


def test_the_rows_of_one_parameter_in_memory_at_a_time(tmp_path: Path) -> None:
    shapes = {f"layers.{i}.weight": (1024, 1024) for i in range(5)}
    vectors = vectors_of({f"e{k}": drawn(k, shapes=shapes) for k in range(5)})
    size, seen, before = 5 << 22, [], anonymous_memory()
    result = transformed(vectors, (Step(TrimElect(0.2)),), tmp_path, lambda *_: seen.append(anonymous_memory()))
    assert len(result.deltas) == 5
    # the rows of a parameter are as large as one expert here; what the allocator keeps comes beside them
    assert max(seen) - before < 3.5 * size
