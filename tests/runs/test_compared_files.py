"""The YAML of each method of mergekit's takes part in a comparison, as the merge that `evomerge merge` makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from evomerge.common.progress import Silent
from evomerge.recipes.mergekit.methods import PEERS, Peer
from evomerge.recipes.mergekit.read import read_mergekit
from evomerge.recipes.model import write_model
from evomerge.runs.build import build_problem
from evomerge.runs.compare import run_comparison
from evomerge.runs.contestants import read_compared
from evomerge.runs.suite import Suite
from evomerge.selection.evaluation import evaluate
from evomerge.selection.named import Model
from tests.kit.evaluations import elsewhere, settings_of, sources_of

EXPERTS = ["animals", "trees", "metals"]
TAKES = {"slerp": 1, "nuslerp": 2}
"""How many experts a method merges, where that is not any number."""
EACH = ("weight: [0.3, 0.9]", "weight: {filter: attention, value: 0.8}, density: 0.6", "weight: 0.5, density: 0.3")
"""The numbers of each model."""


def yaml_of(peer: Peer, suite: Path) -> str:
    """A YAML with other numbers for each model, layer and module, where the method has any."""
    names = EXPERTS[: TAKES.get(peer.name, len(EXPERTS))]
    each = EACH if peer.each else ("",) * len(EACH)
    models = [
        f"- {{model: {suite}/experts/{n}, parameters: {{{given}}}}}" for n, given in zip(names, each, strict=False)
    ]
    shared = {"slerp": "t: [0.2, 0.6]", "sce": "select_topk: 0.4"}.get(peer.name, "weight: 0.4" if peer.each else "")
    head = [f"merge_method: {peer.name}", *([f"base_model: {suite}/base"] if peer.base != "listed" else [])]
    return "\n".join([*head, f"parameters: {{{shared}}}", "models:", *models, ""])


def merge(file: Path, out: Path) -> Path:
    """What `evomerge merge` writes for a YAML."""
    return write_model(
        read_mergekit(file.read_text(), file.parent, Silent()).recipe, file.parent, out, reporter=Silent()
    )


@pytest.fixture(scope="module")
def scores(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """By method: what a comparison says of its YAML, and the score of the model that is merged from it."""
    path, found = tmp_path_factory.mktemp("compared"), dict[str, tuple[Any, Any]]()
    for experts in (1, 2, 3):
        peers = [peer.name for peer in PEERS if TAKES.get(peer.name, 3) == experts]
        for peer in PEERS:
            if peer.name in peers:
                (path / f"{peer.name}.yml").write_text(yaml_of(peer, pico_suite.path))
        metric = "fitness.report_metric=log_probability"  # which two models do not have in common
        settings = settings_of(*sources_of(pico_suite, path), metric, f"model.experts=[{','.join(EXPERTS[:experts])}]")
        compared = read_compared({"methods": [str(path / f"{name}.yml") for name in peers]})
        standings = run_comparison(settings, compared, path / f"of {experts}", Silent())
        assert standings
        problem = build_problem(elsewhere(settings, path / "other"), Silent())  # which has nothing remembered
        merged = {name: Model("directory", merge(path / f"{name}.yml", path / name)) for name in peers}
        told = evaluate(problem, merged, "select", Silent()).models
        rows = {row.name: row.select for row in standings.rows}
        found |= {name: (rows[f"{name}.yml"], told[name]) for name in peers}
    return found


@pytest.mark.parametrize("name", [peer.name for peer in PEERS])
def test_a_yaml_of_each_method_is_the_merge_that_it_stands_for(scores: dict[str, tuple[Any, Any]], name: str) -> None:
    compared, merged = scores[name]
    assert compared.mean == pytest.approx(merged.mean, rel=1e-5)  # a model in float32 is rounded once more
    assert (
        sum(other[0].mean == pytest.approx(compared.mean, rel=1e-5) for other in scores.values()) == 1
    )  # each is a merge of its own


def test_one_model_is_taken_out_of_a_uniform_soup(pico_suite: Suite, tmp_path: Path) -> None:
    """(S θ - θ_i) / (S - 1), as a merge of the soup and that model alone."""
    alike = "".join(f"- {{model: {pico_suite.path}/experts/{name}, parameters: {{weight: 1}}}}\n" for name in EXPERTS)
    *others, _ = alike.splitlines(keepends=True)
    texts = {
        "soup": f"merge_method: linear\ndtype: float32\nmodels:\n{alike}",
        "without": f"merge_method: task_arithmetic\nbase_model: {tmp_path}/soup\ndtype: float32\nmodels:\n"
        f"- {{model: {pico_suite.path}/experts/{EXPERTS[-1]}, parameters: {{weight: -0.5}}}}\n",
        "others": f"merge_method: linear\ndtype: float32\nmodels:\n{''.join(others)}",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yml").write_text(text)
        merge(tmp_path / f"{name}.yml", tmp_path / name)
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("without", "others"))
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert_close(found[name], tensor, rtol=0, atol=1e-6)
