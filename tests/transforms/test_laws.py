"""Laws that every transform keeps, whatever it does: files, chunks, odd shapes, what is missing, and its recipe."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evomerge.recipes.catalog import TRANSFORMS, make_chain
from evomerge.recipes.recipe import Recipe, Source
from evomerge.runs.config import choices_of
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms import parts
from evomerge.transforms.chain import Stage, Step, streamed
from evomerge.transforms.store import transformed
from tests.kit.published import quick, usual
from tests.kit.vectors import vectors_of

SHAPES = {"matrix": (12, 7), "tall": (33, 2), "bias": (9,), "cube": (3, 2, 4), "scale": (), "one": (1, 1)}
ROUNDED = {
    *("truncate", "star", "tsvm", "iso_c", "iso_cts", "cart", "opcm", "ranks"),
    *("optmerge", "doge", "knots", "core_space"),
}
"""Those of singular values, which are not the same bits for other scales."""
ABSOLUTE = {"wudi", "doge", "widen"}
"""Those with steps of one size, or weights by magnitude: the sign alone goes through."""
NOTHING = {"consensus", "cabs"}
"""Those that keep nothing of a task that is alone, or of tensors that are smaller than a block."""

every = pytest.mark.parametrize("name", TRANSFORMS)


def drawn(seed: int, missing: tuple[str, ...] = (), scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {name: torch.zeros(SHAPES[name]) if name in missing else row for name, row in found.items()}


def family(scale: float = 1.0) -> TaskVectors:
    """Three experts: the second left a matrix as it was, the third did not change anything."""
    return vectors_of(
        {"a": drawn(1, scale=scale), "b": drawn(2, ("tall", "scale"), scale), "c": drawn(0, tuple(SHAPES))}
    )


def rows_of(vectors: TaskVectors) -> dict[str, dict[str, Tensor]]:
    return {row: {name: d for name in SHAPES if (d := vectors.dense(row, name)) is not None} for row in vectors.rows}


def same(one: TaskVectors, other: TaskVectors) -> bool:
    first, second = rows_of(one), rows_of(other)
    return one.rows == other.rows and all(
        first[row].keys() == second[row].keys() and all(torch.equal(first[row][n], second[row][n]) for n in first[row])
        for row in first
    )


def test_every_file_is_of_a_transform_and_holds_its_defaults() -> None:
    assert {choice for choice in choices_of("transform") if choice != "none"} == set(TRANSFORMS)
    for name, kind in TRANSFORMS.items():
        assert usual(name).settings == kind().settings


@every
def test_the_same_bits_from_files_streams_and_small_chunks(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, step = family(), Step(quick(name))
    found = transformed(vectors, (step,), tmp_path / "once")
    assert same(found, streamed(vectors, Stage(step, vectors)))
    monkeypatch.setattr(parts, "CHUNK", 5)
    assert same(found, transformed(vectors, (step,), tmp_path / "again"))
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            other = rows_of(transformed(vectors, (step,), tmp_path / f"of {number}"))
            torch.testing.assert_close(other, rows_of(found), rtol=1e-5, atol=1e-7)  # WIDEN: a softmax in threads
    finally:
        torch.set_num_threads(threads)


def stamps(cache: Path) -> dict[Path, int]:
    """When the rows were written; hashes of sources are noted once these are old enough, so at any time."""
    return {file: file.stat().st_mtime_ns for file in cache.iterdir() if not file.name.startswith("hashes.")}


@every
def test_what_is_kept_is_never_computed_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by an object of its own with the same settings."""
    vectors = family()
    found = transformed(vectors, (Step(quick(name)),), tmp_path)
    kept = stamps(tmp_path)
    for asked in ("prepare", "apply"):
        monkeypatch.setattr(TRANSFORMS[name], asked, lambda *_, asked=asked: pytest.fail(f"{asked} was called"))
    assert same(found, transformed(vectors, (Step(quick(name)),), tmp_path))
    assert stamps(tmp_path) == kept


@every
def test_scale_and_sign_go_through(name: str, tmp_path: Path) -> None:
    """T(c τ) = c T(τ): for a power of two to the bit, where nothing is decomposed."""
    factor = -1 if name in ABSOLUTE else 4
    one, other = (
        rows_of(transformed(family(scale), (Step(quick(name)),), tmp_path / str(scale))) for scale in (1, factor)
    )
    tolerance = 1e-4 if name in ROUNDED else 1e-6 if name in ("sce", "model_stock") else 0
    for row, deltas in one.items():
        for parameter, delta in deltas.items():
            torch.testing.assert_close(other[row][parameter], factor * delta, rtol=tolerance, atol=tolerance)


@every
def test_one_expert_and_an_expert_that_changed_nothing(name: str, tmp_path: Path) -> None:
    alone = vectors_of({"a": drawn(1)})
    found = transformed(alone, (Step(quick(name)),), tmp_path / "one")
    assert any(rows_of(found).values()) == (name not in NOTHING)
    nothing = vectors_of({"a": drawn(1, tuple(SHAPES)), "b": drawn(2, tuple(SHAPES))})
    assert not any(rows_of(transformed(nothing, (Step(quick(name)),), tmp_path / "none")).values())


class Watched:
    """Task vectors that know which of their deltas are in memory."""

    def __init__(self, vectors: TaskVectors, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held, self.most = dict[int, str](), 0
        read = TaskVectors.dense

        def dense(of: TaskVectors, row: str, name: str) -> Tensor | None:
            delta = read(of, row, name)
            if delta is None or of is not vectors:
                return delta
            delta = delta.clone()
            self.held[id(delta)] = name
            weakref.finalize(delta, self.held.pop, id(delta))
            self.most = max(self.most, len(set(self.held.values())))
            return delta

        monkeypatch.setattr(TaskVectors, "dense", dense)


@every
def test_one_parameter_in_memory_at_a_time(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the rows of the one before, which may be task vectors as they were."""
    vectors = family()
    watched = Watched(vectors, monkeypatch)
    transformed(vectors, (Step(quick(name)),), tmp_path)
    assert 1 <= watched.most <= 2
    assert watched.held == {}


@every
def test_a_recipe_makes_it_again(name: str) -> None:
    vectors, step = family(), Step(quick(name), ("ma*", "bias"))
    rows = list(step.rows(vectors.rows, vectors.parameters))
    written = Recipe(
        base=Source("base", "0"),
        experts={expert: Source(expert, expert) for expert in "abc"},
        method={"name": "linear"},
        granularity="model",
        coefficients={"weight": {"model": dict.fromkeys(rows, 1.0)}},
        transform=[step.about()],
        rows=[] if rows == ["a", "b", "c"] else rows,
    )
    (again,) = make_chain(Recipe.from_yaml(written.to_yaml()), vectors.parameters)
    assert (again.about(), again.only) == (step.about(), step.only)
    assert same(streamed(vectors, Stage(again, vectors)), streamed(vectors, Stage(step, vectors)))
