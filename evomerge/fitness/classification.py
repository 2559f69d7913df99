"""Classification of texts or images with heads outside the merge: is the class right, and how probable is the label.

In: texts or images with labels by task, and a head for each task. Out: the metrics `accuracy` (0 or 1) and
`log_probability` (natural logarithm of the label's softmax probability; smooth, so it ranks candidates better than
accuracy on few items); both NaN where the model's logits are. Items are encoded once per split (`encoding.py`); a set
of ids is batched once, sorted by length, over all tasks that run the same module, and reused for all candidates that
see the same ids.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evomerge.common.errors import ConfigError
from evomerge.fitness.base import Outcome
from evomerge.fitness.capabilities import Answers
from evomerge.fitness.encoding import ROOM, Encoder, check_kind, make_encoder
from evomerge.fitness.heads import Head, OwnHead
from evomerge.fitness.items import Item


@dataclass(frozen=True)
class _Row:
    """An encoded item: its task, its position among the ids of that task, its label and its encoding."""

    task: str
    position: int
    label: int
    encoding: Any


@dataclass(frozen=True)
class _Batch:
    """Inputs for one forward pass; by task its rows, their positions among the ids, and their labels."""

    head: str
    inputs: dict[str, Tensor]
    tasks: dict[str, tuple[Tensor, list[int], Tensor]]


@dataclass
class PreparedItems:
    """The labels and encodings of a split by task and id, and the batches of the ids that were asked for last."""

    encoder: Encoder
    rows: dict[str, dict[str, tuple[int, Any]]]
    key: Any = None
    batches: list[_Batch] = field(default_factory=list)


class Classification:
    """Fitness by class labels.

    Args:
        heads: the head of each task; None where they are given later, by `with_heads`.
        batch_size: items in a forward pass.
        max_length: texts are cut to so many tokens; images are as large as the base's processor makes them.

    Raises:
        ConfigError: sizes below 1.
    """

    metrics = ("accuracy", "log_probability")
    pure = True
    same_classes = True

    def __init__(self, heads: Mapping[str, Head] | None = None, batch_size: int = 32, max_length: int = 48) -> None:
        if batch_size < 1 or max_length < 1:
            raise ConfigError(
                f"fitness.batch_size={batch_size} and fitness.max_length={max_length} must both be at least 1."
            )
        self._heads = dict(heads or {})
        self.batch_size = batch_size
        self._max_length = max_length

    def with_heads(self, heads: Mapping[str, Head]) -> Classification:
        """Return a fitness of the same settings that scores with these heads, by task."""
        return Classification(heads, self.batch_size, self._max_length)

    def prepare(self, processor: Any, items: Mapping[str, Sequence[Item]], labelled: bool = True) -> PreparedItems:
        """Encode the items of all tasks, once; texts are cut to what model and setting allow.

        Args:
            processor: of the model: a tokenizer or an image processor.
            items: by task.
            labelled: refuse items without a label.

        Raises:
            ConfigError: a task has no items, or one without a label or with a label that its head does not have, or
                texts where the model takes images, or images where it takes texts.
        """
        check_kind(processor, items)
        encoder = make_encoder(processor, self._max_length)
        rows: dict[str, dict[str, tuple[int, Any]]] = {}
        for task, chosen in items.items():
            if not chosen or (labelled and any(item.label < 0 for item in chosen)):
                what = "an item without a label" if chosen else "no items"
                raise ConfigError(f"The task {task} has {what}: classification needs items with the index of a class.")
            self._check_label(task, max(item.label for item in chosen), self._heads[task].classes)
            encoded = encoder.encode(chosen)
            rows[task] = {item.id: (item.label, one) for item, one in zip(chosen, encoded, strict=True)}
        return PreparedItems(encoder, rows)

    @torch.inference_mode()
    def __call__(self, model: nn.Module, prepared: PreparedItems, ids: Mapping[str, Sequence[str]]) -> Outcome:
        """Score the model: one forward pass for each batch, and every head on its rows."""
        results = {task: {metric: np.empty(len(chosen)) for metric in self.metrics} for task, chosen in ids.items()}
        started, forward = time.perf_counter(), 0.0
        for answers in self.logits(model, prepared, ids):
            answers = {task: replace(answer, logits=answer.logits.cpu()) for task, answer in answers.items()}
            forward += time.perf_counter() - started
            for task, answer in answers.items():
                log_probability = torch.log_softmax(answer.logits, dim=-1).gather(1, answer.labels[:, None])[:, 0]
                right = answer.logits.argmax(-1) == answer.labels
                results[task]["accuracy"][answer.positions] = (
                    right.double().masked_fill(log_probability.isnan(), math.nan).numpy()
                )
                results[task]["log_probability"][answer.positions] = log_probability.numpy()
            started = time.perf_counter()
        return Outcome({task: list(chosen) for task, chosen in ids.items()}, results, forward)

    @torch.inference_mode()
    def probabilities(
        self, model: nn.Module, prepared: PreparedItems, ids: Mapping[str, Sequence[str]]
    ) -> dict[str, np.ndarray]:
        """Return the probabilities of the classes, float64 (n, C), by task; one forward pass for each batch."""
        found: dict[str, dict[int, np.ndarray]] = {task: {} for task in ids}
        for answers in self.logits(model, prepared, ids):
            for task, answer in answers.items():
                rows = torch.softmax(answer.logits.cpu().double(), dim=-1).numpy()
                found[task] |= dict(zip(answer.positions, rows, strict=True))
        return {task: np.stack([found[task][i] for i in range(len(chosen))]) for task, chosen in ids.items()}

    def of_probabilities(
        self, said: Mapping[str, np.ndarray], prepared: PreparedItems, ids: Mapping[str, Sequence[str]]
    ) -> Outcome:
        """Return the results of probabilities (n, C) by task, whoever gave them."""
        results = {}
        for task, rows in said.items():
            labels = np.array([prepared.rows[task][item][0] for item in ids[task]])
            mine = rows[np.arange(len(labels)), labels]
            right = np.where(np.isnan(mine), math.nan, rows.argmax(1) == labels)
            results[task] = {"accuracy": right, "log_probability": np.log(np.maximum(mine, np.finfo(float).tiny))}
        return Outcome({task: list(chosen) for task, chosen in ids.items()}, results)

    def logits(
        self, model: nn.Module, prepared: PreparedItems, ids: Mapping[str, Sequence[str]]
    ) -> Iterator[dict[str, Answers]]:
        """Yield the class logits of each batch by task, with a graph where gradients are wanted; one forward pass each.

        Raises:
            ConfigError: a label is no class of its head.
        """
        for batch in self._batches(prepared, ids, next(model.parameters())):
            output = self._heads[batch.head].module(model)(**batch.inputs)
            answers = {}
            for task, (rows, positions, labels) in batch.tasks.items():
                logits = self._heads[task].logits(output, batch.inputs.get("attention_mask"), rows, model)
                self._check_label(task, int(labels.max()), logits.shape[1])
                answers[task] = Answers(positions, logits, labels)
            yield answers

    def _check_label(self, task: str, label: int, classes: int | None) -> None:
        if classes is not None and label >= classes:
            raise ConfigError(
                f"The task {task} has the label {label}, but its head has {classes} classes, numbered from 0: give it "
                f"the head that belongs to these items."
            )

    def _batches(self, prepared: PreparedItems, ids: Mapping[str, Sequence[str]], like: Tensor) -> Iterator[_Batch]:
        """Yield batches with the device and the floating dtype of a parameter; they are kept while there is room."""
        key = (
            self.batch_size,
            str(like.device),
            like.dtype,
            tuple((task, tuple(chosen)) for task, chosen in ids.items()),
        )
        if prepared.key == key:
            yield from prepared.batches
            return
        prepared.key, prepared.batches = None, []
        by_head: dict[str, list[_Row]] = {}
        shared = next((task for task in ids if not isinstance(self._heads[task], OwnHead)), "")
        for task, chosen in ids.items():
            rows = [_Row(task, i, *prepared.rows[task][item]) for i, item in enumerate(chosen)]
            by_head.setdefault(task if isinstance(self._heads[task], OwnHead) else shared, []).extend(rows)
        kept, room = [], ROOM
        for head, unsorted in by_head.items():
            rows = sorted(unsorted, key=lambda row: prepared.encoder.length(row.encoding))
            for start in range(0, len(rows), self.batch_size):
                batch = _batch(head, rows[start : start + self.batch_size], prepared.encoder, like)
                room -= sum(values.nbytes for values in batch.inputs.values())
                kept = [*kept, batch] if room >= 0 else []
                yield batch
        if room >= 0:
            prepared.batches = kept
            prepared.key = key  # last: whoever is interrupted before leaves nothing that looks whole


@torch.inference_mode(False)  # what is kept must also serve where gradients are taken
def _batch(head: str, rows: Sequence[_Row], encoder: Encoder, like: Tensor) -> _Batch:
    inputs = {
        name: values.to(like.device, dtype=like.dtype if values.is_floating_point() else None)
        for name, values in encoder.collate([row.encoding for row in rows]).items()
    }
    tasks = {}
    for task in dict.fromkeys(row.task for row in rows):
        mine = [(i, row) for i, row in enumerate(rows) if row.task == task]
        tasks[task] = (
            torch.tensor([i for i, _ in mine], device=like.device),
            [row.position for _, row in mine],
            torch.tensor([row.label for _, row in mine]),
        )
    return _Batch(head, inputs, tasks)
