"""Compiled functions: what lies on disk, what is damaged there, and floats of 16 bits to the last pattern."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from evomerge.merging.kernels import compiled
from evomerge.merging.kernels.bits import BYTES, WORDS, rounded, widened
from evomerge.merging.kernels.form import Form
from evomerge.merging.kernels.lanes import FLOAT, Code, Variable
from evomerge.merging.kernels.table import variant_of
from tests.kit.forms import drawn

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def addition(number: int) -> str:
    """The text of a function that adds a number."""
    code = Code("add", 1)
    return code.returned(code.arguments[0] + number)


@pytest.fixture
def compilations(tmp_path: Path, monkeypatch) -> list[str]:
    """What is compiled from now on, into an empty directory."""
    found: list[str] = []
    compile_ = compiled._compile
    monkeypatch.setattr(compiled, "_directory", lambda: tmp_path)
    monkeypatch.setattr(compiled, "_compile", lambda text, what: found.append(text) or compile_(text, what))
    return found


def test_what_was_compiled_is_kept(compilations: list[str]) -> None:
    for _ in range(2):
        assert compiled.function(addition(3), "add", 1, "a test")(4) == 7
        assert compiled.function(addition(5), "add", 1, "a test")(-4) == 1
    assert compilations == [addition(3), addition(5)]


@pytest.mark.parametrize(
    "damage", [lambda held: held[:-1], lambda held: held[:40] + b"?" + held[41:], lambda held: b""]
)
def test_a_damaged_file_is_compiled_again(damage, compilations: list[str], tmp_path: Path) -> None:
    compiled.function(addition(3), "add", 1, "a test")
    (file,) = tmp_path.glob("*.kernel")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert compiled.function(addition(3), "add", 1, "a test")(4) == 7
    assert len(compilations) == 2
    assert file.read_bytes() == whole


def test_another_processor_finds_nothing(compilations: list[str], monkeypatch) -> None:
    compiled.function(addition(3), "add", 1, "a test")
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_name", lambda: "x86-64")
    assert compiled.function(addition(3), "add", 1, "a test")(4) == 7
    assert len(compilations) == 2


def test_who_hangs_is_not_waited_for_long(compilations: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(compiled, "PATIENCE", 0.1)
    with compiled.FileLock(tmp_path / "lock"):
        assert compiled.function(addition(3), "add", 1, "a test")(4) == 7


def test_merges_need_no_numba(compilations: list[str], monkeypatch) -> None:
    """Its import alone takes as long as ten merges."""
    monkeypatch.setitem(sys.modules, "numba", None)
    variant = variant_of(Form(), drawn(3, torch.bfloat16))
    assert variant
    compiled.kernel.__wrapped__(variant)
    assert len(compilations) == 1


def converted(dtype: str, values: torch.Tensor, out: torch.Tensor, to: str) -> torch.Tensor:
    """Values in another dtype, some lanes at a time."""
    code, lanes = Code("convert", 3), 16
    source, size, target = code.arguments
    element = Variable(code.number(0))
    with code.loop(element, size) as i:
        number = widened(code.load(WORDS[dtype], source + i * BYTES[dtype], lanes), dtype)
        code.store(rounded(number, to), target + i * BYTES[to])
        element.set(i + lanes)
    function = compiled.function(code.returned(element.get()), "convert", 3, "a test")
    assert function(values.data_ptr(), len(values), out.data_ptr()) == len(values)
    return out


@pytest.mark.parametrize("dtype", HALVES)
def test_floats_of_16_bits_are_read_and_written_as_torch_does(dtype: str) -> None:
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    short = patterns.view(HALVES[dtype])
    wide = short.float()
    assert torch.equal(converted(dtype, short, torch.empty(1 << 16), "float32").nan_to_num(7), wide.nan_to_num(7))
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 31), 1 << 31, (1 << 16,), generator=generator, dtype=torch.int64).to(torch.int32)
    halfway = wide.view(torch.int32) + (1 << 15 if dtype == "bfloat16" else 1 << 12)
    for numbers in (wide, bits.view(torch.float32), halfway.view(torch.float32)):
        found = converted("float32", numbers, torch.empty(1 << 16, dtype=HALVES[dtype]), dtype)
        expected = numbers.to(HALVES[dtype])
        assert torch.equal(found.isnan(), expected.isnan())
        some = ~expected.isnan()
        assert torch.equal(found.view(torch.int16)[some], expected.view(torch.int16)[some])


def test_a_value_with_one_lane_joins_one_with_many() -> None:
    code = Code("both", 2)
    one, out = code.arguments
    code.store(code.load(FLOAT, one, 4) * 2.0 + code.load(FLOAT, one), out)
    function = compiled.function(code.returned(one), "both", 2, "a test")
    values, found = torch.tensor([1.0, 2, 3, 4]), torch.empty(4)
    function(values.data_ptr(), found.data_ptr())
    assert found.tolist() == [3, 5, 7, 9]
