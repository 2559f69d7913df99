"""Triton's kernel under its interpreter against the plain form, bit for bit: forms, dtypes, kinds, rows and ends."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from evomerge.merging import methods
from evomerge.merging.builder import PLAIN, Builder
from evomerge.merging.kernels import cpu, gpu
from evomerge.merging.sites import Site
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.masked import masked
from evomerge.task_vectors.quantised import quantised
from tests.kit.forms import FORMS, coefficients, drawn
from tests.kit.methods import plainly, site_of

SIZE = 64 * 5 + 7


@pytest.fixture(scope="module")
def interpreted() -> Iterator[None]:
    """Triton's interpreter in place of its compiler, which must be chosen before Triton is imported."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed: pip install 'evomerge[triton]'")
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton has been imported before with its compiler: set TRITON_INTERPRET=1, or run this file alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        import evomerge.merging.kernels.gpu_kernel  # noqa: F401

        yield


@pytest.fixture
def both(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What Triton and the plain form make of a site."""

    def build(site: Site, method: Any) -> tuple[torch.Tensor, torch.Tensor]:
        found = []
        for form in (gpu.Table.form, PLAIN):
            site.live.fill_(7)
            if form == PLAIN:
                plainly(monkeypatch)
            builder = Builder([site], method)
            assert builder.forms == {form}
            builder.build(coefficients(len(site.rows)))
            found.append(site.live.clone())
        return found[0], found[1]

    monkeypatch.setattr(cpu, "Table", gpu.Table)
    return build


@pytest.mark.parametrize("method", FORMS.values(), ids=FORMS)
def test_every_form_is_the_plain_one(method: Any, both: Any) -> None:
    fast, plain = both(drawn(3, torch.bfloat16, size=SIZE), method)
    assert torch.equal(fast, plain)
    assert len(fast.unique()) > 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["expert", "dense"])
def test_every_dtype(dtype: torch.dtype, kind: str, both: Any) -> None:
    fast, plain = both(drawn(3, dtype, kind, size=SIZE), methods.Ties(normalize=True))
    assert torch.equal(fast, plain)


@pytest.mark.parametrize("rows", [5, 17])
def test_any_number_of_rows(rows: int, both: Any) -> None:
    fast, plain = both(drawn(rows, torch.float32, size=SIZE), methods.Ties(normalize=True))
    assert torch.equal(fast, plain)


@pytest.mark.parametrize("method", [methods.Slerp(), methods.NuSlerp(), methods.NuSlerp(deltas=True)])
def test_between_two_models(method: Any, both: Any) -> None:
    fast, plain = both(drawn(method.takes, torch.bfloat16, size=SIZE), method)
    assert torch.equal(fast, plain)


def test_packed_kinds(both: Any) -> None:
    base, rows = torch.randn(SIZE) / 50, [torch.randn(SIZE) / 500 for _ in range(3)]
    mask = torch.rand(SIZE) > 0.3
    deltas: list[Delta] = [quantised(rows[0], 8), quantised(rows[1], 4), masked(quantised(rows[2], 4), mask)]
    fast, plain = both(site_of(base, deltas, width=SIZE), methods.DareTies(seed=3))
    assert torch.equal(fast, plain)


def test_whole_pieces_and_their_end_are_written_each_by_its_launch(both: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "STEPS", 2)
    site = drawn(2, torch.bfloat16, size=2 * 2 * gpu.BLOCK + 64)
    fast, plain = both(site, methods.Dare(seed=1))
    assert torch.equal(fast, plain)


def test_rounded_in_a_wider_model(both: Any) -> None:
    site = drawn(2, torch.bfloat16, size=SIZE, live=torch.float32, rounded=torch.bfloat16)
    fast, plain = both(site, methods.Linear())
    assert torch.equal(fast, plain)
    assert torch.equal(fast, fast.bfloat16().float())


def test_other_devices_take_the_plain_form_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    gpu._missing.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert gpu.available(torch.device("mps")) == gpu.available(torch.device("mps", 0)) is not None
    assert [record.getMessage() for record in caplog.records] == [
        "merges on the device mps take the plain form, which is slower: there are no kernels for it"
    ]
