"""What fits on a worker: on one GPU, or over several, from the shapes of a model alone.

In: a model, which may be on the meta device; the bytes of base and task vectors by parameter; a `Node`. Out: for each
number of GPUs a worker may have, where its task vectors lie and what its fullest GPU holds, as a search there would
choose it. Nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from evomerge.common.errors import ConfigError
from evomerge.common.machine import ROOM
from evomerge.models.devices import shared_evenly
from evomerge.models.spreading import devices_of
from evomerge.task_vectors.places import AUTO, GIB, choose_for


@dataclass(frozen=True)
class Node:
    """One machine.

    Attributes:
        gpus: how many it has.
        memory: GiB of each.
        host: GiB of its own memory.
    """

    gpus: int
    memory: float
    host: float

    @classmethod
    def read(cls, text: str) -> Node:
        """Return the node that a text such as 8x80x1024 describes.

        Raises:
            ConfigError: it describes none.
        """
        try:
            gpus, memory, host = text.lower().split("x")
            found = cls(int(gpus), float(memory), float(host))
        except ValueError:
            found = cls(0, 0, 0)
        if not (found.gpus > 0 and found.memory > 0 and found.host > 0):
            raise ConfigError(
                f"--node={text} describes no machine: write its GPUs, the GiB of each, and the GiB of its own memory, "
                f"such as --node=8x80x1024."
            )
        return found


@dataclass(frozen=True)
class Fit:
    """What fits on a worker.

    Attributes:
        gpus: of the worker.
        workers: that a node has room for.
        place: where task vectors lie (`model.place=auto`); None where the model does not fit.
        said: the same as a sentence.
    """

    gpus: int
    workers: int
    place: str | None
    said: str


def what_fits(model: nn.Module, base: Mapping[str, int], vectors: Mapping[str, int], node: Node) -> list[Fit]:
    """Return what fits on workers of 1, 2, 4 ... GPUs of a node, each of which has its share of the host's memory.

    Args:
        model: any device; its dtype counts.
        base: parameter -> bytes of θ₀, of those that are merged.
        vectors: parameter -> bytes of all its task vectors.
        node: the machine.
    """
    found, gpus = [], 1
    while gpus <= node.gpus:
        free = {f"GPU {place}": int(node.memory * GIB) for place in range(gpus)}
        try:
            where = shared_evenly(model, {name: int(size * (1 - ROOM)) for name, size in free.items()})
            sizes = {name: parameter.nbytes for name, parameter in model.named_parameters()}
            host = int(node.host * GIB) * gpus // node.gpus
            placed = choose_for(AUTO, devices_of(where, model), sizes, base, vectors, free, host)
            found.append(Fit(gpus, node.gpus // gpus, placed.place, placed.said))
        except ConfigError as error:
            found.append(Fit(gpus, node.gpus // gpus, None, str(error)))
        gpus *= 2
    return found
