"""`evomerge search --evolve their.yml`: a configuration of mergekit-evolve, told of and searched.

In: the arguments of `evomerge search`, with options of mergekit-evolve among them. Out: settings in their place; what
was taken over, what is otherwise and why stands on standard output. Settings that are given beside the file win.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from evomerge.common.errors import ConfigError
from evomerge.runs.evolve.options import OPTIONS, SWITCHES, Options

FLAG = "--evolve"


def evolved(arguments: Sequence[str]) -> list[str]:
    """Return arguments with the settings of a configuration in place of its name, of which the user is told.

    Args:
        arguments: of `evomerge search`.

    Raises:
        ConfigError: there is no such file, it is no configuration, or it asks for what evomerge cannot do.
    """
    if not any(argument.partition("=")[0] == FLAG for argument in arguments):
        return list(arguments)
    from evomerge.cli.quoting import written
    from evomerge.runs.evolve.account import Account
    from evomerge.runs.evolve.configuration import read_evolve

    path, options, rest = _taken_apart(arguments)
    try:
        account: Account = read_evolve(path.read_text(encoding="utf-8"), options)
    except (ConfigError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    given = {argument.lstrip("+~").partition("=")[0] for argument in rest}
    kept = {name: value for name, value in account.settings.items() if not {name, name.partition(".")[0]} & given}
    settings = [*(f"{name}={written(value)}" for name, value in kept.items()), *rest]
    _show(path, [[line.theirs, line.ours or "-", line.why] for line in account.lines])
    print(f"the same as: {shlex.join(['evomerge', 'search', *settings])}\n", flush=True)
    return settings


def _taken_apart(arguments: Sequence[str]) -> tuple[Path, Options, list[str]]:
    """Return the file, the options of mergekit-evolve, and what is left."""
    path, given, rest, left = "", dict[str, str](), list[str](), list(arguments)
    while left:
        argument = left.pop(0)
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
        if flag != FLAG and not (flag.startswith("--") and name in OPTIONS):
            rest.append(argument)
        elif name in SWITCHES:
            given[name] = "off" if flag.startswith("--no-") else ""
        elif not (value if equals else left):
            raise ConfigError(f"{flag} needs a value, such as {FLAG} their.yml or --max-fevals 100.")
        elif flag == FLAG:
            path = value or left.pop(0)
        else:
            given[name] = value or left.pop(0)
    return Path(path), Options(given), rest


def _show(path: Path, lines: Sequence[Sequence[str]]) -> None:
    """Print the account as a table."""
    from rich.console import Console
    from rich.table import Table

    from evomerge.cli.progress import PIPE_WIDTH

    table = Table()
    for column in ("mergekit-evolve", "evomerge", "what is otherwise, and why"):
        table.add_column(column, overflow="fold")
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    for line in lines:
        table.add_row(*line)
    console.print(f"{path} as a search", style="bold", soft_wrap=True)
    console.print(table)
