"""What a verb does not need it does not load: torch and transformers cost seconds before anything is done."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.cli.main import main

HEAVY = ("torch", "transformers", "datasets", "lm_eval", "optuna", "cma", "hydra", "scipy.stats", "scipy.optimize")
DATA = (
    *("evomerge", "evomerge.trials", "evomerge.common.machine", "evomerge.common.directories", "evomerge.common.paths"),
    *("evomerge.common.progress", "evomerge.models.vocabulary", "evomerge.models.matching", "evomerge.cli.main"),
    *("evomerge.space.groups", "evomerge.space.coefficients", "evomerge.searchers.random", "evomerge.searchers.grid"),
    *("evomerge.searchers.gradient", "evomerge.searchers.hybrid", "evomerge.searchers.warm", "evomerge.search.loop"),
    *("evomerge.search.journal", "evomerge.search.log", "evomerge.search.stopping", "evomerge.fitness.base"),
    *("evomerge.fitness.items", "evomerge.fitness.objectives", "evomerge.fitness.sampling", "evomerge.fitness.custom"),
    *("evomerge.selection.statistics", "evomerge.selection.doubts", "evomerge.selection.remember"),
    *("evomerge.selection.standings", "evomerge.report.comparison"),
    *("evomerge.recipes.recipe", "evomerge.recipes.mergekit.write", "evomerge.runs.directory"),
)
"""Searchers but for the libraries of two of them, statistics, logs, items, recipes: all that is no model."""

VERBS = ("inspect", "evaluate", "compare", "merge", "export", "report")


def loaded_by(steps: list[str]) -> list[set[str]]:
    """Return which of the heavy libraries are there after each of some steps, taken in one process of their own."""
    told = f"import json, sys\nfor step in {steps!r}:\n    exec(step)\n"
    told += f"    print('\\n' + json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    found = [set(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(found) == len(steps)
    return found


def test_what_needs_no_torch_loads_none(tmp_path):
    """The help of verbs, the report of a finished run, and searchers, statistics, logs and recipes load nothing; the
    help of search, and its callbacks, load no more than Hydra.
    """
    run = shutil.copytree(Path(__file__).parents[1] / "data" / "run_0_2", tmp_path / "run")
    main_of = "import contextlib\nfrom evomerge.cli.main import main\n"
    steps = [f"{main_of}with contextlib.suppress(SystemExit): main(['{verb}', '--help'])" for verb in VERBS]
    steps += [f"main(['report', {str(run)!r}])", *(f"import {module}" for module in DATA)]
    for step, found in zip(steps, loaded_by(steps), strict=True):
        assert found == set(), step
    assert (run / "report.html").stat().st_size > 10_000
    assert loaded_by(["import evomerge.cli.search", "import evomerge.cli.callbacks"]) == [{"hydra"}] * 2


def test_only_the_command_itself_lets_threads_sleep(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that what stood there before comes back afterwards
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(sys, "argv", ["evomerge", "report", "--help"])
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    assert "OMP_WAIT_POLICY" not in os.environ
    with pytest.raises(SystemExit):
        main()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with pytest.raises(SystemExit):
        main()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
