"""Workers on a cluster of Ray's: an actor for each starts the worker's process on its node, and passes on what is said.

In: the message from which a worker builds the problem, and what each worker needs. Out: a `Crew`. Ray finds a node for
each actor, gives it GPUs of its own and says when it is gone; the pool starts it anew, on whatever node there is then.
The worker itself is the program that `processes.py` starts (`relay.py`). Messages travel with the calls, in pieces too
small for Ray's object store, so a full one holds up nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.search.evaluators.processes import MODULE
from evomerge.search.evaluators.relay import Relay, pieces
from evomerge.search.evaluators.wire import Message, unpacked

logger = logging.getLogger(__name__)

STORE = 80 * 2**20
"""Bytes of the object store of a cluster that is started here: Ray wants as many, and nothing is put into it."""
STARTED = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
"""The environment in which a cluster is started here: it tells nobody of its use, and has workers as urgent as this."""
PATIENCE = 300.0
"""Seconds after which a search ends where the cluster has no room for any worker."""
GRACE = 5.0
"""Seconds that an actor has to end its worker."""


class Actors:
    """A crew on a cluster.

    Args:
        build: from which each worker builds the problem.
        size: how many workers.
        gpus: of each.
        threads: of each, for which Ray keeps as many cores.
        directory: where what they print is written to, a file each, on nodes that have its parent.
        address: of the cluster; None for one that is started here, or the one that the program is connected to.
        module: the program of a worker.
        patience: seconds to wait for room for any worker.

    Attributes:
        size: how many there are.

    Raises:
        ConfigError: Ray is not installed, or does not answer.
    """

    def __init__(
        self,
        build: Message,
        size: int,
        gpus: int,
        threads: int,
        directory: Path,
        address: str | None = None,
        module: str = MODULE,
        patience: float = PATIENCE,
    ) -> None:
        self.size, self._gpus, self._threads, self._patience = size, gpus, threads, patience
        self._ray, self._ours = connected(address, gpus * size, threads * size)
        path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._actor = self._ray.remote(Relay).options(
            num_gpus=gpus, num_cpus=threads, max_restarts=0, max_concurrency=4, runtime_env={"env_vars": path}
        )
        own = path if gpus else {**path, "CUDA_VISIBLE_DEVICES": ""}  # Ray hides none from those that asked for none
        self._given = (own, directory.absolute(), Path.cwd(), module, *pieces(build))
        self._relays: dict[int, Any] = {}
        self._nodes: dict[int, str] = {}
        self._waits: dict[Any, int] = {}
        self._parts: dict[int, list[bytes]] = {}
        self._words: dict[int, str] = {}
        self._alone = time.monotonic()

    def start(self, worker: int) -> None:
        """Start a worker, or start it anew, wherever there is room for it."""
        self._relays[worker] = self._actor.remote(worker, *self._given)
        self._parts[worker] = []
        self._listen(worker)

    def send(self, worker: int, message: Message) -> None:
        """Send a message."""
        with contextlib.suppress(self._ray.exceptions.RayError, ConnectionError):  # it is gone: `receive` says so
            self._relays[worker].send.remote(*pieces(message))

    def receive(self, seconds: float | None) -> list[tuple[int, Message | None]]:
        """Return what has come, and wait so long for the first of it.

        Raises:
            EvomergeError: there is no room for any worker, or the cluster is gone.
        """
        try:
            return self._received(seconds)
        except ConnectionError as error:
            raise EvomergeError(
                f"The cluster of Ray's does not answer any more ({str(error).splitlines()[0][:200]}). What was scored "
                f"is in the log: run the same command again once it does."
            ) from error

    def _received(self, seconds: float | None) -> list[tuple[int, Message | None]]:
        waits = list(self._waits)
        if not self._nodes:
            left = max(self._alone + self._patience - time.monotonic(), 0.0)
            seconds = left if seconds is None else min(seconds, left)
        ready, _ = self._ray.wait(waits, timeout=seconds)
        if ready:
            ready, _ = self._ray.wait(waits, num_returns=len(waits), timeout=0)
        elif not self._nodes and time.monotonic() >= self._alone + self._patience:
            raise EvomergeError(self._crowded())
        found = [self._heard(self._waits.pop(ref), ref) for ref in ready]
        return [each for each in found if each is not None]

    def kill(self, worker: int) -> None:
        """End a worker at once."""
        self._ray.wait([self._relays[worker].kill.remote()], timeout=GRACE)
        self._ray.kill(self._relays[worker])

    def last_words(self, worker: int) -> str:
        """Return how a worker has ended, and where it was."""
        return self._words[worker]

    def close(self) -> None:
        """End all workers, and the cluster if it was started here."""
        with contextlib.suppress(Exception):  # the cluster is gone, and so are they
            if ends := [self._relays[worker].kill.remote() for worker in self._nodes]:
                self._ray.wait(ends, num_returns=len(ends), timeout=GRACE)
            for relay in self._relays.values():
                self._ray.kill(relay)
        if self._ours:
            self._ray.shutdown()

    def _listen(self, worker: int) -> None:
        self._waits[self._relays[worker].receive.remote()] = worker

    def _heard(self, worker: int, ref: Any) -> tuple[int, Message | None] | None:
        """Return what a worker says, if that is all of it."""
        try:
            kind, data = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:  # the actor, its node or its process is gone
            why = str(error).strip().splitlines()[-1][:200]
            if worker in self._nodes or getattr(error, "actor_init_failed", True):
                return self._gone(worker, why)
            logger.warning("Worker %d has not found its place (%s) and looks for another one.", worker, why)
            self.start(worker)  # the node was lost that Ray had chosen: that is no death of a worker
            return None
        if kind == "gone":
            return self._gone(worker, data.decode())
        self._listen(worker)
        if kind == "on":
            self._nodes[worker] = data.decode()
            return None
        self._parts[worker].append(data)
        if kind == "part":
            return None
        parts, self._parts[worker] = self._parts[worker], []
        return worker, unpacked(b"".join(parts))

    def _gone(self, worker: int, why: str) -> tuple[int, None]:
        self._ray.kill(self._relays[worker])  # it may live on and hold its GPUs, only out of reach
        node = self._nodes.pop(worker, None)
        self._words[worker] = f"on {node}: {why}" if node else why
        self._alone = time.monotonic()
        return worker, None

    def _crowded(self) -> str:
        """Say that no worker has found room."""
        there, free = self._ray.cluster_resources(), self._ray.available_resources()
        has = ", ".join(f"{there.get(name, 0):g} {name}s ({free.get(name, 0):g} free)" for name in ("GPU", "CPU"))
        return (
            f"None of {self.size} workers has found room on the cluster for {self._patience:g} s. A worker needs "
            f"{self._gpus} GPUs and {self._threads} cores of one node, and the cluster has {has}. What was scored is "
            f"in the log: lower evaluator.gpus or evaluator.threads, or run the same command again once there is room."
        )


def nodes_of(address: str | None, here: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return how many GPUs and cores each node of a cluster has.

    Args:
        address: of the cluster; None for one that will be started here.
        here: the same of this machine.

    Raises:
        ConfigError: Ray is not installed, or does not answer.
    """
    if address is None and not library().is_initialized():
        return list(here)
    ray, ours = connected(address)
    try:
        found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        if ours:
            ray.shutdown()
    return [(int(has.get("GPU", 0)), int(has.get("CPU", 0))) for has in found]


def library() -> Any:
    """Return Ray.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"evaluator=ray needs Ray, and {error.name} is not installed: pip install 'evomerge[ray]'"
        ) from None


def connected(address: str | None, gpus: int = 0, cores: int = 1) -> tuple[Any, bool]:
    """Return Ray, connected to a cluster, and whether it was not before.

    Args:
        address: of the cluster; None for one that is started here, unless this program is connected to one.
        gpus: how many one has that is started here.
        cores: how many it has.

    Raises:
        ConfigError: Ray is not installed, or does not answer.
    """
    ray = library()
    if ray.is_initialized():
        return ray, False
    first = {"num_gpus": gpus, "num_cpus": cores, "object_store_memory": STORE, "include_dashboard": False}
    try:
        with started_so(), _own_signals():
            if address:
                _check_answers(address)
            ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else first))
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConfigError(
            f"evaluator.address={address}: no cluster of Ray's answers there ({str(error).splitlines()[0][:200]}). "
            f"Start one (ray start --head), or write evaluator.address=null for one that is started here. If it is "
            f"there and wants a token, set RAY_AUTH_MODE=token in the environment of this command."
        ) from error
    return ray, True


def _check_answers(address: str) -> None:
    """Refuse an address at which nothing listens: Ray itself tries for ten minutes.

    Raises:
        OSError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), GRACE).close()


@contextlib.contextmanager
def started_so() -> Iterator[None]:
    """Let a cluster be started as `STARTED` says, and put the environment of this program back."""
    before = {name: os.environ.get(name) for name in STARTED}
    os.environ.update(STARTED)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Put back what this program does upon SIGTERM, which Ray replaces."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
