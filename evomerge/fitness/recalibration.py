"""The running statistics of batch norm, taken anew of the candidate that is in the live model.

In: a fitness and some search items. Out: running means and variances in the live model, of one pass over these items:
each the mean over the batches (momentum None). The fitness runs the model; its results, and so all labels, are thrown
away. Everything but the layers of batch norm stays in eval mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evomerge.common.errors import ConfigError
from evomerge.fitness.base import Fitness


def norms_of(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the layers of batch norm that have running statistics, by name."""
    found = {name: part for name, part in model.named_modules() if isinstance(part, _BatchNorm)}
    return {name: part for name, part in found.items() if part.running_mean is not None}


class Recalibration:
    """Takes the statistics of a live model anew; calling it does so.

    Args:
        model: the live model.
        fitness: runs it.
        prepared: what the fitness prepared for the items.
        ids: the items, by task.
        rounded: the dtypes to which buffers are rounded, by name, where the model holds them in wider ones.
    """

    def __init__(
        self,
        model: nn.Module,
        fitness: Fitness,
        prepared: Any,
        ids: Mapping[str, Sequence[str]],
        rounded: Mapping[str, torch.dtype],
    ) -> None:
        self._model, self._fitness, self._prepared, self._ids = model, fitness, prepared, ids
        self._rounded = rounded

    @torch.no_grad()
    def __call__(self) -> None:
        """Take the statistics.

        Raises:
            ConfigError: the fitness has not run the model in training mode, so there are none.
        """
        norms = norms_of(self._model)
        before = {name: (part.momentum, _counted(part).clone()) for name, part in norms.items()}
        try:
            for part in norms.values():
                part.reset_running_stats()
                part.momentum = None
                part.training = True
            self._fitness(self._model, self._prepared, self._ids)
            untouched = [name for name, part in norms.items() if not _counted(part)]
        finally:
            for name, part in norms.items():
                part.training = False
                part.momentum = before[name][0]
                _counted(part).copy_(before[name][1])
        if untouched:
            raise ConfigError(
                f"model.buffers=recalibrate: the fitness did not run {untouched[0]} of the live model in training "
                f"mode, so it has no statistics: leave the mode of the model alone there, or write "
                f"model.buffers=average."
            )
        tensors = dict(self._model.named_buffers())
        for name, dtype in self._rounded.items():
            if name in tensors:
                tensors[name].copy_(tensors[name].to(dtype))


def _counted(part: _BatchNorm) -> Tensor:
    """The number of batches that a layer has seen, which is there where its statistics are."""
    return cast(Tensor, part.num_batches_tracked)
