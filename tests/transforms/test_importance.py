"""The transforms that weigh elements and columns, against the code of their authors and a plain form of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.models.checkpoint import from_tensors
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.chain import Stage, Step, streamed
from evomerge.transforms.importance import Pcb, Span, Widen
from tests.kit.published import T3, close, made, total
from tests.kit.vectors import vectors_of, whole

BASE = torch.tensor([[1.0, 2, 0, 3], [1, 0, 2, 4]])
TWO = [
    torch.tensor([[2.0, 2, 0.5, 3], [1, 0.2, 2, 4.4]]) - BASE,
    torch.tensor([[1.0, 2.5, 0, 1], [1.2, 0, 3, 4]]) - BASE,
]


def rows_of(transform: Pcb | Widen, vectors: TaskVectors) -> TaskVectors:
    return streamed(vectors, Stage(Step(transform), vectors))


def unit(x: Tensor) -> Tensor:
    low, high = x.min(dim=1, keepdim=True).values, x.max(dim=1, keepdim=True).values
    return (x - low) / (high - low)


def balanced(rows: Tensor, density: float, outliers: float) -> Tensor:
    """PCB of whole task vectors (K, n), by sorting."""
    k, n = rows.shape
    ranked = rows.abs().sort(dim=1).values
    size = rows.abs().clamp(ranked[:, int(n * outliers)][:, None], ranked[:, int(n * (1 - outliers) - 1)][:, None])
    signed = rows.sign() * unit(size)
    score = torch.exp(k * unit(size) ** 2) * torch.tanh(signed[:, None] * signed).sum(dim=1)
    least = score.sort(dim=1).values[:, int(n * (1 - density))][:, None]
    weight = unit(score.clamp(min=least))
    return rows.sign() * size * weight / weight.sum(dim=0).clamp(min=1e-12)


def test_pcb() -> None:
    found = made(Pcb(0.5), T3)
    close(found["e0"], [1.5, 0, 0, 0, -1.503041, 0])
    close(total(Pcb(0.5), T3), [2.5, -2, 0, 4, -2.501014, 0])


@pytest.mark.parametrize(("density", "outliers"), [(0.1, 0.01), (0.3, 0.1), (1.0, 0.0)])
def test_pcb_of_several_parameters_is_that_of_the_whole_model(density: float, outliers: float) -> None:
    """Also where an expert left one as it was; and where the least score is negative, as it is of all."""
    generator = torch.Generator().manual_seed(4)

    def drawn(*missing: str) -> dict[str, Tensor]:
        shapes = {"a": (7, 5), "b": (40,), "c": (3, 2, 4)}
        found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return {name: row * (name not in missing) for name, row in found.items()}

    vectors = vectors_of({"x": drawn(), "y": drawn("b"), "z": drawn()})
    found = whole(rows_of(Pcb(density, outliers), vectors))
    torch.testing.assert_close(found, balanced(whole(vectors), density, outliers))


def test_pcb_where_all_elements_are_of_one_size() -> None:
    """There is no way from the smallest to the largest: nothing becomes infinite."""
    assert Span(2.0, 2.0).of(torch.tensor([1.0, 2.0])).tolist() == [0, 1]
    assert made(Pcb(), [torch.ones(6), torch.ones(6)])["e0"].tolist() == [0.5] * 6


def test_widen() -> None:
    vectors = replace(vectors_of({"a": {"w": TWO[0]}, "b": {"w": TWO[1]}}), base=from_tensors({"w": BASE}, sha256=""))
    found = rows_of(Widen(), vectors)
    close(found.dense("a", "w"), (TWO[0] * torch.tensor([1, 0.5, 0.68877, 0.660411])).tolist())
    close(found.dense("b", "w"), (TWO[1] * torch.tensor([0.660411, 0.5, 0.718912, 1])).tolist())
    merged = sum((found.dense(row, "w") for row in "ab"), BASE)
    close(merged, [[2, 2.25, 0.344385, 1], [1.132082, 0.1, 2.718912, 4.264164]])


def test_widen_takes_embeddings_by_rows() -> None:
    turned = {row: {"embed_tokens.weight": delta.T} for row, delta in zip("ab", TWO, strict=True)}
    base = from_tensors({"embed_tokens.weight": BASE.T.contiguous()}, sha256="")
    found = rows_of(Widen(), replace(vectors_of(turned), base=base))
    close(
        found.dense("a", "embed_tokens.weight"), (TWO[0].T * torch.tensor([[1], [0.5], [0.68877], [0.660411]])).tolist()
    )


def test_widen_of_a_vector_goes_by_magnitude() -> None:
    found = made(Widen(), [torch.tensor([0.1, -0.3]), torch.tensor([0.2, 0.0])])
    even = torch.softmax(torch.tensor([0.1, 0.2]), dim=0)[0]
    close(found["e0"], [0.1 * even, -0.3])
    close(found["e1"], [0.2, 0])


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="pcb has density=2: it is a share"):
        Pcb(2)
    with pytest.raises(ConfigError, match="widen has above=0: write a number above 0, such as 1"):
        Widen(above=0)


def test_outliers_leave_elements_between_them() -> None:
    with pytest.raises(ConfigError, match=r"outliers=0.5, which leaves nothing between"):
        Pcb(outliers=0.5)
