"""Ways to take the gradient of merge coefficients that `bench_gradient.py` holds evomerge's against, and a count of the
bytes that a way holds.

In: the batches of a step as `Work`. Out: gradients, in `parameter.grad` or in `Textbook.weights.grad`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evomerge.problem import Problem


@dataclass(frozen=True)
class Work:
    """One batch of a step: its inputs, and its part of the loss as a function of the model's output."""

    inputs: Mapping[str, Tensor]
    loss: Callable[[Any], Tensor]


class Plain:
    """Forward and backward, batch by batch, with ordinary gradients that are dropped after each batch.

    Args:
        model: the live model.
        learned: its parameters that have a coefficient to learn.

    Attributes:
        learned: the same.
    """

    def __init__(self, model: nn.Module, learned: Mapping[str, nn.Parameter]) -> None:
        self._model, self.learned = model, learned

    def __call__(
        self, work: Sequence[Work], seen: Callable[[], object] = int, done: Callable[[], object] = int
    ) -> None:
        """Go over the batches; call `seen` after each forward and `done` after each backward pass."""
        for one in work:
            loss = one.loss(self._model(**one.inputs))
            seen()
            loss.backward()
            done()
            for parameter in self.learned.values():
                parameter.grad = None

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """Let the parameters have gradients."""
        for parameter in self.learned.values():
            parameter.requires_grad_(True)
        yield
        for parameter in self.learned.values():
            parameter.requires_grad_(False)


Merge = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(base, stack (K, ...), weights (K,)) -> merged`."""


def broadcast(base: Tensor, stack: Tensor, weights: Tensor) -> Tensor:
    """Multiply all task vectors by their weights, and sum them up."""
    return base + (weights.view(-1, *[1] * base.dim()) * stack).sum(0)


def one_by_one(base: Tensor, stack: Tensor, weights: Tensor) -> Tensor:
    """Add expert by expert."""
    for weight, delta in zip(weights, stack, strict=True):
        base = base + weight * delta
    return base


def tensordot(base: Tensor, stack: Tensor, weights: Tensor) -> Tensor:
    """Sum without products in memory."""
    return base + torch.tensordot(weights, stack, dims=1)


class Textbook:
    """Autograd through the merge θ = θ₀ + Σ_k λ_k stack_k, and Adam on λ.

    Args:
        problem: base, experts and coefficient space.
        rows: each parameter that has a coefficient to learn, and its group.

    Attributes:
        weights: λ, (G, K).
        operands: what the merge reads: base and stack, (K, ...), of each parameter.
    """

    def __init__(self, problem: Problem, rows: Mapping[str, int]) -> None:
        self._model, self._rows, vectors = problem.live.model, rows, problem.vectors
        self.operands: dict[str, tuple[Tensor, Tensor]] = {}
        for name in rows:
            base = vectors.base.tensor(name).float()
            deltas = [vectors.dense(row, name) for row in vectors.rows]
            stack = torch.stack([torch.zeros_like(base) if delta is None else delta for delta in deltas])
            self.operands[name] = (base, stack)
        self.weights = nn.Parameter(torch.zeros(len(problem.space.groups), len(vectors.rows)))
        self._adam = torch.optim.Adam([self.weights], lr=0.02)

    def __call__(self, work: Sequence[Work], merge: Merge = broadcast, at_once: bool = False) -> None:
        """Take a step.

        Args:
            work: the batches.
            merge: of one parameter.
            at_once: one backward pass of the sum of all losses, instead of one for each batch.
        """
        self._adam.zero_grad()
        groups = self.weights.unbind()
        theta = {name: merge(base, stack, groups[self._rows[name]]) for name, (base, stack) in self.operands.items()}
        if at_once:
            torch.stack([self._loss(theta, one) for one in work]).sum().backward()
        else:
            for i, one in enumerate(work):
                self._loss(theta, one).backward(retain_graph=i + 1 < len(work))
        self._adam.step()

    def _loss(self, theta: dict[str, Tensor], one: Work) -> Tensor:
        return one.loss(functional_call(self._model, theta, (), dict(one.inputs)))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operators make in this context, as long as they live.

    Attributes:
        now: of those that live now.
        peak: the most there have been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and count those of its results that are no views of what it was given."""
        given = {id(each.untyped_storage()) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if not isinstance(each, Tensor):
                continue
            storage = each.untyped_storage()
            if (key := id(storage)) not in given and key not in self._held:
                size = storage.nbytes()
                self._held[key] = weakref.ref(storage, lambda _, key=key, size=size: self._freed(key, size))
                self.now += size
                self.peak = max(self.peak, self.now)
        return result

    def _freed(self, key: int, size: int) -> None:
        del self._held[key]
        self.now -= size
