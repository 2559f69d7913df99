"""The launcher `hydra/launcher=slots`: members of a sweep in parallel, each in a process of its own on its own devices;
and the sweeper of evomerge, which is Hydra's own and goes on to the table where a launcher breaks off.

In: the overrides of each member. Out: their run directories; who failed has its reason in `error.txt` there. Hydra
takes launchers from the package `hydra_plugins` alone and imports all that lies here whenever it starts, so nothing
heavy is imported at the top. It does so before Python knows the module by its name, so annotations must not be texts.
What the launcher does is in `evomerge/cli/sweeping/`.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException


@dataclass
class SlotsConfig:
    """The settings `hydra.launcher`; each may be `auto`."""

    _target_: str = "hydra_plugins.evomerge_slots.SlotsLauncher"
    slots: Any = "auto"  # members at a time: one for each GPU, or for every four cores
    gpus_per_slot: Any = "auto"  # one where there are GPUs
    threads: Any = "auto"  # of each member: OMP_NUM_THREADS, or the cores of its slot


@dataclass
class ToTheTableConfig(BasicSweeperConf):
    """The settings `hydra.sweeper`: those of Hydra's own."""

    _target_: str = "hydra_plugins.evomerge_slots.ToTheTable"


ConfigStore.instance().store(group="hydra/launcher", name="slots", node=SlotsConfig, provider="evomerge")
ConfigStore.instance().store(group="hydra/sweeper", name="to_the_table", node=ToTheTableConfig, provider="evomerge")


class SlotsLauncher(Launcher):
    """Runs `evomerge search` for each member, as many at a time as there are slots.

    Args:
        slots: members at a time.
        gpus_per_slot: GPUs of each.
        threads: threads of each.
    """

    def __init__(self, slots: Any, gpus_per_slot: Any, threads: Any) -> None:
        self._wanted = (slots, gpus_per_slot, threads)
        self._context: HydraContext | None = None
        self._config: DictConfig | None = None
        self._function: TaskFunction | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives a launcher before anything is launched."""
        self._context, self._function, self._config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the members to their ends."""
        from evomerge.cli.sweeping.launching import launch

        assert self._context is not None  # Hydra calls `setup` first
        assert self._config is not None
        return launch(self._context.config_loader, self._config, self._function, job_overrides, self._wanted)


class ToTheTable(BasicSweeper):
    """Hydra's sweeper; where a launcher breaks off, since it lost a member, the table still says what is complete."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the members, and say why the launcher broke off, if it did; `HYDRA_FULL_ERROR=1` shows where."""
        try:
            return super().sweep(arguments)
        except (HydraException, OmegaConfBaseException):
            raise  # settings are wrong, and Hydra says how
        except Exception as error:  # whatever launchers raise
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            first = next(iter(str(error).splitlines()), "")
            print(f"evomerge: the launcher broke off the sweep: {type(error).__name__}: {first}", file=sys.stderr)
            return []
