"""Every kind of delta and every operation of the protocol, against the same arithmetic on float32 tensors."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import evomerge
from evomerge.merging.kernels.products import Part, Products
from evomerge.models.factors import Factors
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.expert import ExpertDelta
from evomerge.task_vectors.low_rank import LowRankDelta
from evomerge.task_vectors.masked import masked
from evomerge.task_vectors.quantised import quantised
from evomerge.task_vectors.spans import Span

Make = Callable[[Tensor, Tensor], Delta]


def dense(base: Tensor, expert: Tensor) -> Delta:
    return DenseDelta(expert.float() - base.float())


def of_bits(bits: int) -> Make:
    return lambda base, expert: quantised(expert.float() - base.float(), bits)


def trimmed(make: Make) -> Make:
    """The same with a mask over it: what is larger than half of the largest is kept."""

    def made(base: Tensor, expert: Tensor) -> Delta:
        values = (expert.float() - base.float()).abs()
        return masked(make(base, expert), values > values.max() / 2)

    return made


def narrow(base: Tensor, expert: Tensor) -> Delta:
    return DenseDelta((expert.float() - base.float()).bfloat16())


def low_rank(base: Tensor, expert: Tensor) -> Delta:
    """Factors of a matrix that has as many elements, which are drawn."""
    width = max(1, math.isqrt(len(base)))
    generator = torch.Generator().manual_seed(len(base))
    left, right = (torch.randn(shape, generator=generator) for shape in ((-(-len(base) // width), 3), (3, width)))
    return LowRankDelta(Factors(left, right, 0.3), 0, len(left) * width)[: len(base)]


PLAIN: dict[str, Make] = {
    "dense": dense,
    "bfloat16": narrow,
    "expert": ExpertDelta,
    "int8": of_bits(8),
    "int4": of_bits(4),
    "low_rank": low_rank,
}
KINDS = PLAIN | {f"masked {kind}": trimmed(make) for kind, make in PLAIN.items()}
EXACT = ("dense", "expert")
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
    whole = make(base, expert)
    expected = whole.dense()
    before = [tensor.clone() for tensor in (base, expert)]
    span = slice(min(bounds), max(bounds))
    for place in (slice(None), span):
        delta, values, ours = whole[place], expected[place], base[place]
        assert len(delta) == len(values)
        assert same(delta.dense(), values)
        places = torch.arange(len(values)).flip(0)[::3]
        assert same(delta.at(places), values[places])
        assert same(delta.over(ours).dense(), values)
        assert same(delta.over(ours.float()).dense(), values)
        assert same(delta.added(ours.float()), expert.float()[place] if make is ExpertDelta else ours.float() + values)
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


@pytest.mark.parametrize("kind", EXACT)
@every_dtype
def test_a_task_vector_is_the_difference_of_float32(kind: str, dtypes) -> None:
    base, expert = drawn(1000, 0, dtypes)
    delta = KINDS[kind](base, expert)
    assert same(delta.dense(), expert.float() - base.float())
    assert same(KINDS[f"masked {kind}"](base, expert).dense(), torch.where(large(delta), delta.dense(), 0.0))
    assert delta.bound == 0


def large(delta: Delta) -> Tensor:
    return delta.dense().abs() > delta.dense().abs().max() / 2


@every_kind
@every_dtype
def test_slices_of_slices(make: Make, dtypes) -> None:
    base, expert = drawn(1000, 0, dtypes)
    delta = make(base, expert)
    assert same(delta[100:900][50:60].dense(), delta[150:160].dense())
    assert same(delta[100:900][50:60].over(base[150:160]).dense(), delta[150:160].dense())
    assert len(delta[990:2000]) == 10
    assert delta[:512].nbytes + delta[512:].nbytes == delta.nbytes


@every_kind
@pytest.mark.parametrize(
    "place", [slice(0, 1000), slice(64, 1000), slice(31, 32), slice(33, 777), slice(100, 100)], ids=str
)
def test_a_layout_is_all_that_a_kernel_needs(make: Make, place: slice) -> None:
    """Decoded here element by element, as the layout says, without the delta."""
    base, expert = drawn(1000, 0, (torch.bfloat16, torch.bfloat16))
    delta = make(base, expert)[place].over(base[place])
    layout = delta.layout()
    tensors, kind = list(layout.tensors), layout.kind.removeprefix("masked ")
    mask = tensors.pop() if layout.kind != kind else None
    found = []
    for i in range(layout.start, layout.start + len(delta)):
        group, j = divmod(i, 64)
        if kind == "dense":
            value = tensors[0][i]
        elif kind == "low_rank":
            row, column = divmod(i, tensors[1].shape[1])
            value = sum(tensors[0][row, j] * tensors[1][j, column] for j in range(3)) * 0.3
        elif kind == "expert":
            value = tensors[0][i].float() - base[place][i - layout.start].float()
        else:
            code = int(tensors[0][i]) if kind == "int8" else int(tensors[0][32 * group + j % 32]) >> 4 * (j // 32) & 15
            value = torch.tensor(float(code - int(tensors[2][group]))) * tensors[1][group]
        found.append(float(value) if mask is None or int(mask[i // 32]) >> i % 32 & 1 else 0.0)
    assert same(torch.tensor(found), delta.dense())


def test_a_mask_over_a_masked_delta_lies_over_what_is_below() -> None:
    base, expert = drawn(200, 0, (torch.bfloat16, torch.bfloat16))
    some, others = torch.arange(200) % 2 == 0, torch.arange(200) % 3 == 0
    delta = masked(masked(ExpertDelta(base, expert), some), others)
    assert delta.layout().kind == "masked expert"
    assert same(delta.dense(), torch.where(some & others, expert.float() - base.float(), 0.0))


def test_what_is_kept_is_what_counts() -> None:
    base, expert = drawn(1000, 0, (torch.float32, torch.bfloat16))
    assert dense(base, expert).nbytes == 4000
    assert ExpertDelta(base, expert).nbytes == 2000


@every_dtype
@pytest.mark.parametrize("length", [1, 65, 4099, (1 << 18) + 7])
def test_kinds_have_one_inner_product(dtypes, length: int) -> None:
    """To the bit, whatever the kind."""
    gradient = torch.randn(length, generator=torch.Generator().manual_seed(9))
    base, expert = drawn(length, 0, dtypes)
    found = [
        Products([Part(Span("w", 0, length), base, [make(base, expert)])])(gradient)
        for kind, make in PLAIN.items()
        if kind in EXACT
    ]
    assert all(torch.equal(one, found[0]) for one in found)
    expected = (gradient.double() * dense(base, expert).dense().double()).sum()
    torch.testing.assert_close(found[0][0], expected, rtol=1e-4, atol=1e-4)


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
    kinds = {
        "Delta",
        "DenseDelta",
        "ExpertDelta",
        "ExpertDeltas",
        "QuantisedDelta",
        "LowRankDelta",
        "AdapterDeltas",
        "MaskedDelta",
        "Linear",
        "Ties",
        "DareTies",
    }
    outside = [path for path in root.rglob("*.py") if not any(path.is_relative_to(folder) for folder in inside)]
    assert len(outside) > 100
    assert {path: names for path in outside if (names := kinds & set(asked(path.read_text(encoding="utf-8"))))} == {}
    assert "type" not in set(asked((root / "merging" / "merger.py").read_text(encoding="utf-8")))
    assert set(asked("isinstance(x, Ties | None)")) == {"Ties"}
