"""The setting `method`: what is refused of its settings and of the number of experts, before models are read; and a
search by each method, from its settings to the merged model.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import evomerge as em
from evomerge.cli import merge
from evomerge.common.errors import ConfigError
from evomerge.common.progress import Silent
from evomerge.models.weight_files import weight_files
from evomerge.models.weights import read_tensors
from evomerge.recipes.recipe import Recipe
from evomerge.runs.build import build_problem
from evomerge.runs.config import check, plain
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.runs.targets import choices_of
from tests.kit.helpers import compose
from tests.kit.merging import live_merge
from tests.processes.api_search import Net, tuned

TAKES = {"slerp": ["trees"], "nuslerp": ["trees", "metals"]}


@pytest.mark.parametrize(
    ("method", "setting", "message"),
    [
        ("ties", "elect=none", r"method\.elect=none is not known: write one of sum, count\."),
        ("ties", "elect=null", r"method\.elect=None is not known: write one of sum, count\."),
        ("dare_ties", "elect=1", r"method\.elect=1 is not known: write one of sum, count\."),
        ("della", "elect=mean", r"method\.elect=mean is not known: write one of sum, count, null\."),
        ("breadcrumbs", "elect=[sum]", r"method\.elect=\['sum'\] is not known: write one of sum, count, null\."),
        ("ties", "over=model", r"method\.over=model is not known: write one of tensor, group\."),
        ("breadcrumbs", "over=row", r"method\.over=row is not known: write one of tensor, group\."),
        ("breadcrumbs", "gamma=1", r"method\.gamma=1 is no share: write a number from 0, below 1\."),
        ("breadcrumbs", "gamma=little", r"method\.gamma=little is no float"),
        ("della", "epsilon=-0.1", r"method\.epsilon=-0.1 is no share"),
        ("della", "epsilon=true", r"method\.epsilon=True is no float"),
        ("dare", "seed=0.5", r"method\.seed=0.5 is no int"),
        ("dare", "rescale=1", r"method\.rescale=1 is no bool"),
        ("ties", "normalize=yes", r"method\.normalize=yes is no bool"),
        ("nuslerp", "deltas=0", r"method\.deltas=0 is no bool"),
    ],
)
def test_settings_of_the_wrong_kind(method: str, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(plain(compose("model=pico", f"method={method}", f"method.{setting}")))


@pytest.mark.parametrize(
    ("method", "experts", "message"),
    [
        ("slerp", "[x,y]", r"slerp merges the base and one expert, and there are 2 \(x, y\): name 1 in model\.experts"),
        ("nuslerp", "[x]", r"nuslerp merges 2 experts, and there is 1 \(x\): name 2 in model\.experts, or .*linear"),
        ("nuslerp", "{a: x, b: y, c: z}", r"nuslerp merges 2 experts, and there are 3 \(a, b, c\)"),
    ],
)
def test_another_number_of_experts_is_refused_before_any_is_looked_for(method: str, experts: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(plain(compose("model.name=own", "model.base=b", f"model.experts={experts}", f"method={method}")))


@pytest.mark.parametrize("method", TAKES)
def test_a_suite_with_another_number_of_experts(method: str, pico_suite: Suite) -> None:
    with pytest.raises(ConfigError, match=rf"{method} merges .* there are 3 \(animals, trees, metals\)"):
        build_problem(plain(compose("model=pico", f"model.suite={pico_suite.path}", f"method={method}")), Silent())


def test_a_candidate_with_another_number_of_experts() -> None:
    net = Net()
    family = em.Family(net, red=tuned(net, 1), blue=tuned(net, 2))
    with pytest.raises(ConfigError, match=r"slerp merges the base and one expert, and there are 2 \(red, blue\)"):
        em.Candidate(family, method="slerp")
    with pytest.raises(ConfigError, match=r"method\.elect=many is not known"):
        em.Candidate(family, method={"_target_": "evomerge.merging.methods.Ties", "elect": "many"})


@pytest.mark.parametrize("method", [name for name in choices_of("method") if name != "ties_frozen"])
def test_a_search_by_each_method(method: str, pico_suite: Suite, tmp_path: Path, monkeypatch) -> None:
    """It begins at constants, has a winner, and its recipe is merged to the bits that the live model had."""
    monkeypatch.chdir(tmp_path)
    experts = f"model.experts=[{','.join(TAKES.get(method, ['trees', 'animals', 'metals']))}]"
    sizes = ("fitness.items=12", "fitness.select_items=12", "fitness.report_items=12", "budget=8")
    given = (f"model.suite={pico_suite.path}", experts, "model.device=cpu", "searcher.popsize=3", *sizes)
    summary = run_search(compose("model=pico", f"method={method}", *given), Path("run"), Silent())
    assert summary is not None
    assert summary.failed == 0
    recipe = Recipe.from_yaml(Path("run/recipe.yaml").read_text())
    assert recipe.method["name"] == method
    merge.main(["run/recipe.yaml", "merged"])
    sources = {name: Path(one.path) for name, one in recipe.experts.items()}
    scored = live_merge(recipe, Path(recipe.base.path), sources, tmp_path / "cache")
    merged = read_tensors(weight_files(Path("merged")))
    assert all(torch.isfinite(tensor).all() for tensor in merged.values())
    assert all(torch.equal(merged[name], tensor) for name, tensor in scored.items())
