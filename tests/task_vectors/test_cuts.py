"""Cuts that are found without sorting keep the same elements as those of sorted deltas, in constant memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.task_vectors import cuts
from evomerge.task_vectors.cuts import find_cuts
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.orders import cuts_over, order_of
from tests.kit.vectors import anonymous_memory


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(0, 99), st.booleans(), st.data())
def test_they_keep_what_sorted_deltas_keep(sizes: list[int], seed: int, coarse: bool, data: st.DataObject) -> None:
    drawn = [torch.randn(size, generator=torch.Generator().manual_seed(seed + i)) for i, size in enumerate(sizes)]
    deltas = [DenseDelta(values.round() if coarse else values) for values in drawn]
    rank, start = data.draw(st.integers(-1, sum(sizes) + 1)), data.draw(st.integers(0, 60))
    order = [*range(len(deltas)), "none"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "CHUNK", data.draw(st.sampled_from([1, 7, 1000])))
        found = find_cuts(dict(enumerate(deltas)), rank, order)
    assert list(found) == order[:-1]
    for delta, cut, other in zip(deltas, found.values(), cuts_over([order_of(d) for d in deltas], rank), strict=True):
        assert torch.equal(cut.keeps(delta.values), other.keeps(delta.values))
        assert torch.equal(cut.keeps(delta.values[start:], start), cut.keeps(delta.values)[start:])


def test_the_threshold_takes_constant_memory(tmp_path: Path) -> None:
    """16 million elements of coarse magnitudes, 64 MiB: what a pass holds is a few chunks of 1 MiB."""
    size, file = 1 << 24, tmp_path / "delta"
    torch.randn(size, generator=torch.Generator().manual_seed(0)).bfloat16().float().numpy().tofile(file)
    delta = torch.from_numpy(np.memmap(file, np.float32, "c"))
    find_cuts({"w": DenseDelta(delta[: 1 << 21])}, 1 << 18, ["w"])  # what torch sets up once
    before, seen = anonymous_memory(), []
    given_bits = cuts._bits

    def watched(chunk: Tensor) -> Tensor:
        seen.append(anonymous_memory())
        return given_bits(chunk)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "_bits", watched)
        cut = find_cuts({"w": DenseDelta(delta)}, size // 5, ["w"])["w"]
    assert max(seen) - before < 16 << 20
    assert int(cut.keeps(delta).sum()) == size // 5
