"""The command that makes one run, also where it is one of a sweep: what `command.txt` shows, and what a launcher runs.

In: Hydra's own configuration of the run. Out: the words behind `evomerge`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.conf import HydraConf

from evomerge.cli.quoting import as_text, quoted
from evomerge.runs.config import CONF

SAFE = "Nothing of the search is lost: run the same command again to go on."


def shown_command(hydra: HydraConf) -> str | None:
    """Return the command that makes this run alone, for a person; None for one whose settings are those of another
    main file.
    """
    if hydra.job.config_name != "search" or str(CONF) not in {source.path for source in hydra.runtime.config_sources}:
        return None
    return shlex.join(["evomerge", *words_of(hydra, Path(hydra.runtime.output_dir))])


def words_of(hydra: HydraConf, directory: Path, more: Sequence[str] = ()) -> list[str]:
    """Return the words behind `evomerge` that make a run.

    Args:
        hydra: Hydra's configuration of the run.
        directory: of the run.
        more: further settings of Hydra's.
    """
    sources, here = hydra.runtime.config_sources, Path(hydra.runtime.cwd)
    own = [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]
    own += [f"--config-path={s.path}" for s in sources if s.provider == "main" and s.path != str(CONF)]
    own += [f"--config-name={hydra.job.config_name}"] * (hydra.job.config_name != "search")
    shown = str(directory.relative_to(here)) if directory.is_relative_to(here) else str(directory)
    where = f"hydra.run.dir={shown if re.search('[A-Za-z]', shown) else as_text(shown)}"
    return ["search", *own, *hydra.overrides.task, *more, quoted(where) or where]
