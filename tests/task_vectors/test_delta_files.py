"""Files of deltas: where tensors begin in them, what they hold, and what a failed write leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from evomerge.common.errors import CheckpointError
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.dense import ALIGNMENT, DenseDelta
from evomerge.task_vectors.files import FILLER, AlignedFile, Computed, cached_rows
from evomerge.task_vectors.masked import masked
from evomerge.task_vectors.quantised import quantised

ODD = {"b": (3,), "a": (), "layer.weight": (5, 7), "z": (16, 4), "layer.bias": (1, 1, 2), "ω": (17,)}


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 70), max_size=6), name=st.text(max_size=30), absent=st.integers(0, 40))
def test_every_tensor_begins_at_a_multiple_of_64_bytes(
    tmp_path_factory, sizes: list[int], name: str, absent: int
) -> None:
    """Also where many of those that might have come are zero, and so are left out."""
    file = tmp_path_factory.mktemp("files") / "deltas.safetensors"
    tensors = drawn({f"{i} {name}": (size,) for i, size in enumerate(sizes)})
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with AlignedFile(file, shapes | {f"zero {i}": (3,) for i in range(absent)}) as written:
        for each, tensor in tensors.items():
            written.add(each, tensor)
        written.finish()
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    held = load_file(file)
    for key, tensor in tensors.items():
        assert (8 + length + header[key]["data_offsets"][0]) % ALIGNMENT == 0
        assert torch.equal(held[key], tensor)
        assert held[key].data_ptr() % ALIGNMENT == 0
    assert all(key.startswith(FILLER) for key in held.keys() - tensors.keys())
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def cached(cache: Path, compute: Callable[[], Mapping[str, Tensor]], about: object = "a row") -> dict[str, Delta]:
    """The deltas of one row."""

    def each() -> Computed:
        for name, tensor in compute().items():
            yield name, {"a": DenseDelta(tensor.reshape(-1))}

    return cached_rows({"a": about}, ODD | {"turned": (5, 6), "cut": (5, 3)}, each, cache)["a"]


def test_deltas_are_read_back_without_fillers(tmp_path: Path) -> None:
    tensors, calls = drawn(ODD), []

    def compute() -> dict[str, Tensor]:
        calls.append("computed")
        return tensors

    for _ in range(2):
        found = cached(tmp_path, compute)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name].dense(), tensor.flatten()) for name, tensor in tensors.items())
        assert all(found[name].dense().data_ptr() % ALIGNMENT == 0 for name in tensors)
    assert calls == ["computed"]
    assert {file.suffix for file in tmp_path.iterdir()} <= {".safetensors", ".lock", ".json"}


def test_every_kind_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    values = {name: tensor.flatten() for name, tensor in drawn(ODD | {"long": (1000,)}).items()}
    made: dict[str, Delta] = {}
    for name, make in zip(values, [DenseDelta, of_bits(8), of_bits(4), trimmed, narrow] * 2, strict=False):
        made[name] = make(values[name])
    below = {"a": {name: DenseDelta(held) for name, held in values.items()}}

    rows = [(name, {"a": delta}) for name, delta in made.items()]

    def once() -> dict[str, Delta]:
        shapes = ODD | {"long": (1000,)}
        return cached_rows({"a": "kinds"}, shapes, lambda: rows, tmp_path, below=lambda: below)["a"]

    for found in (once(), once()):
        assert found.keys() == made.keys()
        for name, delta in made.items():
            mine, theirs = found[name].layout(), delta.layout()
            assert (mine.kind, mine.start) == (theirs.kind, 0)
            assert all(map(torch.equal, mine.tensors, theirs.tensors))
            assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in mine.tensors[-1:])
            assert torch.equal(found[name].dense(), delta.dense())
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    again = once()
    assert all(torch.equal(again[name].dense(), delta.dense()) for name, delta in made.items())


def of_bits(bits: int) -> Callable[[Tensor], Delta]:
    return lambda values: quantised(values, bits)


def narrow(values: Tensor) -> Delta:
    return DenseDelta(values.bfloat16())


def trimmed(values: Tensor) -> Delta:
    return masked(DenseDelta(values), values > 0)


def test_tensors_in_any_layout(tmp_path: Path) -> None:
    matrix = drawn({"m": (6, 5)})["m"]
    found = cached(tmp_path, lambda: {"turned": matrix.T, "cut": matrix[1:, ::2]})
    assert torch.equal(found["turned"].dense(), matrix.T.flatten())
    assert torch.equal(found["cut"].dense(), matrix[1:, ::2].flatten())


def test_no_deltas_at_all(tmp_path: Path) -> None:
    assert cached(tmp_path, dict) == {}


def test_rows_are_written_side_by_side_and_only_those_that_are_missing(tmp_path: Path) -> None:
    """A row that another set of rows has as well is taken from there."""
    asked, one, two = [], drawn(ODD), {name: -tensor for name, tensor in drawn(ODD).items()}

    def compute() -> Computed:
        for name in ODD:
            asked.append(name)
            rows = {"one": one, "two": two} if name != "a" else {"one": one}
            yield name, {row: DenseDelta(held[name].flatten()) for row, held in rows.items()}

    for about in ({"one": 1, "two": 2}, {"one": 1, "two": 3}):
        found = cached_rows(about, ODD, compute, tmp_path)
        assert all(torch.equal(found["one"][name].dense(), one[name].flatten()) for name in ODD)
        assert found["two"].keys() == ODD.keys() - {"a"}
    assert asked == [*ODD, *ODD]
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"task vectors of a .*No space left.*another directory"):
        cached(tmp_path, lambda: drawn(ODD))
    assert {file.suffix for file in tmp_path.iterdir()} <= {".lock"}


def test_what_fails_on_the_way_leaves_nothing_behind(tmp_path: Path) -> None:
    def half() -> Computed:
        yield "b", {"a": DenseDelta(torch.ones(3))}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached_rows({"a": 0}, ODD, half, tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} <= {".lock"}
