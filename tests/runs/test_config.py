"""Settings: every YAML composes and makes its object, names of runs, and what is refused before anything is loaded."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from evomerge.cli.settings import check_settings, compose_settings, spelled_out
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.runs.config import CONF, build, check, plain, run_name
from tests.kit.helpers import box, compose

CHOICES = [(file.parent.name, file.stem) for file in sorted(CONF.glob("*/[!_]*.yaml"))]
SEARCHED = ("method", "transform", "space", "searcher", "fitness", "loss")
"""Groups of which test_identity_settings.py makes a search of every choice."""
OTHERS = [(group, choice) for group, choice in CHOICES if group not in SEARCHED]
DEFAULTS = {
    "model": "directories",
    "method": "linear",
    "space": "layer",
    "searcher": "cmaes",
    "fitness": "classification",
}


def test_the_tests_compose_as_hydra_does() -> None:
    given = ["experiment=smoke", "method=ties", "method.elect=count", "+fitness.new=3", "budget=7", "~tracker"]
    short = compose(*given)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert OmegaConf.to_yaml(short) == OmegaConf.to_yaml(hydra_compose("search", overrides=given))


@pytest.mark.parametrize(("group", "choice"), OTHERS, ids=["/".join(choice) for choice in OTHERS])
def test_every_choice_composes(group: str, choice: str) -> None:
    needed = ["searcher=random"] if (group, choice) == ("objective", "pareto") else []
    settings_ = plain(compose(f"{group}={choice}", *needed))
    check(settings_)
    assert settings_["budget"] >= 1


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "searcher"])
def test_every_searcher_is_made_from_its_yaml(choice: str) -> None:
    plain: Any = OmegaConf.to_container(compose(f"searcher={choice}", "space=model").searcher)
    space = box(1 if choice == "grid" else 3)
    needed = {"lines": {"objectives": 2}, "topk": {"gram": np.eye(3)[None]}}.get(choice, {})
    made = build(plain, "searcher", space=space, start=space.start({}), seed=1, **needed)
    assert made.ask().points.shape[1] == space.dim


@pytest.mark.parametrize(
    "choice", [choice for group, choice in CHOICES if group == "method" and choice != "ties_frozen"]
)
def test_every_method_is_made_from_its_yaml(choice: str) -> None:
    method = build(OmegaConf.to_container(compose(f"method={choice}").method), "method")  # pyright: ignore[reportArgumentType]
    assert method.name == choice


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        (["sercher=tpe"], "There is no setting 'sercher'. Did you mean searcher"),
        (["searcher.popsiz=3"], "Did you mean searcher.popsize"),
        (["searcher=tp"], "There is no searcher 'tp'. Did you mean tpe"),
        (["-m", "searcher=cmaes,tppe"], "There is no searcher 'tppe'"),
        (["budge=3"], "Did you mean budget"),
        (["budget.hour=3"], "Did you mean budget.hours"),
        (["-m", "budget_hours=1,2"], "budget_hours cannot be swept"),
        (["layer"], "Settings are name=value"),
        (
            ["searcher=null"],
            "searcher=null is none of cmaes, gradient, greedy, grid, hybrid, lines, map, mocma, nsga2",
        ),
        (["loss=null"], "write one of them, or leave loss out"),
        (["experiment=null"], "or leave experiment out"),
        (["model.experts=[a,b"], "brackets"),
    ],
)
def test_misspelt_settings_get_the_near_match(settings_: list[str], message: str) -> None:
    with pytest.raises(EvomergeError) as caught:
        check_settings(settings_)
    assert message in str(caught.value)


def test_right_settings_pass() -> None:
    check_settings(
        [
            "-m",
            "searcher=cmaes,tpe",
            "seed=1,2,3",
            "space=blocks",
            "space.n=3",
            "hydra.run.dir=x",
            "+new=1",
            "fitness.tasks={a: b.jsonl}",
        ]
    )
    check_settings(
        ["space.frozen={weight/encoder.layer.0/*: 0.4}", "experiment=smoke", "++objective.weights.r8=2", "model=text"]
    )


@pytest.mark.parametrize(
    ("group", "override", "message"),
    [
        ("searcher", "searcher.sigma=wide", "searcher.sigma=wide is no float"),
        ("searcher", "searcher.popsize=many", "searcher.popsize=many is no int or null"),
        ("fitness", "fitness.batch_size=1.5", "fitness.batch_size=1.5 is no int"),
        ("searcher", "searcher._target_=evomerge.searchers.cmaes.CmaEss", "names no class that can be used"),
        ("searcher", "searcher._target_=os.system", "cannot be made|has no class|no int"),
    ],
)
def test_wrong_types_are_refused(group: str, override: str, message: str) -> None:
    plain: Any = OmegaConf.to_container(compose(override), resolve=True)

    def make() -> None:
        check(plain)
        build(plain[group], group, space=box(3), start=box(3).start({}), seed=1)

    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("group", ["method", "searcher", "fitness", "loss"])
def test_a_search_without_one_of_its_parts(group: str) -> None:
    plain: Any = OmegaConf.to_container(compose(), resolve=True)
    plain[group] = None
    with pytest.raises(ConfigError, match=rf"{group}=null leaves the search without one: write {group}= and one of"):
        check(plain)


def test_short_form_of_a_space() -> None:
    assert spelled_out("space=blocks:6") == ["space=blocks", "space.n=6"]
    assert spelled_out("space=layer") == ["space=layer"]


@pytest.mark.parametrize("sweep", [False, True])
def test_budgets_by_what_they_count(sweep: bool) -> None:
    for name, setting in (("hours", "budget_hours"), ("items", "budget_items"), ("candidates", "budget")):
        assert spelled_out(f"budget.{name}=8", sweep) == [f"{setting}=8"]
    assert spelled_out("budget=8", sweep) == ["budget=8"]
    assert plain(compose_settings(["budget.hours=0.5"]))["budget_hours"] == 0.5
    with pytest.raises(EvomergeError, match=r"budget_hours=soon is no number: write one, such as budget_hours=0\.5"):
        compose_settings(["budget.hours=soon"])
    assert spelled_out("objective.weights.r8=2") == ["++objective.weights.r8=2"]


def test_run_names_are_readable() -> None:
    assert run_name(DEFAULTS, ["model=text", "seed=2", "budget=400", "budget_hours=8"]) == "text-linear-layer-cmaes-s2"
    assert (
        run_name({**DEFAULTS, "experiment": "smoke", "model": "pico"}, ["experiment=smoke"])
        == "smoke-pico-linear-layer-cmaes"
    )
    assert run_name(DEFAULTS, ["model=text", "space=blocks", "space.n=6"]) == "text-linear-blocks-cmaes-space.n-6"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["seed", "fitness.items", "model.base", "space.frozen"]), st.text(max_size=50)),
        max_size=4,
        unique_by=lambda p: p[0],
    )
)
def test_run_names_are_file_names_and_do_not_depend_on_order(pairs: list[tuple[str, str]]) -> None:
    overrides = [f"{name}={value}" for name, value in pairs]
    name = run_name(DEFAULTS, overrides)
    assert "/" not in name
    assert len(name) < 250
    assert all(run_name(DEFAULTS, list(order)) == name for order in itertools.permutations(overrides))


def test_other_settings_have_other_names() -> None:
    overrides = [
        [],
        ["seed=2"],
        ["fitness.items=64"],
        ["model.base=/a/b"],
        ["model.base=/a/c"],
        ["space=model"],
        ["searcher=tpe"],
        ["space.n=2"],
        ["searcher.n=2"],
    ]
    assert len({run_name(DEFAULTS, o) for o in overrides}) == len(overrides)
