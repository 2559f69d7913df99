"""A sweep from Hydra's configuration to its members: who they are, by what command each runs, and how they end.

In: the configuration of the sweep and the overrides of each member. Out: for Hydra a return for each; for a person the
run directories, which the table at the end of a sweep reads. A member is the command that its `command.txt` shows, so
whatever runs alone runs in a sweep, with the same log.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf

from evomerge.cli.commands import SAFE, words_of
from evomerge.cli.common import SIGNALLED, explained
from evomerge.cli.sweeping.board import Board
from evomerge.cli.sweeping.members import Member, run_members
from evomerge.cli.sweeping.slots import share_out, this_machine
from evomerge.common.errors import ConfigError
from evomerge.search.stopping import Interrupt

OF_THE_SWEEP = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweep", "hydra.mode", "hydra.run.dir")
"""Beginnings of settings of Hydra's that are not for a member."""


def launch(
    loader: ConfigLoader,
    config: DictConfig,
    function: TaskFunction | None,
    jobs: Sequence[Sequence[str]],
    wanted: tuple[Any, Any, Any],
) -> Sequence[JobReturn]:
    """Run the members of a sweep, as many at a time as the machine has slots.

    Args:
        loader: composes the settings of a member.
        config: of the sweep.
        function: what Hydra would run.
        jobs: the overrides of each member.
        wanted: slots, GPUs of each and threads of each, as they were written.

    Raises:
        SystemExit: settings are refused; or the sweep was asked to stop.
    """
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    with explained(SAFE):
        if getattr(function, "__module__", None) != "evomerge.cli.search":
            raise ConfigError("hydra/launcher=slots runs `evomerge search` and no other program: choose another one.")
        slots = share_out(this_machine(), *wanted)
        composed = [loader.load_sweep_config(config, list(job)) for job in jobs]
        members = {member.directory: member for member in map(_member, composed)}  # one for each directory
        board = Board([*members.values()], slots)
        with Interrupt() as interrupt, board.shown():
            run_members(members.values(), slots, board, interrupt)
        if interrupt.requested:
            print(f"evomerge: The sweep was stopped. {SAFE}", file=sys.stderr)
            raise SystemExit(SIGNALLED + (interrupt.by or 0))
    return [_returned(one) for one in composed]


def _member(config: DictConfig) -> Member:
    directory = Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)
    own = [text for text in config.hydra.overrides.hydra if not text.lstrip("+~").startswith(OF_THE_SWEEP)]
    words = words_of(config.hydra, directory, own)
    return Member(directory.name, directory, (sys.executable, "-m", "evomerge", *words), config.budget)


def _returned(config: DictConfig) -> JobReturn:
    """Return what Hydra wants of a job; why one is not complete stands in its directory."""
    overrides: Any = OmegaConf.to_container(config.hydra.overrides.task)
    returned = JobReturn(overrides=overrides, cfg=config, hydra_cfg=config, task_name=config.hydra.job.name)
    returned.status, returned.return_value = JobStatus.COMPLETED, None
    return returned
