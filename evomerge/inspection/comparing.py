"""Methods held against each other from Python: the comparison of `evomerge compare`, of a family that is open.

In: a `Family`, a fitness, tasks, and the names of methods. Out: `Standings`, which show themselves as a table. It has
the same settings, log and memory as the command.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.common.directories import TemporaryDirectory
from evomerge.common.forms import checked
from evomerge.common.progress import WRITTEN, Progress, Silent
from evomerge.inspection.family import Family
from evomerge.runs.asked import composed, fitness_of, tasks_of
from evomerge.runs.choices import Choice, load_choice
from evomerge.runs.compare import run_comparison
from evomerge.runs.config import plain
from evomerge.runs.contestants import read_compared
from evomerge.runs.given import Given
from evomerge.search.stopping import Interrupt, Stopped
from evomerge.selection.standings import Standings

USUAL = {"method": "linear", "space": "layer", "searcher": "cmaes", "loss": "cross_entropy"}
"""What a search would have and a comparison does without: settings are whole all the same."""


@checked(
    family="a Family",
    methods="['ties', 'tsvm', ['trim', 'elect'], {'dare': {'density': 0.3}}, 'their.yml'] or None",
    constants="[0.4, 0.7, 1.0] or None",
    run="'runs/compared' or None",
    seed="1",
    select_items="600 or None",
    report_items="900 or None",
    aggregate="'mean' or 'worst'",
    weights="{'mood': 2, 'topic': 1} or None",
    time_limit="900, 'auto' or None",
    progress=WRITTEN,
)
def compare(
    family: Family,
    fitness: str | Choice | Callable[..., Any],
    tasks: Mapping[str, Any],
    *,
    methods: Sequence[Any] | None = None,
    constants: Sequence[float] | None = None,
    run: str | Path | None = None,
    seed: int = 1,
    select_items: int | None = None,
    report_items: int | None = None,
    aggregate: str = "mean",
    weights: Mapping[str, float] | None = None,
    time_limit: float | str | None = "auto",
    progress: Progress | None = None,
) -> Standings:
    """Run methods and transforms, each with one weight of its own for everything; test the best of them.

    Args:
        family: base and experts; the base is in the live model afterwards.
        fitness: as `search` takes it.
        tasks: as `search` takes them.
        methods: who takes part, as `compare.methods` has them; None for all there is.
        constants: the weights among which each chooses on the select items; None for those of conf/compare.yaml.
        run: the directory of the comparison: called again with the same arguments, it goes on where it was. None: a
            temporary one.
        seed: of random masks.
        select_items: how many decide the order; None for every one.
        report_items: how many the best are tested on; None for every one.
        aggregate: mean, or worst (task).
        weights: of tasks in the mean.
        time_limit: seconds for a candidate; auto is 100 times the base's; None for none.
        progress: is told what goes on.

    Returns:
        The standings: `rows`, the best on the select items first, and `tested`, the five that were held against task
        arithmetic on the report items; printed, they are a table.

    Raises:
        EvomergeError: something is wrong with what was given; nothing of a comparison is lost.
        Stopped: it was asked to stop; the same call goes on, if it has a directory.
    """
    chosen, own = fitness_of(fitness)
    named, held = tasks_of(tasks)
    config = {group: load_choice(group, name) for group, name in USUAL.items()}
    config["fitness"] = {**chosen, "tasks": named, "select_items": select_items, "report_items": report_items}
    config["objective"] = {"aggregate": aggregate, "weights": weights and dict(weights)}
    config |= {"model": family.opened.settings, "seed": seed, "time_limit": time_limit}
    given = {"methods": methods, "constants": constants}
    compared = read_compared({name: [*value] for name, value in given.items() if value is not None})
    kept = TemporaryDirectory() if run is None else None
    directory, interrupt = kept.path if kept else Path(str(run)), Interrupt()
    known = Given(family.opened, None, own, held)
    found = run_comparison(plain(composed(config)), compared, directory, progress or Silent(), interrupt, None, known)
    if found is None:
        if interrupt.by is not None:  # the log is in order: now the signal does what it does in this program
            signal.raise_signal(interrupt.by)
        raise Stopped(f"The comparison was asked to stop. Call it again with run={str(run)!r} to go on.")
    return found
