"""Files of deltas: where tensors begin in them, what they hold, and what a failed write leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from evomerge.common.errors import CheckpointError
from evomerge.task_vectors.dense import ALIGNMENT, FILLER, cached, save_aligned

ODD = {"b": (3,), "a": (), "layer.weight": (5, 7), "z": (16, 4), "layer.bias": (1, 1, 2), "ω": (17,)}


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 70), max_size=6), name=st.text(max_size=30), note=st.text(max_size=80))
def test_every_tensor_begins_at_a_multiple_of_64_bytes(
    tmp_path_factory, sizes: list[int], name: str, note: str
) -> None:
    file = tmp_path_factory.mktemp("files") / "deltas.safetensors"
    tensors = drawn({f"{i} {name}": (size,) for i, size in enumerate(sizes)})
    save_aligned(tensors, file, {"note": note})
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    held = load_file(file)
    for key, tensor in tensors.items():
        assert (8 + length + header[key]["data_offsets"][0]) % ALIGNMENT == 0
        assert torch.equal(held[key], tensor)
        assert held[key].data_ptr() % ALIGNMENT == 0
    assert header["__metadata__"] == {"note": note}
    assert all(key.startswith(FILLER) for key in held.keys() - tensors.keys())


def test_deltas_are_read_back_without_fillers(tmp_path: Path) -> None:
    tensors, calls = drawn(ODD), []

    def compute() -> dict[str, torch.Tensor]:
        calls.append("computed")
        return tensors

    for _ in range(2):
        found = cached(["what they depend on"], compute, "a", tmp_path)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name].dense().view(tensor.shape), tensor) for name, tensor in tensors.items())
        assert all(found[name].dense().data_ptr() % ALIGNMENT == 0 for name in tensors)
    assert calls == ["computed"]
    assert {file.suffix for file in tmp_path.iterdir()} <= {".safetensors", ".lock", ".json"}


def test_tensors_in_any_layout(tmp_path: Path) -> None:
    matrix = drawn({"m": (6, 5)})["m"]
    found = cached([], lambda: {"turned": matrix.T, "cut": matrix[1:, ::2]}, "a", tmp_path)
    assert torch.equal(found["turned"].dense().view(5, 6), matrix.T)
    assert torch.equal(found["cut"].dense().view(5, 3), matrix[1:, ::2])


def test_no_deltas_at_all(tmp_path: Path) -> None:
    assert cached([], dict, "a", tmp_path) == {}


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"task vector of expert a .*No space left.*another directory"):
        cached([], lambda: drawn(ODD), "a", tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} <= {".lock"}
