"""The launcher `slots`: how a machine is shared out, and what becomes of members, whatever command they are."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from evomerge.cli.common import REASON
from evomerge.cli.sweeping.board import Board
from evomerge.cli.sweeping.members import Member, run_members
from evomerge.cli.sweeping.slots import Machine, Slot, share_out
from evomerge.common.errors import ConfigError
from evomerge.search.stopping import Interrupt
from tests.processes.waiting import wait_until

PYTHON = (sys.executable, "-I", "-S", "-c")
NODE = Machine(tuple("01234567"), tuple(range(16)))
LAPTOP = Machine((), tuple(range(8)))
SEES = """
import json, os
names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
print(json.dumps([[os.environ[name] for name in names], cores]))
"""
STOPS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("machine", "wanted", "devices", "cores", "threads"),
    [
        (NODE, {}, [*"01234567"], [2] * 8, 2),
        (NODE, {"gpus_per_slot": 4}, ["0,1,2,3", "4,5,6,7"], [8, 8], 8),
        (NODE, {"gpus_per_slot": 3, "threads": 1}, ["0,1,2", "3,4,5"], [8, 8], 1),
        (NODE, {"slots": 2}, ["0", "1"], [8, 8], 8),
        (NODE, {"slots": 16, "gpus_per_slot": 0}, [""] * 16, [1] * 16, 1),
        (replace(NODE, devices=("GPU-5a", "MIG-7")), {}, ["GPU-5a", "MIG-7"], [8, 8], 8),
        (replace(NODE, threads=3), {}, [*"01234567"], [2] * 8, 3),  # as OMP_NUM_THREADS has it
        (replace(NODE, cores=(4, 5)), {}, [*"01234567"], [2] * 8, 1),  # fewer cores than GPUs
        (LAPTOP, {}, ["", ""], [4, 4], 4),
        (LAPTOP, {"threads": 1}, [""] * 8, [1] * 8, 1),
        (LAPTOP, {"slots": 3}, [""] * 3, [2] * 3, 2),
        (replace(LAPTOP, cores=(0,)), {}, [""], [1], 1),
    ],
)
def test_a_machine_is_shared_out(
    machine: Machine, wanted: dict[str, int], devices: list[str], cores: list[int], threads: int
) -> None:
    slots = share_out(machine, **wanted)
    assert [slot.number for slot in slots] == list(range(1, len(slots) + 1))
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == devices
    assert [len(slot.cores) for slot in slots] == cores
    assert {slot.environment["OMP_NUM_THREADS"] for slot in slots} == {str(threads)}
    taken = [core for slot in slots for core in slot.cores]
    assert set(taken) <= set(machine.cores)
    if len(slots) <= len(machine.cores):
        assert len(set(taken)) == len(taken)


@pytest.mark.parametrize(
    ("machine", "wanted", "message"),
    [
        (NODE, {"slots": 9}, "slots=9 with 1 GPU each needs 9, but this process sees 8: write hydra.launcher.slots=8"),
        (NODE, {"gpus_per_slot": 9}, "this process sees 8 GPUs: write 8"),
        (LAPTOP, {"gpus_per_slot": 1}, "this process sees no GPUs: write 0"),
        (LAPTOP, {"slots": 2, "threads": 5}, "each of 2 slots has 4 of the 8 cores: write hydra.launcher.threads=4"),
        (LAPTOP, {"slots": 0}, "hydra.launcher.slots=0 is no number from 1"),
        (LAPTOP, {"threads": "many"}, "hydra.launcher.threads=many is no number from 1"),
        (LAPTOP, {"gpus_per_slot": True}, "hydra.launcher.gpus_per_slot=True is no number from 0"),
    ],
)
def test_what_a_machine_does_not_have_is_refused(machine: Machine, wanted: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        share_out(machine, **wanted)


class Watched:
    """What a sweep tells, in its order; and something to do meanwhile."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.told: list[str] = []
        self.passed = meanwhile

    def began(self, member: Member, slot: Slot) -> None:
        self.told.append(f"{member.name} on {slot.number}")

    def ended(self, member: Member, why: str | None) -> None:
        self.told.append(f"{member.name} ended")


@pytest.fixture
def slots() -> list[Slot]:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    return [Slot(1, ("4", "5"), (cores[0],), 1), Slot(2, ("MIG-a",), (cores[-1],), 3)]


def member(path: Path, name: str, program: str) -> Member:
    return Member(name, path / name, (*PYTHON, program), 3)


def test_members_wait_for_a_slot_and_one_that_fails_costs_itself(slots: list[Slot], tmp_path: Path) -> None:
    killed = "import os; os.kill(os.getpid(), 9)"
    programs = {
        "sees": SEES,
        "refused": "import sys; print('evomerge: start=x is no number.', file=sys.stderr); print('more'); sys.exit(2)",
        "broken": "raise ValueError('no luck')",
        "killed": killed,
        "sees too": SEES,
    }
    members = [member(tmp_path, *pair) for pair in programs.items()]
    watch = Watched()
    found = run_members(members, slots, watch, Interrupt())
    assert found["sees"] is None
    assert found["refused"] == "start=x is no number."
    assert found["broken"] == "ValueError: no luck"
    assert "ended by SIGKILL, most often for a lack of memory" in str(found["killed"])
    assert {one.name for one in members if (one.directory / REASON).exists()} == {"refused", "broken", "killed"}
    assert watch.told[:2] == ["sees on 1", "refused on 2"]
    running = 0
    for told in watch.told:
        running += -1 if told.endswith("ended") else 1
        assert running <= 2
    seen = [line.rpartition(" on ") for line in watch.told if line.startswith("sees")]
    for name, on, number in seen:
        if on:
            slot = slots[int(number) - 1]
            said = json.loads((tmp_path / name / "output.txt").read_text())
            assert said[0] == [",".join(slot.devices), *[str(slot.threads)] * 3]
            assert said[1] in (None, list(slot.cores))
    again = run_members([member(tmp_path, "broken", "print('mended')")], slots, Watched(), Interrupt())
    assert again == {"broken": None}
    assert not (tmp_path / "broken" / REASON).exists()


def test_a_sweep_that_is_asked_to_stop_ends_its_members_and_begins_no_others(slots: list[Slot], tmp_path: Path) -> None:
    members = [member(tmp_path, name, STOPS) for name in "abc"]

    def ask() -> None:
        if not interrupt.requested and all("ready" in (tmp_path / name / "output.txt").read_text() for name in "ab"):
            os.kill(os.getpid(), signal.SIGUSR1)

    with Interrupt() as interrupt:
        found = run_members(members, slots, Watched(ask), interrupt)
    assert interrupt.by == signal.SIGUSR1
    assert set(found) == {"a", "b"}
    assert set(found.values()) == {"stopped; the same command goes on with it"}
    assert not list(tmp_path.glob(f"*/{REASON}"))
    assert not (tmp_path / "c").exists()


def test_members_do_not_outlive_a_sweep_that_breaks_or_is_killed(slots: list[Slot], tmp_path: Path) -> None:
    """Neither one whose loop raises, as a second Ctrl-C does, nor one that SIGKILL ends."""
    deaf = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"

    def told(name: str) -> int:
        return int([*(tmp_path / name / "output.txt").read_text().split(), "0"][0])

    def broken() -> None:
        if told("a"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_members([member(tmp_path, "a", deaf)], slots, Watched(broken), Interrupt())
    assert not alive(told("a"))
    sweep = f"""
from pathlib import Path
from evomerge.cli.sweeping.members import Member, run_members
from evomerge.cli.sweeping.slots import Slot
from evomerge.search.stopping import Interrupt
class Watch:
    began = ended = passed = lambda self, *_: None
one = Member("b", Path({str(tmp_path)!r}, "b"), {(*PYTHON, deaf)!r}, 1)
run_members([one], [Slot(1, (), ({slots[0].cores[0]},), 1)], Watch(), Interrupt())
"""
    with subprocess.Popen([sys.executable, "-c", sweep], cwd=Path(__file__).parents[2]) as process:
        wait_until(lambda: (tmp_path / "b" / "output.txt").exists() and told("b") > 0, "the member's beginning")
        process.kill()
    wait_until(lambda: not alive(told("b")), "the member's end")


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_person_sees_who_runs_where(terminal: bool, slots: list[Slot], tmp_path: Path) -> None:
    members = [member(tmp_path, name, "") for name in ("first", "second")]
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "trials.jsonl").write_text('{"kind":"ask"}\n{"kind":"trial","batch":0}\n{"kind":"trial",')
    console = Console(force_terminal=terminal, width=120, record=True, file=io.StringIO())
    board = Board(members, slots, console)
    with board.shown():
        board.began(members[0], slots[0])
        board.passed()
        board.ended(members[0], "start=[x] is no number.")
    text = console.export_text()
    assert "2 searches on 2 slots: slot 1 (GPU 4,5, core" in text
    assert "start=[x] is" in text
    if terminal:
        assert re.search(r"first +│ 1 +│ 1 of 3", text)
        assert re.search(r"second +│ +│ +│ +│ waits", text)
    else:
        assert "begins: first on slot 1" in text
        assert "1 of 2 ended: first, start=[x] is no number., 0 s" in text
