"""`evomerge search`: Hydra composes the settings and names the run directory; `run.py` does the rest."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from evomerge.commands.common import explained
from evomerge.commands.settings import check_settings, spelled_out
from evomerge.config import CONF, SearchConfig, register
from evomerge.errors import EvomergeError

OWN_CONFIGURATION = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")
"""Flags of Hydra that add settings files of the user's."""
SAFE = "Nothing of the search is lost: run the same command again to go on."


def main(arguments: Sequence[str]) -> None:
    """Run one search or a sweep over searches.

    Args:
        arguments: settings and Hydra's own flags.
    """
    given = [part for argument in arguments for part in spelled_out(argument)]
    register()
    if not any(argument.split("=")[0] in OWN_CONFIGURATION for argument in given):  # else Hydra knows more names
        check_settings(given)
    sys.path.insert(0, os.getcwd())  # a fitness of the user's own is found from here, as with `python -m`
    sys.argv = ["evomerge search", *given]
    _application()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="search")
def _application(config: SearchConfig) -> None:
    from evomerge.progress import Reporter  # torch and transformers take seconds to import; `--help` needs neither
    from evomerge.run import run_search

    directory = Path(HydraConfig.get().runtime.output_dir)
    with explained(SAFE):  # in here, since Hydra has a way of its own with exceptions
        try:
            if run_search(config, directory, Reporter()) is None:
                raise SystemExit(0)  # asked to stop: a sweep must not go on with its next run
        except EvomergeError as error:
            _leave_no_trace(directory)
            if HydraConfig.get().mode is not RunMode.MULTIRUN:
                raise
            print(f"evomerge: {error}", file=sys.stderr)  # one bad run of a sweep costs one run; the table shows it


def _leave_no_trace(directory: Path) -> None:
    """Remove a run directory in which nothing has happened: Hydra made it before the settings were found wrong."""
    if not (directory / "trials.jsonl").exists():
        (directory / "evomerge.log").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something else
            directory.rmdir()
