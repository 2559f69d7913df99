"""The programs of examples/, and the notebook, as they stand there."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import evomerge as em
from tests.kit.language import save_language_family, write_task
from tests.processes import api_search

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_is_short_and_listed(program):
    assert 20 <= len(program.read_text().splitlines()) <= 62
    assert f"({program.name})" in (EXAMPLES / "README.md").read_text()


def test_two_classifiers_of_ones_own(pico_suite, tmp_path):
    module = example("classifiers")
    result = module.main(module.tiny(tmp_path, pico_suite), tmp_path / "merged")
    assert (tmp_path / "merged" / "heads" / "trees.safetensors").is_file()
    assert result.summary.winner.mean >= result.summary.base.mean


def test_a_module_that_is_no_transformer():
    summary = example("plain_module").main().summary
    assert summary.winner.mean > summary.base.mean
    assert summary.select.value >= max(summary.select.constants.values())


def test_a_language_model(tmp_path):
    family = save_language_family(tmp_path / "models")
    write_task(tmp_path / "tasks", "choice")
    main, experts = example("language_model").main, [str(family / name) for name in ("left", "right")]
    result = main(str(family / "base"), experts, [str(tmp_path / "tasks" / "choice.yaml")], tmp_path / "out", budget=4)
    assert (tmp_path / "out" / "merged" / "recipe.yaml").is_file()
    assert len(result.trials) == 4


def test_a_gradient(pico_suite):
    module = example("learn")
    candidate = em.Candidate(em.Family(pico_suite.base, pico_suite.experts), space="tensor")
    tasks = {name: {"items": str(task.items), "head": str(task.head)} for name, task in pico_suite.tasks.items()}
    assert any(trial.gradient for trial in module.by_search(candidate, tasks).trials)
    before, after = module.by_hand(candidate, {"input_ids": module.torch.tensor([[2, 7, 9, 4, 3]])})
    assert after < 0.5 * before


def test_ask_and_tell_by_hand():
    assert example("ask_and_tell").main() < 1e-3


def test_a_finished_run_is_loaded_and_plotted(tmp_path):
    pytest.importorskip("matplotlib")
    api_search.run(tmp_path / "run")
    example("look_back").main(tmp_path / "run", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_notebook_runs_from_top_to_bottom():
    """Its code cells, one after the other in one namespace; what a cell ends with is shown as a notebook shows it."""
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code")
    names: dict[str, Any] = {}
    shown = [_run("".join(cell["source"]), names) for cell in cells if cell["cell_type"] == "code"]
    assert sum("<table>" in text for text in shown) == 3
    names["folder"].cleanup()


def _run(source: str, names: dict[str, Any]) -> str:
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "notebook", "exec"), names)
    if not isinstance(last, ast.Expr):
        return ""
    value = eval(compile(ast.Expression(last.value), "notebook", "eval"), names)
    return value._repr_html_() if hasattr(value, "_repr_html_") else repr(value)
