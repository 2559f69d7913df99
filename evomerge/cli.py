"""The command `evomerge`: a verb, then settings in Hydra's grammar.

    evomerge search model=text searcher=cmaes space=layer budget=200
    evomerge search model.base=base 'model.experts=[a,b]' 'fitness.tasks={a: {items: a.jsonl}, b: {items: b.jsonl}}'
    evomerge search -m model=text searcher=cmaes,tpe seed=1,2,3
    evomerge search experiment=smoke

The same command again resumes. A misspelt verb or setting is answered with the near match; a user's mistake never
ends in a traceback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import evomerge
from evomerge.config import CONF, UNNAMED, SearchConfig, register
from evomerge.errors import EvomergeError
from evomerge.names import nearest

VERBS = ("search",)
OPEN_SETTINGS = ("space.bounds.", "space.frozen.", "objective.weights.", "fitness.tasks.", "model.experts.")
"""Settings whose next part is a name that the user chooses."""
OWN_CONFIGURATION = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")
"""Flags of Hydra that add settings files of the user's."""
HELP = f"""evomerge {evomerge.__version__}: finds the coefficients with which fine-tuned experts of one base are merged.

usage: evomerge search [-m] [setting=value ...]

  evomerge search experiment=smoke                     a complete search on tiny models, in seconds, without a download
  evomerge search model=text space=layer budget=200    on the suite of `python scripts/build_suite.py text`
  evomerge search model.base=path/to/base 'model.experts=[path/to/a,path/to/b]' \\
      'fitness.tasks={{a: {{items: a.jsonl}}, b: {{items: b.jsonl}}}}'    on your own models
  evomerge search -m model=text searcher=cmaes,tpe seed=1,2,3          a sweep over searches

The same command again resumes, or goes on when budget is higher. `evomerge search --help` lists every setting.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: those after the program's name; `sys.argv` when left out.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if given[0] == "--version":
        print(evomerge.__version__)
        return
    verb, *rest = given
    if verb not in VERBS:
        near = nearest(verb, VERBS)
        if "=" in verb:
            near = ["search"]
        _fail(
            f"evomerge has no verb '{verb}'."
            + (f" Did you mean 'evomerge {near[0]}'?" if near else f" There is {', '.join(VERBS)}.")
        )
    rest = [part for argument in rest for part in _spelled_out(argument)]
    register()
    try:
        if not any(argument.split("=")[0] in OWN_CONFIGURATION for argument in rest):  # else Hydra knows more names
            check_settings(rest)
    except EvomergeError as error:
        _fail(str(error))
    sys.path.insert(0, os.getcwd())  # a fitness of the user's own is found from here, as with `python -m`
    sys.argv = ["evomerge search", *rest]
    _application()


def check_settings(arguments: Sequence[str]) -> None:
    """Hold settings against those that exist, before Hydra does, for a message with the near match.

    Raises:
        EvomergeError: a name or a choice does not exist, or is not written in Hydra's grammar.
    """
    settings = [argument for argument in arguments if not argument.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(settings)
    except HydraException as error:
        raise EvomergeError(
            f"{str(error).splitlines()[0]} Settings are name=value; put brackets, braces and spaces in quotes: "
            f"'model.experts=[a,b]'."
        ) from error
    known = sorted(set(_known_settings()))
    for override in parsed:
        if not override.is_add() and not override.key_or_group.startswith("hydra"):
            _check_setting(override, known)
    if not {"-m", "--multirun", "--help", "-h"} & set(arguments) and not any("hydra" in flag for flag in arguments):
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                compose("search", overrides=list(settings))
        except (HydraException, OmegaConfBaseException) as error:
            what, *rest = str(error.__cause__ or error).splitlines()
            key = next((f" ({line.split(':')[1].strip()})" for line in rest if "full_key" in line), "")
            hint = " To sweep, add -m." if what.startswith("Ambiguous") else ""
            raise EvomergeError(f"{what}{key}.{hint} `evomerge search --help` shows every setting.") from error


def _check_setting(override: Override, known: Sequence[str]) -> None:
    key = override.key_or_group
    if override.is_sweep_override() and key in UNNAMED:
        raise EvomergeError(f"{key} cannot be swept, since its runs would share one directory: sweep other settings.")
    if key not in known and not key.startswith(OPEN_SETTINGS):
        near = nearest(key, known, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else "`evomerge search --help` lists all settings."
        raise EvomergeError(f"There is no setting '{key}'. {hint}")
    choices = sorted(file.stem for file in (CONF / key).glob("[!_]*.yaml"))
    values = override.sweep_string_iterator() if override.is_sweep_override() else [override.value()]
    for value in values if choices else ():
        if value is not None and value not in choices:
            near = nearest(str(value), choices)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise EvomergeError(f"There is no {key} '{value}'.{hint} There is {', '.join(choices)}.")


def _known_settings() -> Iterator[str]:
    """Yield the dotted name of every setting in the schema and in any choice of any group."""
    yield from _flatten(OmegaConf.to_container(OmegaConf.structured(SearchConfig)), "")
    for file in sorted(CONF.glob("*/*.yaml")):
        yield file.parent.name
        content = yaml.safe_load(file.read_text()) or {}
        yield from _flatten({k: v for k, v in content.items() if k != "defaults"}, f"{file.parent.name}.")


def _flatten(node: object, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from _flatten(value, f"{prefix}{name}.")


def _spelled_out(argument: str) -> list[str]:
    """Return `space=blocks:6` as `space=blocks space.n=6`, and a new name below an open setting as Hydra wants it."""
    match = re.fullmatch(r"space=(blocks|chunk):(\d+)", argument)
    if match:
        return [f"space={match[1]}", f"space.n={match[2]}"]
    return [f"++{argument}" if argument.startswith(OPEN_SETTINGS) else argument]


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="search")
def _application(config: SearchConfig) -> None:
    from evomerge.progress import Reporter  # torch and transformers take seconds to import; `--help` needs neither
    from evomerge.run import run_search

    sweep = HydraConfig.get().mode is RunMode.MULTIRUN
    try:
        if run_search(config, Path(HydraConfig.get().runtime.output_dir), Reporter()) is None:
            raise SystemExit(0)  # asked to stop: a sweep must not go on with its next run
    except EvomergeError as error:
        _leave_no_trace(Path(HydraConfig.get().runtime.output_dir))
        if not sweep:
            _fail(str(error))
        print(f"evomerge: {error}", file=sys.stderr)  # one bad run of a sweep costs one run; the table shows it
    except KeyboardInterrupt:
        _fail("Stopped. What is in the log is safe: run the same command again to go on.", status=130)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = "There is no room left on the disk" if full else error.strerror or str(error)
        _fail(f"{what}{where}. Nothing of the search is lost: mend it and run the same command again.")


def _leave_no_trace(directory: Path) -> None:
    """Remove a run directory in which nothing has happened: Hydra made it before the settings were found wrong."""
    if not (directory / "trials.jsonl").exists():
        (directory / "evomerge.log").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something else
            directory.rmdir()


def _fail(message: str, status: int = 2) -> NoReturn:
    print(f"evomerge: {message}", file=sys.stderr)
    raise SystemExit(status)
