"""KnOTS and Core Space against their authors' numbers, what has no factors, and a search of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import evomerge as em
from evomerge.common.errors import ConfigError
from evomerge.common.progress import Silent
from evomerge.models.factors import Factors
from evomerge.recipes.adapter import write_adapter
from evomerge.recipes.recipe import Recipe
from evomerge.task_vectors.low_rank import LowRankDelta
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.base import Transform
from evomerge.transforms.chain import Stage, Step, streamed
from evomerge.transforms.directions import directions
from evomerge.transforms.subspace import CoreSpace, Knots
from evomerge.transforms.ties import TrimElect
from tests.kit.adapters import CAUSAL, llama, save_adapter
from tests.kit.language import save_tokenizer
from tests.kit.merging import make_recipe
from tests.kit.vectors import vectors_of

D1, D2 = torch.tensor([[2.0, 0], [0, 0]]), torch.ones(2, 2)
SHAPES = {"first": (9, 5), "second": (4, 7)}


def drawn(rows: int, columns: int, seed: int) -> Tensor:
    places = torch.arange(rows * columns, dtype=torch.float64)
    return torch.sin(places.square() * (0.37 + 0.11 * seed) + seed).view(rows, columns).float()


def factors(k: int, name: str, rank: int = 2, scale: float = 1.0) -> Factors:
    (rows, columns), seed = SHAPES[name], 10 * k + 5 * (name == "second")
    return Factors(drawn(rows, rank, 1 + seed), drawn(rank, columns, 2 + seed), scale)


def vectors_with(rows: Mapping[str, Mapping[str, Factors | Tensor]]) -> TaskVectors:
    """Task vectors in memory, some of them as factors."""
    found = vectors_of({row: {name: whole(one) for name, one in held.items()} for row, held in rows.items()})
    low = {
        row: {name: LowRankDelta(one, 0, one.shape[0] * one.shape[1]) for name, one in held.items() if factored(one)}
        for row, held in rows.items()
    }
    return replace(found, deltas={row: {**held, **low[row]} for row, held in found.deltas.items()})


def factored(one: Factors | Tensor) -> bool:
    return isinstance(one, Factors)


def whole(one: Factors | Tensor) -> Tensor:
    return one.whole().view(one.shape) if isinstance(one, Factors) else one


def three(**more: float) -> TaskVectors:
    """The adapters whose merges by the authors' code stand below."""
    return vectors_with({f"e{k}": {name: factors(k, name, **more) for name in SHAPES} for k in range(3)})


def made(transform: Transform, vectors: TaskVectors) -> dict[str, dict[str, Tensor]]:
    """The rows of each parameter."""
    stage = Stage(Step(transform), vectors)
    return {name: stage(name) for name in vectors.parameters}


def total(rows: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([*rows.values()]).sum(0)


def close(found: Tensor, expected: object) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-5, atol=1e-5)


def test_an_example_of_knots_by_hand() -> None:
    rows = made(Knots(density=1.0), vectors_of({"a": {"w": D1}, "b": {"w": D2}}))["w"]
    close(rows["a"], [[1.146447, 0], [-0.353553, 0]])
    close(rows["b"], [[0.603553, 1], [0.25, 1]])
    close(total(rows), [[1.75, 1], [-0.103553, 1]])
    added = made(Knots(density=1.0, join="sum"), vectors_of({"a": {"w": D1}, "b": {"w": D2}}))["w"]
    close(total(added), [[3.207107, 1], [0.5, 1]])
    u = directions([D1, D2])
    close((u.T @ torch.cat([D1, D2], 1).double()).square().sum(1).sqrt().float(), [2.613126, 1.082392])


def test_a_core_is_as_long_as_its_change() -> None:
    one = Factors(torch.tensor([[1.0], [0], [2]]), torch.tensor([[1.0, 0, 0, 1]]), 1.0)
    two = Factors(torch.tensor([[0.0], [1], [1]]), torch.tensor([[0.0, 1, 1, 0]]), 1.0)
    u, v = directions([one.left, two.left]), directions([one.right.T, two.right.T])
    core = u.T @ whole(one).double() @ v
    assert core.shape == (2, 2)
    assert core.norm().item() == pytest.approx(3.162278, rel=1e-6)
    close((u @ core @ v.T).float(), whole(one))


AUTHORS: dict[str, dict[str, list[float]]] = {
    "mean": {
        "first": [0.689501, -1.174512, -1.366292, 0.940617, -2.070292, 6.774913, -11.056037],
        "second": [-0.421149, -1.776131, 0.0, -0.059889, 0.584499, 0.425749, 0.0, 4.351568, 4.287677],
    },
    "sum": {
        "first": [1.20179, -1.174512, -1.366292, 0.950444, -3.489574, 8.903292, -15.693658],
        "second": [-0.421149, -2.096117, 0.0, -0.059889, 0.584499, 0.425749, 0.0, 4.730981, 2.230018],
    },
    "core": {
        "first": [0.500099, -0.910233, 0.270297, 0.305126, -2.099732, 6.300562, -11.128906],
        "second": [-0.517778, -1.754691, -0.636463, 0.035508, 0.486339, 0.699954, -0.732929, 4.197256, -1.086633],
    },
}
"""What the authors' code makes of the three adapters: the first row of each matrix, its norm, and its sum."""


def authors(found: Tensor) -> list[float]:
    return [*found[0].tolist(), found.norm().item(), found.sum().item()]


@pytest.mark.parametrize("of", ["factors", "products"])
@pytest.mark.parametrize("join", ["mean", "sum"])
def test_knots_of_the_authors_code(of: str, join: str) -> None:
    """Its trim is over both matrices, and keeps one element more than its share: 12 of 58."""
    vectors = three() if of == "factors" else vectors_of(dense(three()))
    for name, rows in made(Knots(density=12 / 58, join=join), vectors).items():
        assert authors(total(rows)) == pytest.approx(AUTHORS[join][name], rel=1e-5, abs=1e-5)


def dense(vectors: TaskVectors) -> dict[str, dict[str, Tensor]]:
    """The same task vectors, multiplied out."""
    found = {row: {name: vectors.dense(row, name) for name in vectors.parameters} for row in vectors.rows}
    return {row: {name: one for name, one in held.items() if one is not None} for row, held in found.items()}


@pytest.mark.parametrize(("name", "density"), [("first", 7 / 30), ("second", 5 / 24)])
def test_core_space_of_the_authors_code(name: str, density: float) -> None:
    """Its trim is of each matrix, and keeps one element more than its share."""
    rows = made(CoreSpace(density=density), three())[name]
    assert authors(total(rows)) == pytest.approx(AUTHORS["core"][name], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("transform", [Knots(inner="linear"), CoreSpace(inner="linear"), CoreSpace("linear", rank=9)])
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_nothing_is_lost_in_shared_directions(transform: Transform, scale: float) -> None:
    """With nothing done to the coordinates it is task arithmetic: also of experts that are alike, of other ranks, of
    parameters that one has whole or not at all, of convolutions and of what is no matrix.
    """
    vectors = vectors_with(
        {
            "a": {
                "first": factors(0, "first", scale=scale),
                "second": factors(0, "second"),
                "conv": drawn(3, 8, 1).view(3, 2, 4),
                "bias": drawn(1, 9, 1)[0],
            },
            "b": {
                "first": factors(0, "first", scale=3.0),
                "second": drawn(4, 7, 3),
                "conv": torch.zeros(3, 2, 4),
                "bias": torch.zeros(9),
            },
            "c": {
                "first": factors(1, "first", rank=4),
                "second": torch.zeros(4, 7),
                "conv": drawn(3, 8, 2).view(3, 2, 4),
                "bias": drawn(1, 9, 2)[0],
            },
        }
    )
    rows = made(transform, vectors)
    for row, held in dense(vectors).items():
        for name, delta in held.items():
            close(rows[name][row], delta)


@pytest.mark.parametrize("make", [Knots, CoreSpace])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_exactly_its_share_of_coordinates_is_kept(make: type[Knots | CoreSpace], scope: str) -> None:
    """Of one expert alone nothing disagrees, so that its row is as long as the coordinates that are kept."""
    vectors = three()
    rows = made(make(density=0.3, scope=scope), replace(vectors, deltas={"e0": vectors.deltas["e0"]}))
    seen, found = [], []
    for name in SHAPES:
        one = factors(0, name)
        left = directions([one.left if make is CoreSpace else whole(one)])
        right = directions([one.right.T]) if make is CoreSpace else torch.eye(SHAPES[name][1]).double()
        seen.append((left.T @ whole(one).double() @ right).flatten().square())
        found.append(sum(float(row.double().square().sum()) for row in rows[name].values()))
    if scope == "model":
        seen, found = [torch.cat(seen)], [sum(found)]
    kept = [float(one.sort(descending=True)[0][: int(0.3 * len(one) + 1e-9)].sum()) for one in seen]
    assert found == pytest.approx(kept, rel=1e-5)


def test_draws_are_of_the_coordinates() -> None:
    rows = made(Knots("dare_ties", density=0.5, seed=3), three())["first"]
    assert all(torch.linalg.matrix_rank(one) <= 6 for one in rows.values())
    assert not torch.equal(total(rows), total(made(Knots("dare_ties", density=0.5, seed=4), three())["first"]))
    kept = made(CoreSpace("dare_ties", density=1.0), three())["first"]
    close(total(kept), total(made(CoreSpace(density=1.0), three())["first"]))


def test_what_an_expert_holds_as_a_whole_is_merged_in_its_elements() -> None:
    """By Core Space; without factors of all, there are no directions that hold everything."""
    vectors = vectors_with(
        {
            "a": {"first": factors(0, "first"), "second": factors(0, "second"), "bias": torch.tensor([1.0, 2, -3, 4])},
            "b": {"first": factors(1, "first"), "second": drawn(4, 7, 3), "bias": torch.tensor([2.0, -1, 3, 1])},
        }
    )
    rows = made(CoreSpace(density=1.0, join="sum"), vectors)
    expected = made(TrimElect(1.0), vectors)
    for name in ("second", "bias"):
        for row in vectors.rows:
            assert torch.equal(rows[name][row], expected[name][row])
    assert not torch.equal(rows["first"]["a"], expected["first"]["a"])


def test_whole_experts_are_refused_by_core_space_or_given_factors() -> None:
    mixed = {
        "a": {name: factors(0, name) for name in SHAPES},
        "red": {name: drawn(*SHAPES[name], 3) for name in SHAPES},
    }
    with pytest.raises(ConfigError, match=r"core_space merges the factors.*red has none.*transform=knots.*rank=16"):
        made(CoreSpace(), vectors_with(mixed))
    given = {"a": mixed["a"], "red": {name: best(one, 2) for name, one in mixed["red"].items()}}
    found, expected = made(CoreSpace(rank=2), vectors_with(mixed)), made(CoreSpace(), vectors_with(given))
    for name in SHAPES:
        close(found[name]["red"], expected[name]["red"])
        close(found[name]["a"], expected[name]["a"])
    alone = vectors_with({"a": mixed["a"] | {"bias": torch.ones(3)}, "b": {**zeros(), "bias": torch.ones(3)}})
    assert made(CoreSpace(density=1.0), alone)["bias"].keys() == {
        "a",
        "b",
    }  # a bias is no matrix that factors could make


def zeros() -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in SHAPES.items()}


def best(matrix: Tensor, rank: int) -> Factors:
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = s[:rank].sqrt()
    return Factors((u[:, :rank] * root).float(), (root[:, None] * v[:rank]).float(), 1.0)


def test_core_space_after_another_transform_is_refused() -> None:
    vectors = three()
    trimmed = streamed(vectors, Stage(Step(TrimElect(0.5)), vectors))
    with pytest.raises(ConfigError, match=r"e0, e1, e2 have none.*name core_space first"):
        Stage(Step(CoreSpace()), trimmed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Knots("tsvm"), "knots has inner=tsvm: write ties or dare_ties or linear"),
        (lambda: Knots(density=0.0), "knots has density=0.0"),
        (lambda: Knots(scope="row"), "knots has scope=row: write model or tensor"),
        (lambda: CoreSpace(join="max"), "core_space has join=max: write mean or sum"),
        (lambda: CoreSpace(seed=-1), "core_space has seed=-1"),
        (lambda: CoreSpace(rank=0), "core_space has rank=0: write a whole number from 1 on"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("transform", ["knots", "core_space"])
def test_a_search_of_adapters_writes_what_was_scored(tmp_path: Path, transform: str) -> None:
    """Two adapters, one of which also trained a bias and a norm as a whole."""
    llama().save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base")
    more = {"bias": "all", "modules_to_save": ["input_layernorm"]}
    experts = {
        "low": save_adapter(tmp_path / "low", llama(), seed=1),
        "odd": save_adapter(tmp_path / "odd", llama(), seed=2, r=4, target_modules=["q_proj", "v_proj"], **more),
    }
    family = em.Family(tmp_path / "base", experts, auto_class=CAUSAL, device="cpu", cache=tmp_path / "cache")
    scored = []

    def score(model, items):
        scored.append({name: one.clone() for name, one in model.named_parameters()})
        return [float(scored[-1]["model.layers.0.self_attn.q_proj.weight"].sum())] * len(items)

    few = {"searcher": "random", "budget": 3, "items": 4, "select_items": 4, "report_items": 4}
    items = {"t": em.items((str(i), 0) for i in range(12))}
    result = em.search(em.Candidate(family, transform=transform), score, items, run=tmp_path / "run", **few)
    assert result.recipe.transform[0]["name"] == transform
    assert Recipe.from_yaml((tmp_path / "run" / "recipe.yaml").read_text()).transform == result.recipe.transform
    assert not (tmp_path / "run" / "mergekit.yaml").exists()
    merged = dict(llama().from_pretrained(result.save(tmp_path / "merged")).named_parameters())
    assert any(all(torch.equal(merged[name], one) for name, one in held.items()) for held in scored)
    changed = [
        name
        for name, one in llama().from_pretrained(tmp_path / "base").named_parameters()
        if not torch.equal(one, merged[name])
    ]
    assert {name.split(".")[-2] for name in changed} >= {"q_proj", "v_proj", "down_proj", "input_layernorm"}


@pytest.mark.parametrize("transform", ["knots", "core_space"])
def test_a_merge_of_adapters_is_an_adapter_of_all_ranks_together(tmp_path: Path, transform: str) -> None:
    llama().save_pretrained(tmp_path / "base")
    experts = {name: save_adapter(tmp_path / name, llama(), seed=k, r=k) for k, name in ((2, "two"), (3, "three"))}
    recipe = replace(
        make_recipe(tmp_path / "base", experts, "linear", "layer", CAUSAL),
        transform=[{"name": transform, "density": 0.5}],
    )
    assert write_adapter(recipe, tmp_path, tmp_path / "five", rank=5, reporter=Silent()).error < 1e-5
    assert write_adapter(recipe, tmp_path, tmp_path / "four", rank=4, reporter=Silent()).error > 1e-3
