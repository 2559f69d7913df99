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


def loaded_by(statements: str) -> set[str]:
    """Return which of the heavy libraries are there after statements in a process of their own."""
    script = f"{statements}\nimport json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_searchers_statistics_logs_and_recipes_load_no_torch():
    assert loaded_by("".join(f"import {module}\n" for module in DATA)) == set()


@pytest.mark.parametrize("module", ["evomerge.cli.search", "evomerge.cli.callbacks"])
def test_the_help_of_search_loads_no_more_than_hydra(module):
    assert loaded_by(f"import {module}") == {"hydra"}


@pytest.mark.parametrize("verb", ["inspect", "evaluate", "compare", "merge", "export", "report"])
def test_the_help_of_other_verbs_loads_nothing(verb):
    told = f"with contextlib.suppress(SystemExit): main(['{verb}', '--help'])"
    assert loaded_by(f"import contextlib\nfrom evomerge.cli.main import main\n{told}") == set()


def test_the_report_of_a_finished_run_loads_nothing(tmp_path):
    run = shutil.copytree(Path(__file__).parents[1] / "data" / "run_0_2", tmp_path / "run")
    assert loaded_by(f"from evomerge.cli.main import main\nmain(['report', {str(run)!r}])") == set()
    assert (run / "report.html").stat().st_size > 10_000


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
