"""Every kind of delta and every operation of the protocol, against the same arithmetic on float32 tensors."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import evomerge
from evomerge.merging.kernels.products import inner_products, stack
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.expert import ExpertDelta

Make = Callable[[Tensor, Tensor], Delta]
CPU = torch.device("cpu")


def dense(base: Tensor, expert: Tensor) -> Delta:
    return DenseDelta(expert.float() - base.float())


KINDS = {"dense": dense, "expert": ExpertDelta}
DTYPES = [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16), (torch.float64, torch.float16)]
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
every_dtype = pytest.mark.parametrize("dtypes", DTYPES, ids=str)
lengths = st.sampled_from([1, 2, 63, 64, 65, 1000, 4099])
numbers = st.floats(-2, 2, width=32)


def drawn(length: int, seed: int, dtypes: tuple[torch.dtype, torch.dtype]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(length, generator=generator)
    return base.to(dtypes[0]), (base + 0.1 * torch.randn(length, generator=generator)).to(dtypes[1])


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


@every_kind
@every_dtype
@settings(max_examples=20, deadline=None)
@given(
    length=lengths, seed=st.integers(0, 99), weight=numbers, bounds=st.tuples(st.integers(0, 99), st.integers(0, 99))
)
def test_operations(make: Make, dtypes, length: int, seed: int, weight: float, bounds: tuple[int, int]) -> None:
    base, expert = drawn(length, seed, dtypes)
    whole, expected = make(base, expert), expert.float() - base.float()
    before = [tensor.clone() for tensor in (base, expert)]
    span = slice(min(bounds), max(bounds))
    for delta, values, ours in ((whole, expected, base), (whole[span], expected[span], base[span])):
        assert len(delta) == len(values)
        assert same(delta.dense(), values)
        places = torch.arange(len(values)).flip(0)[::3]
        assert same(delta.at(places), values[places])
        assert same(delta.over(ours).dense(), values)
        assert same(delta.over(ours.float()).dense(), values)
        out = torch.empty_like(values)
        delta.write(out)
        assert same(out, values)
        delta.write(out, weight)
        assert same(out, values * weight)
        total = torch.linspace(-1, 1, len(values))
        expected_total = total + values * weight
        delta.add_to(total, weight)
        assert same(total, expected_total)
    assert all(map(torch.equal, (base, expert), before))  # nothing is overwritten


@every_kind
@every_dtype
def test_slices_of_slices(make: Make, dtypes) -> None:
    base, expert = drawn(1000, 0, dtypes)
    delta = make(base, expert)
    assert same(delta[100:900][50:60].dense(), delta[150:160].dense())
    assert len(delta[990:2000]) == 10
    assert delta[:500].nbytes + delta[500:].nbytes == delta.nbytes


def test_what_is_kept_is_what_counts() -> None:
    base, expert = drawn(1000, 0, (torch.float32, torch.bfloat16))
    assert dense(base, expert).nbytes == 4000
    assert ExpertDelta(base, expert).nbytes == 2000


@every_dtype
@pytest.mark.parametrize("length", [1, 65, 4099, (1 << 18) + 7])
def test_kinds_have_one_inner_product(dtypes, length: int) -> None:
    """To the bit, whatever the kind and whether it was copied for it."""
    gradient = torch.randn(length, generator=torch.Generator().manual_seed(9))
    models = [drawn(length, seed, dtypes) for seed in range(3)]
    rows = {kind: [make(*model) for model in models] for kind, make in KINDS.items()}
    mixed = [rows["dense"][0], rows["expert"][1], rows["dense"][2]]
    forms = [*rows.values(), mixed, *(stack(deltas, CPU) for deltas in rows.values())]
    found = [torch.stack(list(inner_products(gradient, deltas))).double().sum(0) for deltas in forms]
    assert all(torch.equal(one, found[0]) for one in found)
    expected = torch.stack([(gradient.double() * delta.dense().double()).sum() for delta in rows["dense"]])
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)


def test_a_base_at_hand_is_used_and_not_copied() -> None:
    """One base serves all experts: of a device, or in float32 for a chunk that is merged."""
    base, expert = drawn(100, 0, (torch.bfloat16, torch.bfloat16))
    wide = base.float()
    assert ExpertDelta(base, expert).over(wide).base is wide


def asked(source: str) -> Iterator[str]:
    """The names of all classes that a module asks anything to be."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kinds]):
                yield from (each.id for each in ast.walk(kinds) if isinstance(each, ast.Name))
            case ast.Call(func=ast.Name(id="type"), args=[_]):
                yield "type"
            case ast.MatchClass(cls=ast.Name(id=kind)):
                yield kind


def test_nobody_outside_asks_which_kind_it_is() -> None:
    """Neither of a delta nor of the method that it is combined by."""
    root = Path(evomerge.__file__).parent
    inside = (root / "task_vectors", root / "merging" / "kernels")
    kinds = {"Delta", "DenseDelta", "ExpertDelta", "ExpertDeltas", "Linear", "Ties", "DareTies"}
    outside = [path for path in root.rglob("*.py") if not any(path.is_relative_to(folder) for folder in inside)]
    assert len(outside) > 100
    assert {path: names for path in outside if (names := kinds & set(asked(path.read_text(encoding="utf-8"))))} == {}
    assert "type" not in set(asked((root / "merging" / "merger.py").read_text(encoding="utf-8")))
    assert set(asked("isinstance(x, Ties | None)")) == {"Ties"}
