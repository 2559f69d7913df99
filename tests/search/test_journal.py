"""The file under the trial log: crashes and damage at every byte, edits, two openers, disks that fail."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from evomerge.common.errors import LogError
from evomerge.search.log import TrialLog
from evomerge.search.loop import search
from evomerge.search.stopping import Budget
from evomerge.searchers.random import Random
from evomerge.trials import Batch, Trial
from tests.kit.helpers import box, sphere

SPACE = box(2)
SEARCH, MACHINE = {"seed": 3}, {"cpu": "A"}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the log goes; without waiting for the disk, since thousands of crashes are simulated here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return tmp_path / "run" / "trials.jsonl"


def evaluate(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
    for index in missing:
        yield Trial(batch.index, index, "ok", (sphere(batch.points[index]),))


def play(path: Path) -> bytes:
    """Play a search with every kind of line in few bytes, or resume it, and return what its log holds."""
    with TrialLog(path, SEARCH, MACHINE) as log:
        search(Random(SPACE, SPACE.start({}), 3, batch=2), evaluate, log, Budget(5))
    return path.read_bytes()


def refused(path: Path, data: bytes) -> str:
    """Assert that a log with this content is not opened and stays as it is; return what is said."""
    path.write_bytes(data)
    with pytest.raises(LogError) as caught:
        play(path)
    assert path.read_bytes() == data
    return str(caught.value)


def test_a_crash_at_every_byte(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    whole = play(path)
    assert [whole.count(kind) for kind in (b'"header"', b'"ask"', b'"trial"', b'"tell"')] == [1, 3, 5, 2]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        assert play(path) == whole, length


def test_what_a_power_cut_may_leave_is_said_and_computed_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = play(path)
    safe = b"".join(whole.splitlines(keepends=True)[:4])
    path.write_bytes(safe + b"\0" * 100)
    with TrialLog(path, SEARCH, MACHINE):
        pass
    assert path.read_bytes() == safe + b"\0" * 100  # only looking changes nothing
    assert "The last line of trials.jsonl was cut off while it was being written (100 bytes)" in caplog.text
    assert play(path) == whole


def test_a_flipped_byte_is_never_silent(path: Path) -> None:
    """Every byte of a log, each changed into another one; the ends of lines into many, other ends of lines too."""
    whole, rng = play(path), random.Random(0)
    ends = [ord("\n") ^ ord(other) for other in "\r\v\f\x1c\x85"]
    for position, byte in enumerate(whole):
        for change in [rng.randrange(1, 256)] if byte != ord("\n") else [*ends, *rng.sample(range(1, 256), 8)]:
            damaged = bytearray(whole)
            damaged[position] ^= change
            if position == len(whole) - 1:  # the last line has no end, as if it had been cut off: it is computed again
                path.write_bytes(damaged)
                assert play(path) == whole
                continue
            number = whole[:position].count(b"\n") + 1
            message = refused(path, bytes(damaged))
            assert f"Line {number} of {path} does not match its checksum" in message
            assert f"head -n {number - 1} trials.jsonl" in message


def test_edited_logs_are_refused(path: Path) -> None:
    lines = play(path).splitlines(keepends=True)
    for i in range(len(lines) - 1):
        without, twice, swapped = lines[:i] + lines[i + 1 :], lines[: i + 1] + lines[i:], lines[:]
        swapped[i : i + 2] = swapped[i + 1], swapped[i]
        for edited, number in ((without, i + 1), (twice, i + 2), (swapped, i + 1)):
            assert f"Line {number} of {path}" in refused(path, b"".join(edited))
    assert f"Line 1 of {path}" in refused(path, b"these are\nmy notes\n")


def test_the_way_out_that_the_message_names(path: Path) -> None:
    whole = play(path)
    lines = whole.splitlines(keepends=True)
    message = refused(path, b"".join([*lines[:7], lines[7].replace(b"1", b"2"), *lines[8:]]))
    kept = int(re.findall(r"head -n (\d+)", message)[0])
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:kept]))
    assert play(path) == whole


def test_a_second_opener_is_refused(path: Path) -> None:
    with TrialLog(path, SEARCH, MACHINE):
        for _ in range(2):
            with pytest.raises(LogError, match="Another process is working on the run"), TrialLog(path, {}, MACHINE):
                pass
    play(path)


def test_every_line_is_on_the_disk_before_anything_acts_on_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(path.read_bytes()))
    batch = Batch(0, np.zeros((1, 2)))
    with TrialLog(path, SEARCH, MACHINE) as log:
        steps = (
            lambda: log.begin(log.ask(batch)),
            lambda: log.append(Trial(0, 0, "ok", (1.0,))),
            lambda: log.tell(batch),
        )
        for kind, step in zip(("ask", "trial", "tell"), steps, strict=True):
            step()
            assert synced[-1] == path.read_bytes()
            assert json.loads(synced[-1].splitlines()[-1])["kind"] == kind


def test_a_disk_that_fails_leaves_the_log_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    batch = Batch(0, np.zeros((2, 2)))
    with TrialLog(path, SEARCH, MACHINE) as log:
        log.begin(log.ask(batch))
        log.append(Trial(0, 0, "ok", (1.0,)))
        before = path.read_bytes()
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(LogError, match=r"No space left on device\. What was written before is safe\. Make room"):
            log.append(Trial(0, 1, "ok", (1.0,)))
        assert path.read_bytes() == before
        assert log.trials == 1
