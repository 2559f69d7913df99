"""Launchers that other packages bring: which package, said before Hydra says only that there is no such choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from evomerge.common.errors import EvomergeError

GROUP = "hydra/launcher"
PACKAGES = {
    "submitit_slurm": "'evomerge[slurm]'",
    "submitit_local": "'evomerge[slurm]'",
    "joblib": "hydra-joblib-launcher",
    "ray": "hydra-ray-launcher",
}
"""Launcher -> what pip installs."""


def check_launcher(arguments: Sequence[str]) -> None:
    """Refuse a launcher that is not installed.

    Args:
        arguments: settings of the command line.

    Raises:
        EvomergeError: one is not, and a package is known that brings it.
    """
    for group, _, name in (argument.partition("=") for argument in arguments):
        if group == GROUP and name in PACKAGES:
            Plugins.instance()  # which registers what is installed
            here = [PurePath(file).stem for file in ConfigStore.instance().list(GROUP)]
            if name not in here:
                raise EvomergeError(
                    f"The launcher {name} is not installed: pip install {PACKAGES[name]}. There is {', '.join(here)}."
                )
