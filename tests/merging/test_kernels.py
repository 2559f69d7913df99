"""Compiled kernels against the plain form, bit for bit: forms, dtypes, kinds, rows, ends, threads and forks."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.merging import methods
from evomerge.merging.builder import PLAIN, Builder
from evomerge.merging.kernels import compiled, cpu
from evomerge.merging.sites import Site
from evomerge.task_vectors.quantised import quantised
from tests.kit.forms import FORMS, SIZE, coefficients, drawn
from tests.kit.methods import plainly, site_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def both(site: Site, method: Any, monkeypatch, given: dict[str, np.ndarray] | None = None) -> tuple[Any, Any]:
    """What kernel and plain form make."""
    found = []
    for form in (cpu.Table.form, PLAIN):
        builder = Builder([site], method)
        assert builder.forms == {form}
        builder.build(given or coefficients(len(site.rows)))
        found.append(site.live.clone())
        site.live.zero_()
        plainly(monkeypatch)
    monkeypatch.undo()
    return tuple(found)


@pytest.mark.parametrize("method", FORMS.values(), ids=FORMS)
def test_every_form_is_the_plain_one(method: Any, monkeypatch) -> None:
    fast, plain = both(drawn(3, torch.bfloat16), method, monkeypatch)
    assert torch.equal(fast, plain)
    assert len(fast.unique()) > 100


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kind", ["expert", "dense"])
def test_every_dtype(dtype: torch.dtype, kind: str, monkeypatch) -> None:
    fast, plain = both(drawn(3, dtype, kind), methods.Ties(), monkeypatch)
    assert torch.equal(fast, plain)


@pytest.mark.parametrize("size", [1, 63, 64, SIZE - 1])
@pytest.mark.parametrize("rows", [1, 5, 17])
def test_any_number_of_rows_and_any_end(rows: int, size: int, monkeypatch) -> None:
    """More than 4 rows are added up in another order at an end, more than 8 in several loops, more than 16 in parts."""
    fast, plain = both(drawn(rows, torch.float32, size=size), methods.Linear(), monkeypatch)
    assert torch.equal(fast, plain)


def test_many_rows_elect_as_few_do(monkeypatch) -> None:
    fast, plain = both(drawn(17, torch.bfloat16), methods.Ties(normalize=True), monkeypatch)
    assert torch.equal(fast, plain)


def test_rounded_in_a_wider_model(monkeypatch) -> None:
    site = drawn(3, torch.bfloat16, live=torch.float32, rounded=torch.bfloat16)
    fast, plain = both(site, methods.Linear(), monkeypatch)
    assert torch.equal(fast, plain)
    assert torch.equal(fast, fast.bfloat16().float())


@pytest.mark.parametrize("deltas", [False, True])
def test_between_two_experts(deltas: bool, monkeypatch) -> None:
    fast, plain = both(drawn(2, torch.bfloat16), methods.NuSlerp(deltas), monkeypatch)
    assert torch.equal(fast, plain)


def test_from_the_base_to_an_expert(monkeypatch) -> None:
    fast, plain = both(drawn(1, torch.bfloat16), methods.Slerp(), monkeypatch)
    assert torch.equal(fast, plain)


def test_all_of_many_pieces_are_written_whatever_the_threads(monkeypatch) -> None:
    site = drawn(3, torch.bfloat16, size=5 * cpu.PIECE + 64)
    monkeypatch.setattr(cpu, "SHARE", cpu.PIECE)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            site.live.fill_(7)
            Builder([site], methods.Linear()).build(coefficients(3))
            found.append(site.live.clone())
    finally:
        torch.set_num_threads(before)
    assert not torch.any(found[0] == 7)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", ["ties", "breadcrumbs", "dare", "della summed"])
def test_tiles_end_where_a_number_of_theirs_changes(name: str, monkeypatch) -> None:
    """Cuts have places between equal elements, and the numbers of places have another upper half after 2^16."""
    site = drawn(3, torch.bfloat16, size=cpu.PIECE + 64 * 33, start=1000 * 64)
    fast, plain = both(site, FORMS[name], monkeypatch)
    assert torch.equal(fast, plain)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["linear", "ties", "dare"])
def test_codes_are_decoded_as_the_plain_form_does(name: str, bits: int, monkeypatch) -> None:
    whole = drawn(3, torch.float32, "dense", size=SIZE - 7)
    packed = [quantised(delta.dense(), bits) for delta in whole.deltas]
    fast, plain = both(site_of(whole.base, packed), FORMS[name], monkeypatch)
    assert torch.equal(fast, plain)


@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize("bits", [None, 4])
def test_processors_with_fewer_lanes(bits: int | None, lanes: int, monkeypatch) -> None:
    site = drawn(3, torch.bfloat16, "dense", size=SIZE - 7)
    if bits:
        site = site_of(site.base, [quantised(delta.dense(), bits) for delta in site.deltas], live=torch.bfloat16)
    monkeypatch.setattr(compiled, "lanes", lambda: lanes)
    monkeypatch.setattr(cpu, "kernel", compiled.kernel.__wrapped__)
    fast, plain = both(site, methods.Linear(), monkeypatch)
    assert torch.equal(fast, plain)


def test_merges_in_several_threads_and_in_a_fork_do_not_hang(monkeypatch) -> None:
    monkeypatch.setattr(cpu, "SHARE", cpu.PIECE)
    sites = [drawn(3, torch.bfloat16, size=3 * cpu.PIECE) for _ in range(3)]
    builders = [Builder([site], methods.Linear()) for site in sites]
    threads = [threading.Thread(target=builder.build, args=(coefficients(3),)) for builder in builders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.equal(site.live, sites[0].live) for site in sites)
    child = os.fork()
    if child == 0:
        builders[0].build(coefficients(3))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_an_error_of_a_thread_is_raised(monkeypatch) -> None:
    monkeypatch.setattr(cpu, "SHARE", 1)

    def fail(first: int, last: int) -> int:
        raise ValueError(first)

    with pytest.raises(ValueError, match=r"\d"):
        cpu.share(fail, 8, 8)


def test_torch_sees_that_parameters_changed() -> None:
    site = drawn(3, torch.float32)
    before = site.live._version
    Builder([site], methods.Linear()).build(coefficients(3))
    assert site.live._version > before


def test_a_dtype_without_a_kernel_takes_the_plain_form() -> None:
    site = drawn(3, torch.float64)
    builder = Builder([site], methods.Linear())
    assert builder.forms == {PLAIN}
    builder.build(coefficients(3))
    assert torch.isfinite(site.live).all()
