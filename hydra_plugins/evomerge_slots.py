"""The launcher `hydra/launcher=slots`: members of a sweep in parallel, each in a process of its own on its own devices.

In: the overrides of each member. Out: their run directories; who failed has its reason in `error.txt` there. Hydra
takes launchers from the package `hydra_plugins` alone and imports all that lies here whenever it starts, so nothing
heavy is imported at the top. It does so before Python knows the module by its name, so annotations must not be texts.
What the launcher does is in `evomerge/cli/sweeping/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class SlotsConfig:
    """The settings `hydra.launcher`; each may be `auto`."""

    _target_: str = "hydra_plugins.evomerge_slots.SlotsLauncher"
    slots: Any = "auto"  # members at a time: one for each GPU, or for every four cores
    gpus_per_slot: Any = "auto"  # one where there are GPUs
    threads: Any = "auto"  # of each member: OMP_NUM_THREADS, or the cores of its slot


ConfigStore.instance().store(group="hydra/launcher", name="slots", node=SlotsConfig, provider="evomerge")


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
