"""The losses: published numbers, their gradients, and logits at the ends of what floats can say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from evomerge.common.errors import ConfigError
from evomerge.fitness.losses import CrossEntropy, Entropy, JensenShannon, Loss
from evomerge.merging.merger import Merger
from evomerge.merging.methods import WEIGHT, Linear
from evomerge.searchers.gradient import Gradient
from evomerge.space.coefficients import make_space
from evomerge.space.groups import make_groups
from evomerge.task_vectors.dense import flattened
from evomerge.task_vectors.store import TaskVectors
from evomerge.trials import Trial
from tests.kit.tiny import checkpoint

LOSSES: dict[str, Loss] = {
    "cross_entropy": CrossEntropy(),
    "entropy": Entropy(),
    "normalised": Entropy(normalised=True),
    "marginal": Entropy(normalised=True, marginal=1.0),
    "jensen_shannon": JensenShannon(),
}
NOTHING = torch.empty(0)
logits_of_three = st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=4)


def target(loss: Loss, logits: Tensor) -> Tensor:
    """Labels, or what a teacher says, for as many items of as many classes."""
    generator = torch.Generator().manual_seed(0)
    if loss.labelled:
        return torch.randint(logits.shape[1], (len(logits),), generator=generator)
    return torch.rand(logits.shape, generator=generator, dtype=logits.dtype).softmax(-1)


def test_numbers_of_the_entropy() -> None:
    """By hand: −Σ p log p, and its gradient."""
    logits = torch.tensor([[2.0, 0, 0], [0, 0, 0]], dtype=torch.float64, requires_grad=True)
    losses = Entropy()(logits, NOTHING)
    assert losses.tolist() == pytest.approx([0.665573, math.log(3)], abs=1e-6)
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-0.335278, 0.167639, 0.167639], abs=1e-6)
    assert logits.grad[1].tolist() == pytest.approx([0, 0, 0], abs=1e-12)  # it cannot leave chance level


def test_numbers_of_the_divergence() -> None:
    """By hand; it is symmetric, and no constant added to the logits matters."""
    p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.1, 0.6, 0.3]])
    assert JensenShannon()(p.log(), q).item() == pytest.approx(0.205038, abs=1e-6)
    assert JensenShannon()(q.log() + 5, p).item() == pytest.approx(0.205038, abs=1e-6)


def test_numbers_of_the_linear_toy_and_a_step_of_adam() -> None:
    """From (.3, .3) along the gradient of the entropy, through merger, pullback and searcher."""
    model = nn.Linear(2, 1, bias=False).double().requires_grad_(False)
    model.weight.copy_(torch.tensor([[0.2, -0.1]]))
    rows = {"a": torch.tensor([[1.0, 0.5]]), "b": torch.tensor([[-0.5, 1.0]])}
    deltas = {name: flattened({"weight": row}) for name, row in rows.items()}
    base, experts = checkpoint({"weight": model.weight.clone()}), {"a": checkpoint({}), "b": checkpoint({})}
    vectors = TaskVectors(base, experts, {"weight": (1, 2)}, deltas)
    merger = Merger(model, vectors, make_groups("model", vectors.parameters), Linear())
    space = make_space("model", vectors.parameters, ["a", "b"], [WEIGHT])
    searcher = Gradient(space, np.array([0.3, 0.3]), 0, lr=1e-3)
    batch = searcher.ask()
    merger.apply(space.decode(batch.points[0]))
    values: list[float] = []

    def entropies():
        z = model(torch.tensor([[1.0, 2.0]], dtype=torch.float64))
        assert z.item() == pytest.approx(1.05, abs=1e-6)
        loss = Entropy()(torch.cat([z, torch.zeros_like(z)], -1), NOTHING).mean()
        values.append(loss.item())
        yield loss

    gradient = space.pullback(merger.gradient(entropies()), batch.points[0])
    assert values == pytest.approx([0.572245], abs=1e-6)
    assert gradient.tolist() == pytest.approx([-0.403258, -0.302443], abs=1e-6)
    batch.trials[0] = Trial(0, 0, "ok", (-values[0],), gradient=(-gradient).tolist())
    searcher.tell(batch)
    assert searcher.ask().points[0].tolist() == pytest.approx([0.301, 0.301], abs=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_numbers(name: str) -> None:
    loss, generator = LOSSES[name], torch.Generator().manual_seed(1)
    logits = (3 * torch.randn((5, 4), generator=generator, dtype=torch.float64)).requires_grad_(True)
    torch.autograd.gradcheck(lambda z: loss(z, target(loss, z)), (logits,), check_undefined_grad=False)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_one_number_for_each_item_in_float32_or_better(name: str, dtype: torch.dtype) -> None:
    loss, logits = LOSSES[name], torch.randn((6, 3), generator=torch.Generator().manual_seed(2)).to(dtype)
    losses = loss(logits, target(loss, logits).float() if loss.taught else target(loss, logits))
    assert losses.shape == (6,)
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if not loss.joint:
        alone = torch.cat(
            [
                loss(
                    logits[i : i + 1],
                    target(loss, logits)[i : i + 1].float() if loss.taught else target(loss, logits)[i : i + 1],
                )
                for i in range(6)
            ]
        )
        torch.testing.assert_close(alone, losses)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "row", [[1e4, 0, 0], [-1e4, -1e4, 1e4], [1e30, 0, -1e30], [3e38, -3e38, 0], [0, 0, 0]], ids=str
)
def test_extreme_logits_give_finite_values_and_gradients(name: str, row: list[float]) -> None:
    loss = LOSSES[name]
    logits = torch.tensor([row, [1.0, 2, 3]], requires_grad=True)
    given = torch.tensor([0, 1]) if loss.labelled else torch.tensor([[0.0, 1, 0], [0.2, 0.3, 0.5]])
    losses = loss(logits, torch.tensor([int(np.argmax(row)), 1]) if loss.labelled else given)
    losses.sum().backward()
    assert logits.grad is not None
    assert losses.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_logits_that_are_no_numbers_are_seen(name: str) -> None:
    loss = LOSSES[name]
    logits = torch.tensor([[math.nan, 0, 0], [1.0, 2, 3]])
    assert loss(logits, target(loss, logits))[0].isnan()


@settings(max_examples=30, deadline=None)
@given(rows=logits_of_three, others=logits_of_three)
def test_the_divergence_is_between_0_and_log_2_and_0_for_equals(rows: list, others: list) -> None:
    n = min(len(rows), len(others))
    logits, said = (
        torch.tensor(rows[:n], dtype=torch.float64),
        torch.tensor(others[:n], dtype=torch.float64).softmax(-1),
    )
    losses = JensenShannon()(logits, said)
    assert bool((losses >= -1e-12).all())
    assert bool((losses <= math.log(2) + 1e-12).all())
    torch.testing.assert_close(JensenShannon()(logits, logits.softmax(-1)), torch.zeros(n, dtype=torch.float64))


def test_the_divergence_of_opposites_is_log_2() -> None:
    assert JensenShannon()(torch.tensor([[200.0, 0]]), torch.tensor([[0.0, 1]])).item() == pytest.approx(math.log(2))


@settings(max_examples=30, deadline=None)
@given(rows=logits_of_three, marginal=st.floats(0.1, 2))
def test_the_marginal_term(rows: list, marginal: float) -> None:
    logits = torch.tensor(rows, dtype=torch.float64)
    p = logits.softmax(-1)
    mean = p.mean(0)
    entropy = -(torch.xlogy(p, p)).sum(-1)
    expected = entropy + marginal * torch.xlogy(mean, mean).sum()
    torch.testing.assert_close(Entropy(marginal=marginal)(logits, NOTHING), expected)
    torch.testing.assert_close(Entropy(True, marginal)(logits, NOTHING), expected / math.log(3))


def test_what_the_marginal_term_is_for() -> None:
    """Certain of everything, but all the same: lowest entropy; the marginal term prefers all classes."""
    same, spread = torch.tensor([[9.0, 0, 0]] * 3), 9 * torch.eye(3)
    assert Entropy()(same, NOTHING).mean().item() == pytest.approx(Entropy()(spread, NOTHING).mean().item())
    informed = Entropy(marginal=1.0)
    assert informed(spread, NOTHING).mean().item() == pytest.approx(-math.log(3), abs=0.01)
    assert informed(same, NOTHING).mean().item() == pytest.approx(0, abs=1e-6)
    assert informed.joint
    assert not Entropy().joint


@pytest.mark.parametrize("marginal", [-0.1, math.inf, math.nan])
def test_a_marginal_that_is_none_is_refused(marginal: float) -> None:
    with pytest.raises(ConfigError, match=r"loss\.marginal="):
        Entropy(marginal=marginal)
