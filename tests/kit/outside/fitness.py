"""A fitness that is no classification: how near the features of a text are to those of another with the same label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from evomerge.fitness.base import Outcome
from evomerge.fitness.items import Item


class Nearness:
    metrics = ("nearness",)
    pure = True

    def __init__(self, power: float = 1.0) -> None:
        self._power = power

    def prepare(self, processor: Any, items: Mapping[str, Sequence[Item]]) -> Any:
        encoded = {}
        for task, chosen in items.items():
            for item in chosen:
                mate = next(other for other in chosen if other.label == item.label)
                encoded[task, item.id] = [processor(each.text, return_tensors="pt") for each in (item, mate)]
        return encoded

    @torch.inference_mode()
    def __call__(self, model: Any, prepared: Any, ids: Mapping[str, Sequence[str]]) -> Outcome:
        def score(task: str, item: str) -> float:
            one, other = (model(**each).last_hidden_state[0].mean(0) for each in prepared[task, item])
            return float(-(torch.dist(one, other) ** self._power))

        results = {task: {"nearness": np.array([score(task, i) for i in chosen])} for task, chosen in ids.items()}
        return Outcome({task: list(chosen) for task, chosen in ids.items()}, results)
