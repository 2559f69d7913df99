"""The settings `evaluator`: who scores the units of a run, and how they are cut.

In: these settings, and how the run began. Out: a `Plan` with a choice in place of each `auto`. Blocks and threads are
chosen when a run begins and kept whenever it goes on, since both change last bits; the number of workers changes
nothing but time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.common.arguments import is_kind
from evomerge.common.errors import ConfigError
from evomerge.common.limits import AUTO
from evomerge.common.names import unknown

if TYPE_CHECKING:
    from evomerge.runs.computing import Begun  # comes with torch, and settings are checked without it

KINDS = ("serial", "processes", "ray")
BLOCKS = 4
"""Into how many blocks a pool cuts the items of a candidate, where the user does not say."""
MOST = 8
"""How many workers there are at most on CPUs, where the user does not say: each holds a model."""
Node = tuple[int, int]
"""GPUs and cores of a machine."""
LEAST = {"workers": 1, "gpus": 0, "threads": 1, "blocks": 1}
"""Settings that are whole numbers or `auto`, with the smallest number of each."""


@dataclass(frozen=True)
class Plan:
    """Who scores the units of a run, with a choice in place of each `auto`.

    Attributes:
        kind: serial, processes or ray.
        blocks: into how many the items of a candidate are cut.
        threads: of a worker, or of this process where it scores by itself; None for as many as torch takes.
        workers: how many; 0 where this process scores by itself.
        gpus: of each worker.
        address: of a cluster of Ray's; None for one that is started here.
        beside: how many of them may be on one machine, and share its memory.
    """

    kind: str = "serial"
    blocks: int = 1
    threads: int | None = None
    workers: int = 0
    gpus: int = 0
    address: str | None = None
    beside: int = 1

    @contextmanager
    def threaded(self) -> Iterator[None]:
        """Let torch have as many threads in this process as it scores with, and then as many as before."""
        if self.workers or self.threads is None:
            yield
            return
        import torch  # here, since settings are checked without it

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def crowded(self, cores: int) -> str:
        """Say of worker processes that they have more threads than there are cores, and what to write instead."""
        threads = self.threads or 1
        if self.kind != "processes" or self.workers * threads <= cores:
            return ""
        fewer, each = max(cores // threads, 1), max(cores // self.workers, 1)
        return (
            f"{self.workers} workers with {threads} threads each share {cores} cores, and wait for each other: write "
            f"evaluator.workers={fewer}, or evaluator.threads={each} in another run directory (hydra.run.dir=), since "
            f"a run keeps the threads that it began with"
        )


def check_evaluator(settings: Mapping[str, Any]) -> None:
    """Refuse settings that are none, and those that another evaluator has.

    Raises:
        ConfigError: there are some.
    """
    if (kind := settings.get("kind", "serial")) not in KINDS:
        raise ConfigError(f"evaluator.kind: {unknown('choice', kind, KINDS)}")
    for name, least in LEAST.items():
        value = settings.get(name, AUTO)
        if value != AUTO and not (is_kind(value, "int") and value >= least):
            raise ConfigError(f"evaluator.{name}={value}: write auto, or a whole number from {least}.")
    for name in ("workers", "gpus"):
        if kind == "serial" and settings.get(name, AUTO) != AUTO:
            raise ConfigError(
                f"evaluator.{name}={settings[name]} is of workers, and there are none: write evaluator=processes too."
            )
    if kind != "ray" and settings.get("address") is not None:
        raise ConfigError(
            f"evaluator.address={settings['address']} is that of a cluster of Ray's: write evaluator=ray too."
        )


def plan_of(settings: Mapping[str, Any], nodes: Sequence[Node], before: Begun | None = None) -> Plan:
    """Return who scores, with a choice in place of each `auto`.

    Args:
        settings: `evaluator`, checked.
        nodes: the machines of all workers together; each worker is on one of them.
        before: how the run began, if it goes on.

    Raises:
        ConfigError: workers need more GPUs than there are, or more cores than any machine of a cluster has.
    """

    def chosen(name: str, otherwise: int) -> int:
        value = settings.get(name, AUTO)
        return otherwise if value == AUTO else int(value)

    kind = settings.get("kind", "serial")
    if kind == "serial":
        own, blocks = settings.get("threads", AUTO), chosen("blocks", before.blocks if before else 1)
        if own == AUTO and before and before.blocks > 1:  # most often begun by workers, with threads of theirs
            own = before.threads or AUTO
        return Plan(blocks=blocks, threads=None if own == AUTO else int(own))
    gpus = chosen("gpus", 1 if any(devices for devices, _ in nodes) else 0)
    cores = sum(own for _, own in nodes)
    workers = chosen("workers", max(1, _room(nodes, gpus)) if gpus else max(1, min(cores, MOST)))
    if gpus and _room(nodes, gpus) < workers:
        there = " + ".join(str(devices) for devices, _ in nodes)
        raise ConfigError(
            f"{workers} workers with {gpus} GPUs each need {gpus * workers}, and there are {there}: lower "
            f"evaluator.workers or evaluator.gpus (0 for workers on CPUs)."
        )
    most = max(own for _, own in nodes)
    fitting = (count for count in range(most, 0, -1) if _room(nodes, gpus, count) >= workers)
    threads = chosen("threads", (before and before.threads) or next(fitting, 1))
    address = settings.get("address")
    if address is not None and not _room(nodes, gpus, threads):
        raise ConfigError(
            f"A worker has {threads} threads and {gpus} GPUs, and no node of the cluster has as much (the largest has "
            f"{most} cores): lower evaluator.threads or evaluator.gpus."
        )
    blocks = chosen("blocks", before.blocks if before else BLOCKS)
    beside = workers if len(nodes) == 1 else min(workers, max(_room([node], gpus, threads) for node in nodes))
    return Plan(kind, blocks, threads, workers, gpus, address, beside)


def _room(nodes: Sequence[Node], gpus: int, threads: int = 0) -> int:
    """Return for how many workers there are GPUs and cores, as far as they need some."""
    return sum(min(has // need for has, need in zip(node, (gpus, threads), strict=True) if need) for node in nodes)


def cores_here() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
