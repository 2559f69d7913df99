"""How a machine is shared out among the members of a sweep: each slot has its own GPUs, its own cores, its threads.

In: the devices and the cores that this process may use, and what a person wants of them. Out: a `Slot` for each member
that runs at a time. The number of slots does not depend on the number of members: threads are part of the fingerprint
of a log, and a sweep that goes on with fewer members must have the same.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from evomerge.common.arguments import is_kind
from evomerge.common.errors import ConfigError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Variables by which the libraries below a search learn how many threads they may start."""
CORES = 4
"""Cores of a slot on a machine without GPUs, where nobody says how many threads a member shall have."""
AUTO = "auto"


@dataclass(frozen=True)
class Machine:
    """What this process may use.

    Attributes:
        devices: GPUs, as CUDA_VISIBLE_DEVICES names them: numbers, or identifiers of cards or of parts of them.
        cores: numbers of cores, as the system has them.
        threads: what OMP_NUM_THREADS says, if it says a number.
    """

    devices: tuple[str, ...]
    cores: tuple[int, ...]
    threads: int | None = None


@dataclass(frozen=True)
class Slot:
    """A share of the machine.

    Attributes:
        number: counted from 1.
        devices: its GPUs; a member sees no others.
        cores: those that its processes run on.
        threads: that a member computes with.
    """

    number: int
    devices: tuple[str, ...]
    cores: tuple[int, ...]
    threads: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables that pin a member to its GPUs and its threads."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.devices), **dict.fromkeys(THREADS, str(self.threads))}

    def __str__(self) -> str:
        first, last = self.cores[0], self.cores[-1]
        cores = f"core {first}" if first == last else f"cores {first}-{last}"
        gpus = f"GPU {','.join(self.devices)}, " * bool(self.devices)
        return f"slot {self.number} ({gpus}{cores}, {self.threads} thread{'s' * (self.threads > 1)})"


def this_machine() -> Machine:
    """Return what this process may use; no GPU is touched."""
    import torch  # takes seconds, which no other command need wait for

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in named.split(",") if name.strip()] or [str(i) for i in range(count)]
    try:
        cores = sorted(os.sched_getaffinity(0))
    except AttributeError:  # not every system pins processes
        cores = list(range(os.cpu_count() or 1))
    said = os.environ.get(THREADS[0], "")
    return Machine(tuple(names[:count]), tuple(cores), int(said) if said.isdigit() and int(said) else None)


def share_out(machine: Machine, slots: Any = AUTO, gpus_per_slot: Any = AUTO, threads: Any = AUTO) -> list[Slot]:
    """Return the slots of a machine.

    Args:
        machine: what there is.
        slots: how many; `auto`: one for each GPU, or for the GPUs of a slot; without GPUs, one for as many cores as a
            member has threads, or for every four.
        gpus_per_slot: GPUs of each; `auto`: one where there are any.
        threads: of each; `auto`: OMP_NUM_THREADS where that is set, or the cores of a slot.

    Raises:
        ConfigError: a setting is no number, or there are not so many GPUs or cores.
    """
    for name, value, least in (("slots", slots, 1), ("gpus_per_slot", gpus_per_slot, 0), ("threads", threads, 1)):
        if value != AUTO and not (is_kind(value, "int") and value >= least):
            raise ConfigError(
                f"hydra.launcher.{name}={value} is no number from {least}: write one, such as "
                f"hydra.launcher.{name}={max(least, 1)}, or auto."
            )
    have, cores = len(machine.devices), machine.cores
    gpus = min(have, 1) if gpus_per_slot == AUTO else gpus_per_slot
    each = machine.threads if threads == AUTO else threads
    if gpus > have:
        raise ConfigError(f"hydra.launcher.gpus_per_slot={gpus}, but this process sees {_gpus(have)}: write {have}.")
    count = slots
    if slots == AUTO:
        count = have // gpus if gpus else max(len(cores) // (each or CORES), 1)
    if count * gpus > have:
        raise ConfigError(
            f"hydra.launcher.slots={count} with {_gpus(gpus)} each needs {count * gpus}, but this process sees {have}: "
            f"write hydra.launcher.slots={have // gpus}, or auto; members that are more wait for a free slot."
        )
    size = max(len(cores) // count, 1)
    if threads != AUTO and threads > size:
        raise ConfigError(
            f"hydra.launcher.threads={threads}, but each of {count} slots has {size} of the {len(cores)} cores: write "
            f"hydra.launcher.threads={size}, or fewer slots."
        )
    return [
        Slot(
            i + 1,
            machine.devices[i * gpus : (i + 1) * gpus],
            cores[i * size : (i + 1) * size] if count <= len(cores) else cores,  # else all share all
            each or size,
        )
        for i in range(count)
    ]


def _gpus(count: int) -> str:
    return f"{count or 'no'} GPU{'s' * (count != 1)}"
