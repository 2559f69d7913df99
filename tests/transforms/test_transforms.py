"""Transforms: TIES frozen before the search against its published numbers, its laws, and its way through a search."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError
from evomerge.recipes.recipe import Recipe
from evomerge.runs.build import build_problem
from evomerge.runs.config import plain
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.task_vectors import cuts
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms import parts
from evomerge.transforms.ties import TrimElect
from tests.kit.evaluations import under
from tests.kit.helpers import compose
from tests.kit.vectors import dense, vectors_of, whole

T3 = torch.tensor([[3.0, -1, 2, 0, -4, 1], [-1, -2, -2, 5, 4, 1], [2, 1, 0, -1, -3, 1]])


def applied(vectors: TaskVectors, density: float) -> dict[str, dict[str, Tensor]]:
    """All transformed deltas by expert, zeros written out."""
    transform = TrimElect(density)
    state, result = transform.prepare(vectors, None), {expert: {} for expert in vectors.experts}
    for name, shape in vectors.parameters.items():
        deltas = {expert: vectors.dense(expert, name) for expert in vectors.experts}
        found = transform.apply(name, {e: d for e, d in deltas.items() if d is not None}, state)
        for expert in vectors.experts:
            result[expert][name] = found.get(expert, torch.zeros(shape))
    return result


def stacked(rows: Tensor) -> TaskVectors:
    return vectors_of({f"e{k}": {"w": row} for k, row in enumerate(rows)})


def test_numbers_of_the_election() -> None:
    """Without a trim: the frozen deltas and their disjoint sum."""
    result = torch.stack([row["w"] for row in applied(stacked(T3), 1.0).values()])
    assert result.tolist() == [[3, -1, 2, 0, -4, 1], [0, -2, 0, 5, 0, 1], [2, 0, 0, 0, -3, 1]]
    assert result.sum(0).tolist() == [5, -3, 2, 5, -7, 3]


def test_a_sum_of_zero_is_plus() -> None:
    assert applied(stacked(torch.tensor([[2.0, -2], [-2, 2]])), 1.0)["e0"]["w"].tolist() == [2, 0]


def test_an_example_by_hand() -> None:
    """Density .4 keeps exactly two of five."""
    rows = torch.tensor([[0.5, 0.1, -0.2, -0.4, 0.05], [-0.1, -0.6, 0.3, 0.2, -0.02]])
    merged = sum(row["w"] for row in applied(stacked(rows), 0.4).values())
    torch.testing.assert_close(merged, torch.tensor([0.5, -0.6, 0.3, -0.4, 0.0]))


def test_the_trim_is_global() -> None:
    """Over both tensors, half of the elements are those of the first; per tensor it would be half of each."""
    deltas = {"a": torch.tensor([10.0, -9, 8, 7]), "b": torch.tensor([0.4, -0.3, 0.2, 0.1])}
    result = applied(vectors_of({"one": deltas}), 0.5)["one"]
    assert result["a"].tolist() == [10, -9, 8, 7]
    assert result["b"].tolist() == [0, 0, 0, 0]


def test_zeros_count_and_equal_elements_go_by_their_index() -> None:
    """|x| = [1, 1, 1, 1] keeps the first two; a parameter that no expert changed still counts."""
    deltas = {"none": torch.zeros(3), "a": torch.tensor([[1.0, -1], [1, 1]]), "b": torch.tensor([1.0])}
    (result,) = applied(vectors_of({"one": deltas}), 0.5).values()  # 4 of 8
    assert result["a"].tolist() == [[1, -1], [1, 1]]
    assert result["b"].tolist() == [0]
    (result,) = applied(vectors_of({"one": deltas}), 0.25).values()  # 2 of 8
    assert result["a"].tolist() == [[1, -1], [0, 0]]


@pytest.mark.parametrize(("density", "count"), [(0.29, 29), (0.57, 57), (0.2, 20), (1, 100), (0.001, 0)])
def test_exactly_k_are_kept(density: float, count: int) -> None:
    for row in (torch.arange(1.0, 101), torch.ones(100), torch.randn(100, generator=torch.Generator().manual_seed(0))):
        assert int(torch.count_nonzero(applied(stacked(row[None]), density)["e0"]["w"])) == count


@st.composite
def families(draw: st.DrawFn) -> Tensor:
    """Task vectors (K, n): coarse values with many equal ones and zeros, or fine ones of very different sizes."""
    experts, size = draw(st.integers(1, 4)), draw(st.integers(1, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    rows = torch.randn(experts, size, generator=generator)
    if draw(st.booleans()):
        return (2 * rows).round() * draw(st.sampled_from([1.0, 2.0**-140, 2.0**100]))  # subnormal and huge ones too
    return rows * 10 ** (4 * torch.randn(experts, size, generator=generator)).clamp(-30, 30)


@settings(max_examples=60, deadline=None)
@given(rows=families(), density=st.sampled_from([0.05, 0.2, 0.29, 0.5, 0.93, 1.0]), chunk=st.sampled_from([1, 7, 1000]))
def test_it_is_the_dense_reference_bit_for_bit(rows: Tensor, density: float, chunk: int) -> None:
    ends = sorted({len(rows[0]) // 3, len(rows[0]) // 2, len(rows[0])} - {0})
    pieces = [dict(enumerate(row.tensor_split(ends[:-1]))) for row in rows]
    vectors = vectors_of({f"e{k}": {f"p{i}": part for i, part in row.items()} for k, row in enumerate(pieces)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "CHUNK", chunk)
        patch.setattr(cuts, "CHUNK", chunk)
        result = applied(vectors, density)
    assert torch.equal(torch.stack([torch.cat(list(row.values())) for row in result.values()]), dense(rows, density))


@settings(max_examples=50, deadline=None)
@given(rows=families(), density=st.sampled_from([0.1, 0.5, 1.0]), power=st.integers(-3, 3))
def test_homogeneous_and_odd_and_the_order_of_experts_means_nothing(rows: Tensor, density: float, power: int) -> None:
    rows = (64 * rows.clamp(-1e3, 1e3)).round()  # whole numbers, whose sums are exact in any order

    def result(of: Tensor) -> Tensor:
        return torch.stack([row["w"] for row in applied(stacked(of), density).values()])

    own = result(rows)
    assert torch.equal(result(rows * 2.0**power), own * 2.0**power)
    assert torch.equal(result(rows * 3), own * 3)
    assert torch.equal(result(rows.flip(0)), own.flip(0))
    decided = torch.stack([dense(row[None], density)[0] for row in rows]).sum(0) != 0
    assert torch.equal(result(-rows)[:, decided], -own[:, decided])


def test_without_a_rival_everything_is_kept_at_density_one() -> None:
    rows = T3.abs()
    assert torch.equal(torch.stack([row["w"] for row in applied(stacked(rows), 1.0).values()]), rows)


@pytest.mark.parametrize("density", [0, -0.1, 1.01, 20, math.nan, math.inf, "0.2", True, None])
def test_densities_that_mean_nothing_are_refused(density: Any) -> None:
    with pytest.raises(ConfigError, match=r"The transform ties has density=.* above 0, up to 1, such as 0\.2 for 20 %"):
        TrimElect(density)


@pytest.fixture(scope="module")
def overrides(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [
        "experiment=smoke",
        f"model.suite={pico_suite.path}",
        f"model.cache={tmp_path_factory.mktemp('cache')}",
        "model.device=cpu",
        "budget=4",
        "fitness.items=30",
        "fitness.select_items=60",
    ]


@pytest.fixture(scope="module")
def frozen(overrides: list[str]):
    """The parts of a search of which the trim leaves so little that whole parameters are zero."""
    return build_problem(plain(compose(*overrides, "method=ties_frozen", "method.transform.density=0.02")), Reporter())


def test_an_expert_is_scored_as_it_is_and_the_base_comes_back(frozen) -> None:
    live = dict(frozen.live.model.named_parameters())
    base = {name: parameter.clone() for name, parameter in live.items()}
    for expert in frozen.space.rows:
        frozen.become(expert)
        for name in frozen.vectors.parameters:
            delta = frozen.vectors.dense(expert, name)
            assert torch.equal(live[name], base[name] if delta is None else base[name] + delta)
    frozen.become(None)
    assert all(torch.equal(parameter, base[name]) for name, parameter in live.items())


def test_the_search_merges_the_transformed_vectors(frozen) -> None:
    """With weight 1 everywhere a candidate is the base and the disjoint sum; what no vector has left is frozen."""
    vectors, live = frozen.vectors, dict(frozen.live.model.named_parameters())
    merged = dense(whole(vectors), 0.02).sum(0)
    frozen.merger.apply({"weight": np.ones((len(frozen.space.groups), len(vectors.experts)))})
    found = torch.cat([live[name].detach().flatten() for name in vectors.parameters])
    base = torch.cat([vectors.base.tensor(name).flatten() for name in vectors.parameters])
    frozen.merger.restore()
    torch.testing.assert_close(found, base + merged, rtol=0, atol=1e-6)
    assert set(frozen.space.frozen.values()) <= {0.0}


def test_the_settings_of_a_transform_are_part_of_the_identity(frozen, overrides: list[str]) -> None:
    other = plain(compose(*overrides, "method=ties_frozen", "method.transform.density=0.03"))
    same = plain(compose(*overrides, "method=ties_frozen", "method.transform.density=0.02"))
    assert under(frozen, other).contents != under(frozen, same).contents


def test_a_search_with_frozen_ties(overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directories = [tmp_path / "ties", tmp_path / "linear"]
    for directory, method in zip(directories, ("ties_frozen", "linear"), strict=True):
        directory.mkdir()
        assert run_search(compose(*overrides, f"method={method}"), directory, Reporter()) is not None
    said = " ".join("".join(capsys.readouterr()).split())
    frozen, plain_ = (json.loads((directory / "summary.json").read_text()) for directory in directories)
    assert frozen["report"]["experts"] == plain_["report"]["experts"]
    assert frozen["report"]["base"] == plain_["report"]["base"]
    assert frozen["report"]["best_constant"] != plain_["report"]["best_constant"]
    recipe = Recipe.from_yaml((directories[0] / "recipe.yaml").read_text())
    assert (recipe.method, recipe.transform) == ({"name": "linear"}, [{"name": "ties", "density": 0.2}])
    assert "_target_" not in (directories[0] / "recipe.yaml").read_text()
    assert not (directories[0] / "mergekit.yaml").exists()
    assert (directories[1] / "mergekit.yaml").exists()
    assert "No mergekit.yaml: mergekit export: this recipe's task vectors were transformed" in said
