"""The setting `transform`: every form that it may be written in, what is refused of it, and searches with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evomerge.cli.settings import check_settings, spelled_out
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.common.progress import Silent
from evomerge.recipes.model import write_model
from evomerge.recipes.recipe import Recipe
from evomerge.runs.config import check, plain, register, run_name
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.runs.transforms import described, in_order, make_chain, resolved
from tests.kit.helpers import compose

TIES = {"_target_": "evomerge.transforms.ties.TrimElect", "density": 0.2}
SCALE = {"_target_": "tests.kit.transforms.Scale"}


@pytest.fixture(autouse=True)
def registered() -> None:
    register()


def chain(*arguments: str) -> list[dict[str, Any]]:
    """The chain that the command makes of its arguments."""
    given = [part for argument in ("model=pico", *arguments) for part in spelled_out(argument)]
    check_settings(given)
    return plain(compose(*given))["transform"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], []),
        (["transform=none"], []),
        (["transform=ties"], [TIES]),
        (["transform=[ties]"], [TIES]),
        (["transform=ties", "transform.ties.density=0.3"], [{**TIES, "density": 0.3}]),
        (["transform=ties", "transform.ties.only=[encoder.*]"], [{**TIES, "only": ["encoder.*"]}]),
        (
            ["transform=ties", "transform.ties.only=[encoder.*]", "transform.ties.rest=average"],
            [{**TIES, "only": ["encoder.*"], "rest": "average"}],
        ),
        (["method=ties_frozen"], [TIES]),
        (["method=ties_frozen", "method.transform.density=0.4"], [{**TIES, "density": 0.4}]),
        (["experiment=adamerging_pp"], [TIES]),
        (["transform=[{ties: {density: 0.3}}]"], [{**TIES, "density": 0.3}]),
        (['transform=[{ties: {only: ["*.attention.*"]}}, ties]'], [{**TIES, "only": ["*.attention.*"]}, TIES]),
        (["transform=[{ties: {only: [*.attention.*]}}]"], [{**TIES, "only": ["*.attention.*"]}]),
        (["transform=[ties,ties]"], [TIES, TIES]),
        (["transform={chain: [ties, {_target_: tests.kit.transforms.Scale}]}"], [TIES, SCALE]),
        (["transform=[{_target_: tests.kit.transforms.Scale}, ties]"], [SCALE, TIES]),
        (["transform={_target_: tests.kit.transforms.Scale}"], [SCALE]),
    ],
)
def test_forms_of_the_setting(arguments: list[str], expected: list[dict[str, Any]]) -> None:
    assert chain(*arguments) == expected
    assert resolved(expected) == expected  # as a run directory holds it


def test_names_of_files_compose_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Hydra makes of `transform=[mine,ties]`, where there is a file for each."""
    composed = {"mine": {**SCALE, "by": 3}, "ties": {**TIES, "only": None, "rest": "keep"}}
    assert resolved(composed) == [{**SCALE, "by": 3}, TIES]
    assert resolved(dict(reversed(composed.items()))) == [TIES, {**SCALE, "by": 3}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transform=tis"], "Unknown transform 'tis': did you mean 'ties'"),
        (["transform=[ties,{tis: {}}]"], "Unknown transform 'tis'"),
        (["transform=[{ties: 0.3}]"], r"transform\.ties=0\.3: write its settings, as in 'transform=\[\{ties"),
        (["transform=[{ties: {densty: 1}}]"], "Unknown setting of the transform ties 'densty': did you mean 'density'"),
        (["transform=[{ties: {density: abc}}]"], r"transform\.ties\.density=abc is no float"),
        (["transform=[{ties: {density: 2}}]"], "The transform ties has density=2"),
        (["transform=[{ties: {only: encoder.*}}]"], r"transform\.ties\.only=encoder\.\*: write a list"),
        (["transform={chain: [ties], ties: {}}"], r"transform\.chain stands beside transform\.ties"),
        (["transform={_target_: os.path.join}"], "is no transform: derive the class from evomerge.transforms.base"),
        (["transform={_target_: tests.kit.transforms.Skale}"], "names no class that can be used"),
        (
            ["transform={_target_: tests.kit.transforms.Learned}"],
            "needs labels, and evomerge gives a transform the task",
        ),
        (
            ["transform=ties", "method=ties"],
            "The method ties cannot have the transform ties: a transform makes rows",
        ),
        (["transform=ties", "method=dare_ties"], "The method dare_ties cannot have"),
        (["transform=ties", "method=ties_frozen"], "The method brings a transform, and transform= names another"),
        (["transform=ties", "transform.ties.densty=1"], r"Did you mean transform\.ties\.density"),
        (
            ["method._target_=tests.kit.transforms.Scale"],
            r"is no method of merging: it lacks variables, elementwise, linear\.",
        ),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    def checked() -> None:
        given = [part for argument in ("model=pico", *arguments) for part in spelled_out(argument)]
        check_settings(given)
        check(plain(compose(*given)))

    with pytest.raises(EvomergeError, match=message):
        checked()


@pytest.mark.parametrize(
    ("value", "jobs"),
    [
        ("ties,none", ["ties", "none"]),
        ("[ties],none", ["[ties]", "none"]),
        (
            "[{ties: {density: 0.3}}],[ties,ties],ties",
            ["{chain:[{ties:{density:0.3}}]}", "{chain:[ties,ties]}", "ties"],
        ),
    ],
)
def test_a_sweep_over_chains(value: str, jobs: list[str]) -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    check_settings(["-m", "model=pico", *(given := spelled_out(f"transform={value}", sweep=True))])
    parsed = OverridesParser.create().parse_overrides(given)
    found = [job for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]
    assert [list(job) for job in found] == [[f"transform={one}"] for one in jobs]
    for job in found:
        assert (
            resolved(plain(compose("model=pico", *job))["transform"]) == plain(compose("model=pico", *job))["transform"]
        )


def test_names_of_runs() -> None:
    choices = {"model": "pico", "method": "linear", "space": "layer", "searcher": "cmaes"}
    assert run_name(choices, []) == "pico-linear-layer-cmaes"
    assert run_name(choices | {"transform": "none"}, []) == "pico-linear-layer-cmaes"
    assert run_name(choices, ["method=ties_frozen"]) == "pico-ties_frozen-layer-cmaes"
    assert run_name(choices, ["transform=ties"]) == "pico-linear-transform-ties-layer-cmaes"
    assert run_name(choices, ["transform=[ties,mine]"]) == "pico-linear-transform-ties-mine-layer-cmaes"
    one, two = (run_name(choices, [f"transform={{chain: [{{ties: {{density: {d}}}}}]}}"]) for d in (0.2, 0.3))
    assert one != two


def test_the_identity_has_settings_patterns_order_and_foreign_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert described([TIES]) == [TIES]
    (mine,) = described([SCALE])
    assert mine == {**SCALE, "code": mine["code"]}
    assert len(mine["code"]) == 16


def test_settings_of_a_run_directory_stay_as_they_are() -> None:
    given = {"method": {"_target_": "evomerge.merging.methods.Linear"}, "transform": [{**TIES, "only": ["h"]}, SCALE]}
    assert in_order(given) == given
    assert [step.about()["name"] for step in make_chain(given["transform"])] == ["ties", "tests.kit.transforms.Scale"]
    with pytest.raises(ConfigError, match="transform=3 is no transform"):
        in_order({**given, "transform": 3})


@pytest.mark.parametrize(
    ("transform", "rows"),
    [
        ("[{_target_: tests.kit.transforms.Sum}]", ["all"]),
        (
            "[{ties: {density: 0.5, only: [encoder.*]}}, {_target_: tests.kit.transforms.Common, only: ['*dense*']}]",
            ["common", "animals", "trees", "metals"],
        ),
        ("[{trim: {scope: row}}, iso_cts]", ["common", "animals", "trees", "metals"]),
    ],
    ids=["one merged row", "a common row, in a chain of parts", "singular values"],
)
def test_a_search_over_rows_that_are_no_experts(
    pico_suite: Suite, tmp_path: Path, transform: str, rows: list[str]
) -> None:
    """The winner stands in the recipe row by row, and what is rebuilt of it is what was scored, to the bit."""
    given = [
        *(
            "experiment=smoke",
            f"model.suite={pico_suite.path}",
            f"model.cache={tmp_path / 'cache'}",
            "model.device=cpu",
        ),
        *("budget=6", "fitness.items=12", "fitness.select_items=12", "fitness.report_items=12"),
        *spelled_out(f"transform={transform}"),
    ]
    run = tmp_path / "run"
    assert run_search(compose(*given), run, Silent()) is not None
    header = json.loads((run / "trials.jsonl").read_text().splitlines()[0])
    assert {name.split("/")[2] for name in header["identity"]["space"]["coordinates"]} <= set(rows)
    recipe = Recipe.from_yaml((run / "recipe.yaml").read_text())
    assert recipe.rows == rows
    assert recipe.to_yaml() == (run / "recipe.yaml").read_text()
    assert all(list(row) == rows for row in recipe.coefficients["weight"].values())
    merged = load_file(write_model(recipe, run, tmp_path / "merged", reporter=Silent()) / "model.safetensors")
    problem = assembled(plain(compose(*given)))
    groups = [group.name for group in problem.space.groups]
    weights = [[recipe.coefficients["weight"][group][row] for row in rows] for group in groups]
    problem.merger.apply({"weight": torch.tensor(weights, dtype=torch.float64).numpy()})
    live = dict(problem.live.model.named_parameters())
    assert all(torch.equal(merged[name], live[name]) for name in problem.vectors.parameters)


def assembled(settings: dict[str, Any]) -> Any:
    from evomerge.runs.build import build_problem

    return build_problem(settings, Silent())
