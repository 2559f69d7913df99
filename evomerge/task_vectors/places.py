"""Where task vectors lie while a search runs: on the device of the model, in the memory of the host, or on disk.

In: how many bytes they have, and how many are free where. Out: a `Place`, and a sentence that says what was chosen,
why, and what it costs. A candidate reads every task vector once, so the farther they lie, the longer it takes: from the
device at the speed of its memory, from the host over the bus, from a disk at the disk's speed. Of a model over several
devices, each parameter has its task vectors beside it, and the fullest device decides for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evomerge.common.errors import ConfigError
from evomerge.common.machine import ROOM

Place = Literal["device", "host", "disk"]
PLACES: tuple[Place, ...] = ("device", "host", "disk")
AUTO = "auto"
GIB = 2**30
WINDOW = 1 << 30
"""Bytes of base and task vectors that are brought to a device at a time."""
HELD = 0.5
"""The share of the host's memory that task vectors may take."""


@dataclass(frozen=True)
class Sizes:
    """Bytes, all of one search, or what of them lies on one device.

    Attributes:
        model: of the live model.
        base: of θ₀, which candidates read as well.
        vectors: of all task vectors in the form in which they are kept.
        window: of the largest part of base and task vectors that is streamed at once, two of which are on the device.
    """

    model: int
    base: int
    vectors: int
    window: int

    @property
    def read(self) -> int:
        """What a candidate reads."""
        return self.base + self.vectors

    @property
    def whole(self) -> int:
        """What model, base and task vectors take together."""
        return self.model + self.read

    @property
    def streamed(self) -> int:
        """What the model and two windows take."""
        return self.model + 2 * self.window


@dataclass(frozen=True)
class Share:
    """What lies on one of several devices.

    Attributes:
        name: of the device.
        sizes: of what is there.
        free: bytes that may be used there, before the model is there.
    """

    name: str
    sizes: Sizes
    free: int

    @property
    def least(self) -> float:
        """What is there for model, base and task vectors."""
        return self.free * (1 - ROOM)


@dataclass(frozen=True)
class Free:
    """Bytes that may be used.

    Attributes:
        device: of the device of the model, or of all of them, before the model is there; None for a model on the CPU.
        host: of the memory of this process.
    """

    device: int | None
    host: int


@dataclass(frozen=True)
class Placed:
    """Where task vectors lie.

    Attributes:
        place: there.
        window: bytes that are brought to the device of the model at a time, where they lie elsewhere.
        said: the same as a sentence for the user.
    """

    place: Place
    window: int
    said: str


def choose(asked: str, sizes: Sizes, free: Free, stored: str = "", shares: Sequence[Share] = ()) -> Placed:
    """Choose where task vectors lie.

    Args:
        asked: the setting `model.place`.
        sizes: of what is there.
        free: of the memory.
        stored: the setting that would make them smaller, for the sentences; empty where there is none.
        shares: of each device, where there are several: the fullest one decides for all.

    Raises:
        ConfigError: the place is not known, or the memory that was asked for is too small.
    """
    if asked not in (AUTO, *PLACES):
        raise ConfigError(f"model.place={asked} is not known: write one of {', '.join((AUTO, *PLACES))}.")
    if free.device is None:
        return _on_cpu(asked, sizes, free)
    smaller = f", or {stored}, which makes them smaller" * bool(stored)
    several, shares = bool(shares), shares or [Share("", sizes, free.device)]
    full = max(shares, key=lambda share: share.sizes.whole - share.least)
    if asked in ("device", AUTO) and full.sizes.whole <= full.least:
        where = f"beside the model on {len(shares)} devices, {full.name} the fullest" if several else "on the device"
        taken = f"{_gib(full.sizes.whole)} of {_gib(full.free)} with model and base"
        return Placed("device", sizes.window, f"task vectors {where}: {taken}")
    if asked == "device":
        raise ConfigError(
            f"model.place=device: model, base and task vectors take {_against(full.sizes.whole, full)} for them: write "
            f"model.place=auto{smaller}."
        )
    tight = max(shares, key=lambda share: share.sizes.streamed - share.least)
    if tight.sizes.streamed > tight.least:
        more = "give a worker more GPUs (evaluator.gpus)" if several else "take a larger device, or model.device=cpu"
        raise ConfigError(
            f"The model and two windows of task vectors take {_against(tight.sizes.streamed, tight)} for them: {more}."
        )
    why = "" if asked != AUTO else f"with model and base they take {_against(full.sizes.whole, full, ' and')}; "
    fits = sizes.read <= HELD * free.host
    if asked == "host" and not fits:
        raise _too_large(sizes, free)
    if asked == "host" or (asked == AUTO and fits):
        said = f"task vectors in the host's memory: {why}each candidate moves {_gib(sizes.read)} over the bus"
        return Placed("host", sizes.window, said)
    said = f"task vectors on disk: {why}each candidate reads {_gib(sizes.read)} from there, unless cached"
    return Placed("disk", sizes.window, said)


def choose_for(
    asked: str,
    devices: Mapping[str, str],
    model: Mapping[str, int],
    base: Mapping[str, int],
    vectors: Mapping[str, int],
    free: Mapping[str, int],
    host: int,
) -> Placed:
    """Choose where the task vectors of a model lie, by its parameters.

    Args:
        asked: the setting `model.place`.
        devices: parameter -> the device on which it lies.
        model: parameter -> bytes of it.
        base: parameter -> bytes of θ₀, of those that are merged.
        vectors: parameter -> bytes of all its task vectors.
        free: device -> bytes that may be used there, before the model is there; without the CPU.
        host: bytes of memory that this process may have.

    Raises:
        ConfigError: as `choose`.
    """
    window = max(WINDOW, 2 * max(vectors.values(), default=0))  # with the base, which is no larger

    def sizes(*on: str) -> Sizes:
        held = ([size for name, size in each.items() if devices[name] in on] for each in (model, base, vectors))
        own, before, kept = map(sum, held)
        return Sizes(own, before, kept, window)

    shares = [Share(one, sizes(one), free[one]) for one in dict.fromkeys(devices.values()) if one in free]
    some = Free(sum(share.free for share in shares) if shares else None, host)
    return choose(asked, sizes(*devices.values()), some, "model.store=int4", shares if len(shares) > 1 else ())


def _on_cpu(asked: str, sizes: Sizes, free: Free) -> Placed:
    """A model on the CPU lies in the memory of the host, so `device` is the same as `host` there."""
    whole = sizes.model + sizes.read
    if asked in ("device", "host"):
        if whole > free.host:
            raise _too_large(sizes, free)
        return Placed("host", sizes.window, f"task vectors in memory: {_gib(sizes.read)} with the base")
    said = f"task vectors mapped from disk: {_gib(sizes.vectors)}, which stay in memory as long as it has room"
    if whole > free.host:
        said = (
            f"task vectors mapped from disk: model, base and task vectors take {_gib(whole)} and memory has "
            f"{_gib(free.host)}, so each candidate reads from the disk what does not fit"
        )
    return Placed("disk", sizes.window, said)


def _too_large(sizes: Sizes, free: Free) -> ConfigError:
    return ConfigError(
        f"model.place=host: base and task vectors take {_gib(sizes.read)}, and this process may have "
        f"{_gib(free.host)} of memory: write model.place=disk, or a smaller model.store."
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _against(size: float, share: Share, joined: str = ", and") -> str:
    """Return what is taken, and what is there, of a device that has a name where there are several."""
    on = f" on {share.name}, which has" if share.name else f"{joined} the device has"
    return f"{_gib(size)}{on} {_gib(share.least)}"
