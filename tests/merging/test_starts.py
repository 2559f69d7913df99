"""Starts in closed form against their formulas, and against the transform that has the same one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from evomerge.common.errors import MergeError
from evomerge.merging import starts
from evomerge.merging.starts import lines, metagpt, model_stock
from evomerge.space.groups import make_groups
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.averages import ModelStock
from evomerge.transforms.chain import Stage, Step, streamed
from tests.kit.vectors import vectors_of

SHAPES = {"embed.weight": (5, 3), **{f"layers.{i}.mlp.weight": (4, 6) for i in range(3)}, "norm.weight": (7,)}


def drawn() -> TaskVectors:
    """Three experts around a common change; the second left the embeddings as they were."""
    generator = torch.Generator().manual_seed(0)
    common = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    rows = [{name: each + torch.randn(each.shape, generator=generator) for name, each in common.items()} for _ in "abc"]
    rows[1]["embed.weight"] = torch.zeros(5, 3)
    return vectors_of(dict(zip("abc", rows, strict=True)))


def test_metagpt_is_the_share_of_the_squared_lengths() -> None:
    vectors = vectors_of({name: {"w": torch.tensor(row)} for name, row in (("a", [1.0, 2]), ("b", [2.0, 1]))})
    assert metagpt(vectors, make_groups("model", vectors.parameters)).tolist() == [[0.5, 0.5]]
    more = vectors_of({n: {"w": torch.tensor(r)} for n, r in (("a", [1.0, 2]), ("b", [2.0, 1]), ("c", [4.0, 2]))})
    assert metagpt(more, make_groups("tensor", more.parameters))[0] == pytest.approx([1 / 6, 1 / 6, 2 / 3], abs=1e-12)


def test_metagpt_is_the_same_in_all_groups_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = drawn()
    whole = metagpt(vectors, make_groups("model", vectors.parameters))[0]
    assert whole.sum() == pytest.approx(1)
    monkeypatch.setattr(starts, "CHUNK", 5)
    for granularity in ("layer", "chunk:4", "tensor"):
        found = metagpt(vectors, make_groups(granularity, vectors.parameters))
        np.testing.assert_allclose(found, np.tile(whole, (len(found), 1)), rtol=1e-12)


def test_metagpt_needs_a_task_vector() -> None:
    vectors = vectors_of({"a": {"w": torch.zeros(3)}})
    with pytest.raises(MergeError, match=r"All task vectors are zero, .* write start=1/K"):
        metagpt(vectors, make_groups("model", vectors.parameters))


def test_model_stock_is_the_transform_tensor_by_tensor() -> None:
    vectors = vectors_of({"a": {"w": torch.tensor([2.0, 0])}, "b": {"w": torch.tensor([1.0, 1])}})
    found = model_stock(vectors, make_groups("tensor", vectors.parameters))
    assert found == pytest.approx(np.array([[0.4142136, 0.4142136]]), abs=1e-7)
    vectors = drawn()
    changed = streamed(vectors, Stage(Step(ModelStock()), vectors))
    groups = make_groups("tensor", vectors.parameters)
    for group, weights in zip(groups, model_stock(vectors, groups), strict=True):
        (span,) = group.spans
        for row, weight in zip(vectors.rows, weights, strict=True):
            if (delta := vectors.dense(row, span.parameter)) is not None:
                torch.testing.assert_close(changed.dense(row, span.parameter), weight * delta, rtol=1e-5, atol=1e-6)


def test_lines_rise_with_the_depth() -> None:
    vectors = drawn()
    groups = make_groups("layer", vectors.parameters)
    found = dict(zip((group.name for group in groups), lines(vectors, groups)[:, 0], strict=True))
    assert [found[name] for name in found if "layers" in name] == pytest.approx([1 / 3, 1 / 3 + 0.25, 1 / 3 + 0.5])
    assert [found[name] for name in found if "layers" not in name] == pytest.approx([1 / 3, 1 / 3])


def test_lines_of_one_expert_end_at_all_of_it() -> None:
    """As in the paper for a single task: the slope is 1 less the first weight."""
    vectors = drawn()
    alone = replace(vectors, deltas={"a": vectors.deltas[vectors.rows[0]]})
    groups = make_groups("layer", vectors.parameters)
    found = dict(zip((group.name for group in groups), lines(alone, groups)[:, 0], strict=True))
    assert [found[name] for name in found if "layers" in name] == pytest.approx([0.5, 0.75, 1])
