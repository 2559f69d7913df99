"""A searcher, a fitness, a method and a transform of somebody else's package, from the command to the merged model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from evomerge.cli import merge, report, search
from evomerge.common import code
from evomerge.common.errors import ConfigError
from evomerge.recipes.catalog import make_method
from evomerge.recipes.recipe import Recipe
from evomerge.runs.suite import Suite
from tests.kit import outside

CONF = Path(outside.__file__).parent / "conf"
Run = Callable[..., Path]


@pytest.fixture
def run(pico_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Search with settings of the package, in a directory of this name."""
    monkeypatch.chdir(tmp_path)
    own = [f"--config-dir={CONF}", "searcher=closer", "fitness=nearness", "start=0.4", "space=model"]
    models = ["model=pico", f"model.suite={pico_suite.path}", f"model.cache={tmp_path / 'cache'}", "model.device=cpu"]
    few = ["budget=5", "fitness.items=6", "fitness.select_items=6", "fitness.report_items=6"]

    def searched(directory: str, *overrides: str) -> Path:
        search.main([*models, *own, *few, *overrides, f"hydra.run.dir={directory}"])
        return tmp_path / directory

    return searched


def moved(suite: Suite, merged: Path) -> float:
    """How far the element that moved most is from the base."""
    base, other = (load_file(path / "model.safetensors") for path in (suite.base, merged))
    return max(float((other[name] - base[name]).abs().max()) for name in base)


def test_search_resume_report_and_merge(run: Run, pico_suite: Suite, tmp_path: Path) -> None:
    whole = run("whole", "method=limited")
    log, text = (whole / "trials.jsonl").read_bytes(), (whole / "recipe.yaml").read_text()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "trials.jsonl").write_bytes(log[: len(log) * 2 // 3])  # as a kill leaves it
    cut = run("cut", "method=limited")
    assert (cut / "trials.jsonl").read_bytes() == log
    assert (cut / "recipe.yaml").read_text() == text
    assert yaml.safe_load(text)["method"] == {"name": "tests.kit.outside.method.Limited", "limit": 0.005}
    report.main(["whole"])
    assert "nearness" in (whole / "report.html").read_text()
    merge.main(["whole/recipe.yaml", "merged"])
    assert moved(pico_suite, tmp_path / "merged") == pytest.approx(0.005, abs=1e-6)  # which some element reaches
    for name, message in (
        ("nowhere.at_all.Method", "nowhere.at_all.Method cannot be imported"),
        ("tests.kit.outside.fitness.Nearness", "tests.kit.outside.fitness.Nearness is no method"),
        ("shutil.rmtree", "shutil.rmtree is no method"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_method(Recipe.from_yaml(text.replace("tests.kit.outside.method.Limited", name)))


def test_a_transform_of_ones_own_makes_one_row(run: Run, pico_suite: Suite, tmp_path: Path) -> None:
    whole = run("whole", "transform=mean_row")
    recipe = Recipe.from_yaml((whole / "recipe.yaml").read_text())
    assert (recipe.row_names, [step["factor"] for step in recipe.transform]) == (["mean"], [2.0])
    merge.main(["whole/recipe.yaml", "merged"])
    assert moved(pico_suite, tmp_path / "merged") > 0


@pytest.mark.parametrize("part", ["searcher", "fitness", "method"])
def test_edited_code_is_another_search(part: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("one", "method=limited")
    edited = {"searcher": "Closer", "fitness": "Nearness", "method": "Limited"}[part]
    real = code.code_of

    def code_of(kind: type) -> str | None:
        return "edited" if kind.__name__ == edited else real(kind)

    for module in ("evomerge.runs.identity", "evomerge.runs.build", "evomerge.fitness.capabilities"):
        monkeypatch.setattr(f"{module}.code_of", code_of)
    with pytest.raises(SystemExit):
        run("one", "method=limited")
