"""Orders and ranks on disk: sorted once, found again, made again where damaged, and there as a whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from evomerge.common.errors import CheckpointError
from evomerge.models.checkpoint import from_tensors
from evomerge.task_vectors import mapped as files
from evomerge.task_vectors.mapped import mapped
from evomerge.task_vectors.orders import Order, order_of, row_ranks, stored_orders, stored_ranks
from evomerge.task_vectors.sorting import Sorter
from evomerge.task_vectors.spans import Span
from evomerge.task_vectors.store import TaskVectors, task_vectors
from evomerge.task_vectors.stores import AUTO, FLOAT32
from evomerge.transforms.chain import Step
from evomerge.transforms.store import transformed
from evomerge.transforms.ties import TrimElect
from tests.kit.vectors import vectors_of
from tests.processes.waiting import exit_code, forked

SPANS = [Span("w", 0, 600), Span("zero", 0, 8), Span("v", 0, 40), Span("w", 600, 1000)]


@pytest.fixture(autouse=True)
def nothing_is_small() -> Iterator[None]:
    with patch.object(files, "SMALL", 0):
        yield


def vectors(cache: Path | None, contents: bool = True) -> TaskVectors:
    generator = torch.Generator().manual_seed(0)
    rows = {
        row: {"w": torch.randn(10, 100, generator=generator), "zero": torch.zeros(8), "v": torch.ones(40)}
        for row in "ab"
    }
    return replace(vectors_of(rows), cache=cache, contents={row: [f"task vector {row}"] for row in "ab" if contents})


def places(found: list[Order | None]) -> list[list[int] | None]:
    return [None if order is None else order.places.tolist() for order in found]


def expected(row: str) -> list[list[int] | None]:
    deltas = [vectors(None).delta(row, span.parameter) for span in SPANS]
    parts = [d and order_of(d[s.start : s.stop]).places.tolist() for d, s in zip(deltas, SPANS, strict=True)]
    return [part or None for part in parts]


@pytest.fixture
def sorted_here() -> Iterator[list[int]]:
    """The lengths of all deltas that are sorted."""
    seen, order = [], Sorter.order

    def watched(self: Sorter, delta, out: np.ndarray) -> None:
        seen.append(len(delta))
        order(self, delta, out)

    with patch.object(Sorter, "order", watched):
        yield seen


def arrays(cache: Path) -> list[Path]:
    return sorted(cache.glob("[!.]*.array"))


def test_sorted_once_and_found_again(tmp_path: Path, sorted_here: list[int]) -> None:
    told = []
    first = places(stored_orders(vectors(tmp_path), "a", SPANS, lambda *steps: told.append(steps)))
    assert sorted(sorted_here) == [40, 400, 600]
    assert told[-1] == ("sorting a", 1040, 1040)
    assert arrays(tmp_path)[0].stat().st_size == 4 * 1040 + 64
    assert places(stored_orders(vectors(tmp_path), "a", SPANS)) == first == expected("a")
    assert len(sorted_here) == 3 + 3  # those of what is expected


def test_other_rows_spans_and_task_vectors_have_other_files(tmp_path: Path) -> None:
    mine = vectors(tmp_path)
    for row, spans in (("a", SPANS), ("b", SPANS), ("a", SPANS[:1]), ("a", SPANS[::-1])):
        stored_orders(mine, row, spans)
    stored_orders(replace(mine, contents={"a": ["another"]}), "a", SPANS)
    stored_ranks(mine, "a", SPANS[:1], [100])
    stored_ranks(mine, "a", SPANS[:1], [200])
    assert len(arrays(tmp_path)) == 7
    assert places(stored_orders(mine, "b", SPANS)) == expected("b")


@pytest.mark.parametrize("damage", ["a bit", "half", "nothing left", "longer", "its hash"])
def test_damaged_files_are_made_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    stored_orders(vectors(tmp_path), "a", SPANS)
    file = arrays(tmp_path)[0]
    content = bytearray(file.read_bytes())
    content[-1 if damage == "its hash" else 1000] ^= 1
    written = {"half": content[: len(content) // 2], "nothing left": b"", "longer": content + b"0" * 4}
    file.write_bytes(written.get(damage, content))
    assert places(stored_orders(vectors(tmp_path), "a", SPANS)) == expected("a")
    assert "damaged" in caplog.text
    caplog.clear()
    assert places(stored_orders(vectors(tmp_path), "a", SPANS)) == expected("a")
    assert not caplog.text


def killed(directory: Path) -> None:
    """Be killed when half of an array is written."""

    def half(array: np.ndarray) -> None:
        array[: len(array) // 2] = 1
        os.kill(os.getpid(), signal.SIGKILL)

    mapped(["about"], np.uint32, 1 << 21, half, directory)


def test_a_killed_process_leaves_no_file_that_counts(tmp_path: Path) -> None:
    with forked(killed, tmp_path) as process:
        assert exit_code(process) == -signal.SIGKILL
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name]
    assert not arrays(tmp_path)
    assert set(mapped(["about"], np.uint32, 1 << 21, lambda array: array.fill(7), tmp_path).tolist()) == {7}
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


def test_an_error_on_the_way_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        mapped(["about"], np.uint32, 1000, lambda array: array.fill(1 // 0), tmp_path)
    assert [file.suffix for file in tmp_path.iterdir()] == [".lock"]


def test_two_at_once_sort_once(tmp_path: Path, sorted_here: list[int]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(stored_orders, vectors(tmp_path), "a", SPANS) for _ in range(4)]
        results = [places(future.result()) for future in found]
    assert sorted(sorted_here) == [40, 400, 600]
    assert results == [expected("a")] * 4


@pytest.mark.parametrize("contents", [True, False])
def test_without_a_name_or_a_cache_no_file_is_left(tmp_path: Path, contents: bool) -> None:
    cache = None if contents else tmp_path
    assert places(stored_orders(vectors(cache, contents), "a", SPANS)) == expected("a")
    assert list(tmp_path.iterdir()) == []


def test_small_ones_stay_in_memory(tmp_path: Path) -> None:
    with patch.object(files, "SMALL", 1 << 20):
        assert places(stored_orders(vectors(tmp_path), "a", SPANS)) == expected("a")
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_cannot_change_the_file(tmp_path: Path) -> None:
    for _ in range(2):
        array = mapped(["about"], np.uint32, 1000, lambda array: array.fill(7), tmp_path)
        array[:] = 0
    assert mapped(["about"], np.uint32, 1000, lambda array: array.fill(1), tmp_path).tolist() == [7] * 1000


def test_ranks_of_rows_in_files(tmp_path: Path) -> None:
    mine, spans, widths = vectors(tmp_path), [*SPANS[:1], SPANS[1], *SPANS[3:]], [100, 8, 100]
    for _ in range(2):
        found = stored_ranks(mine, "a", spans, widths)
        assert found[1] is None
        whole = torch.cat([each for each in found if each is not None])
        delta = mine.delta("a", "w")
        assert delta is not None
        assert torch.equal(whole, row_ranks(delta, 100))
    assert [file.stat().st_size for file in arrays(tmp_path)] == [2 * 1000 + 64]


def test_kept_experts_share_an_order_with_their_task_vectors(tmp_path: Path) -> None:
    """It depends on the numbers, not on how they are kept; what a transform made of them has one of its own."""
    generator = torch.Generator().manual_seed(0)
    weights = [{"w": torch.randn(20, 30, generator=generator).bfloat16()} for _ in range(2)]
    base, expert = (from_tensors(tensors, sha256=str(i)) for i, tensors in enumerate(weights))
    made = [task_vectors(base, {"a": expert}, {"w": (20, 30)}, tmp_path, store=store) for store in (AUTO, FLOAT32)]
    found = [places(stored_orders(each, "a", [Span("w", 0, 600)])) for each in made]
    assert found[0] == found[1]
    assert len(arrays(tmp_path)) == 1
    trimmed = transformed(made[1], (Step(TrimElect(0.2)),), tmp_path)
    assert places(stored_orders(trimmed, "a", [Span("w", 0, 600)])) != found[0]
    assert len(arrays(tmp_path)) == 2


@pytest.mark.parametrize("error", [AttributeError(), OSError(errno.EOPNOTSUPP, "not supported")])
def test_file_systems_that_cannot_take_room_first(tmp_path: Path, error: Exception) -> None:
    with patch("os.posix_fallocate", side_effect=error):
        assert places(stored_orders(vectors(tmp_path), "a", SPANS)) == expected("a")


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        patch("os.posix_fallocate", side_effect=full),
        pytest.raises(CheckpointError, match=r"No space left .*model\.cache"),
    ):
        stored_orders(vectors(tmp_path), "a", SPANS)
    assert not arrays(tmp_path)
