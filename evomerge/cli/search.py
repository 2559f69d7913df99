"""`evomerge search`: Hydra composes the settings and names the run directory; `run.py` does the rest."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import hydra
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from evomerge.cli.commands import SAFE, shown_command
from evomerge.cli.common import REASON, SIGNALLED, explained
from evomerge.cli.evolve import evolved
from evomerge.cli.pages import draw_run
from evomerge.cli.settings import check_settings, explaining, known_settings, spelled_out, sweeps
from evomerge.cli.sweeping.others import check_launcher
from evomerge.common.errors import EvomergeError
from evomerge.common.files import write_atomically
from evomerge.runs.config import CONF, plain, register
from evomerge.runs.schema import SearchConfig
from evomerge.search.stopping import Interrupt

OWN_CONFIGURATION = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")
"""Flags of Hydra that add settings files of the user's."""
logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Run one search or a sweep over searches.

    Args:
        arguments: settings and Hydra's own flags.
    """
    arguments = evolved(arguments)
    given = [part for argument in _ordered(arguments) for part in spelled_out(argument, sweeps(arguments))]
    register()
    check_launcher(given)
    one = not any(argument.startswith(("-", "hydra.mode")) for argument in given)
    if one:
        known_settings(given)
    elif any(argument.split("=")[0] in OWN_CONFIGURATION for argument in given):  # Hydra knows more names than we do
        _refuse_marks(given)
    else:
        check_settings(given)
    sys.argv = ["evomerge search", *given]
    if one:
        _run_one(given)
    else:
        _application()


def _ordered(arguments: Sequence[str]) -> list[str]:
    """Return settings, then flags with their values: Hydra's parser takes no setting on either side of a flag."""
    settings, flags = list[str](), list[str]()
    for before, argument in pairwise(["", *arguments]):
        follows = before.startswith("-") and "=" not in before
        value = follows and (before in OWN_CONFIGURATION or not re.search("^[~+]|=", argument))
        (flags if value or argument.startswith("-") else settings).append(argument)
    return settings + flags


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="search")
def _application(config: SearchConfig) -> None:
    """Run a sweep, or whatever else a flag of Hydra's asks for."""
    _search(config)


def _run_one(settings: Sequence[str]) -> None:
    """Run one search. Its settings are composed once: `hydra.main` does it twice, to look for a sweep first.

    Raises:
        EvomergeError: the settings cannot be composed.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"), explaining():
        application = GlobalHydra.instance().hydra
        assert application is not None  # by the line above
        application.run("search", _search, list(settings))


def _search(config: SearchConfig) -> None:
    from evomerge.cli.progress import Reporter  # from here on a search takes place: --help need not wait for this
    from evomerge.runs.run import run_search

    logging.captureWarnings(True)  # so that the log file has them too
    directory, interrupt = Path(HydraConfig.get().runtime.output_dir), Interrupt()
    (directory / REASON).unlink(missing_ok=True)
    with explained(SAFE):  # in here, since Hydra has a way of its own with exceptions
        try:
            reporter = Reporter(named=plain(config)["objective"].get("values"))
            if run_search(config, directory, reporter, interrupt, command=shown_command(HydraConfig.get())) is None:
                pass_on(interrupt.by)
                raise SystemExit(SIGNALLED + (interrupt.by or 0))  # a sweep must not go on with its next run
            draw_run(directory, reporter)
        except EvomergeError as error:
            if HydraConfig.get().mode is not RunMode.MULTIRUN:
                _leave_no_trace(directory)
                raise
            print(f"evomerge: {error}", file=sys.stderr)
            _remember(directory, str(error))
        except Exception as error:
            if HydraConfig.get().mode is not RunMode.MULTIRUN:
                raise
            logger.exception("This run failed; the sweep goes on.")
            _remember(directory, f"{type(error).__name__}: {error}")


def _refuse_marks(arguments: Sequence[str]) -> None:
    """Refuse a settings file whose first line Hydra would pass over, since a byte order mark stands before it.

    Raises:
        EvomergeError: there is one in a directory of the user's.
    """
    given = [part for one in arguments for part in (one.split("=", 1) if one.startswith("-") else [one])]
    places = [Path(where) for flag, where in pairwise(given) if flag in OWN_CONFIGURATION]
    for file in (file for place in places if place.is_dir() for file in sorted(place.rglob("*.yaml"))):
        if file.read_bytes().startswith(b"\xef\xbb\xbf# @"):
            raise EvomergeError(
                f"{file} begins with a byte order mark, behind which Hydra does not see its first line (# @package "
                f"...): save it as UTF-8 without one."
            )


def pass_on(number: int | None) -> None:
    """Hand a signal on to whoever waited for it before the search did: submitit then submits its job again."""
    handler = None if number is None else signal.getsignal(number)
    if number is not None and callable(handler) and handler is not signal.default_int_handler:
        handler(number, None)


def _remember(directory: Path, why: str) -> None:
    """Write why a run of a sweep is not complete: it costs this run alone, and the end of the sweep names it."""
    write_atomically(directory / REASON, f"{why}\n")


def _leave_no_trace(directory: Path) -> None:
    """Remove a run directory in which nothing has happened: Hydra made it before the settings were found wrong."""
    if not (directory / "trials.jsonl").exists():
        (directory / "evomerge.log").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something else
            directory.rmdir()
