"""Steps: loss and gradient of the candidate that is in the live model, on some inputs.

In: inputs by task, and how much each task's losses count. Out: per-item losses and predictions, and the gradient with
respect to the coefficients. Tasks are walked one after the other, each batch forward and backward before the next, so
one graph is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge.common.exits import contained
from evomerge.fitness.base import Outcome
from evomerge.problem import Problem
from evomerge.search.learning import Learning
from evomerge.search.memory import Halving

Gradients = dict[str, np.ndarray]
"""Gradients (G, K) by variable."""
_Results = dict[str, dict[str, np.ndarray]]
"""Per-item results (n,) by task and name."""


class Steps:
    """Goes forward and backward through the live model of a problem.

    Args:
        problem: what is searched.
        learning: the loss and its inputs.
    """

    def __init__(self, problem: Problem, learning: Learning) -> None:
        self._problem, self._learning = problem, learning
        self._guard = problem.merger.guard
        self._halving = Halving(learning.fitness)
        self._wanted = problem.space.moves("weight")

    def __call__(self, ids: Mapping[str, list[str]], scale: Mapping[str, float]) -> tuple[Outcome, Gradients]:
        """Return what comes of the model as it is, in smaller batches where memory does not suffice, if the loss of an
        item does not depend on the others.

        Args:
            ids: of the inputs, by task.
            scale: with which the loss of an input of each task is multiplied in the sum.

        Returns:
            The losses and predictions of the inputs, and the gradient of the sum.

        Raises:
            MemoryError: there is not enough memory, and batches must not be halved.
        """
        learning, whole = self._learning, None
        if learning.loss.joint:
            whole = (
                f"loss.marginal compares the inputs of a step with each other, so loss.inputs={learning.inputs} must "
                f"be in one batch, and there is not enough memory for that: lower it, or take another loss"
            )

        def walk() -> tuple[_Results, Gradients]:
            results = {
                task: {learning.loss.name: np.zeros(len(chosen)), "prediction": np.empty(len(chosen))}
                for task, chosen in ids.items()
            }
            return results, self._problem.merger.gradient(self._losses(ids, scale, results), self._wanted)

        with self._guard:
            results, gradients = contained(lambda: self._halving(ids, walk, whole))
        return Outcome(ids, results), gradients

    def _losses(
        self, ids: Mapping[str, Sequence[str]], scale: Mapping[str, float], results: _Results
    ) -> Iterator[Tensor]:
        """Yield each batch's part of the loss, and note the results of its items; the loss of an item with several
        rows, the tokens of an answer, is their mean, and its prediction that of the first.
        """
        learning = self._learning
        for task, chosen in ids.items():
            for answers in learning.fitness.logits(self._problem.live.model, learning.prepared, {task: chosen}):
                answer = answers[task]
                target = answer.labels
                if learning.loss.taught:
                    target = torch.stack([learning.teachers[task][chosen[i]] for i in answer.positions])
                losses = learning.loss(answer.logits, target.to(answer.logits.device))
                rows = torch.tensor(answer.positions)
                losses = losses / torch.bincount(rows)[rows].to(losses.device)
                np.add.at(results[task][learning.loss.name], answer.positions, losses.detach().cpu().numpy())
                predictions = answer.logits.argmax(-1).cpu().numpy()
                results[task]["prediction"][answer.positions[::-1]] = predictions[::-1]
                yield losses.sum() * scale[task]
            self._guard.check()  # or what a task leaves behind would be the next one's model
