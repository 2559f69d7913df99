"""Starts in closed form that need a fitness, and starts that are judged beside what is found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError
from evomerge.common.progress import Silent
from evomerge.problem import Problem
from evomerge.report.facts import RunFacts
from evomerge.runs.build import find_baselines, find_start, unscored
from evomerge.runs.closed_forms import check_untransformed
from evomerge.runs.directory import open_run
from evomerge.runs.outputs import show
from evomerge.runs.points import find_finalist
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.runs.table import starts_of
from evomerge.search.evaluators.splits import live_fitness
from evomerge.search.evaluators.units import Scored, Unit
from evomerge.selection.evaluation import Model, contender_of, evaluate
from evomerge.selection.named import model_of
from evomerge.selection.workers import Workers
from evomerge.space.coefficients import make_space
from tests.kit.evaluations import is_base, recipe_of, settings_of, sources_of, under
from tests.kit.helpers import compose


@pytest.fixture(scope="module")
def sources(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return sources_of(pico_suite, tmp_path_factory.mktemp("cache"))


def test_a_cocktail_weighs_experts_by_their_scores_on_search_items(sources: list[str], problem: Problem) -> None:
    settings = settings_of(*sources, "start={cocktail: {temperature: 2}}")
    found = find_start(settings, under(problem, settings), Reporter())
    assert found is not None
    assert is_base(problem)
    judged = settings_of(*sources, "fitness.report_metric=log_probability")
    models = {name: Model("expert", name) for name in problem.sources.experts}
    means = [row.mean for row in evaluate(under(problem, judged), models, "search", Reporter()).models.values()]
    shares = np.exp(np.array(means, dtype=float) / 2)
    np.testing.assert_allclose(found["weight"], np.tile(shares / shares.sum(), (len(problem.space.groups), 1)))


def test_starts_are_judged_beside_what_is_found(
    sources: list[str], problem: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They change nothing of the search itself; asked for later, the winner is chosen again."""
    alone = run_search(compose(*sources, "searcher=random", "budget=2", "start=0.1"), tmp_path, Reporter())
    log = (tmp_path / "trials.jsonl").read_bytes()
    given = compose(*sources, "searcher=random", "budget=2", "start=0.1", "baselines=[1/K,0.3,metagpt,{cocktail: {}}]")
    summary = run_search(given, tmp_path, Reporter())
    assert (tmp_path / "trials.jsonl").read_bytes() == log
    assert alone is not None
    assert summary is not None
    assert [one.name for one in RunFacts(open_run(tmp_path)).finalists] == list(summary.select.finalists)
    starts = {name for name in summary.select.finalists if name.startswith("start ")}
    assert starts == {"start 1/K", "start 0.3", "start metagpt", "start cocktail"}
    assert set(alone.select.finalists) == set(summary.select.finalists) - starts
    assert summary.select.value >= max(v for name in starts if (v := summary.select.finalists[name]) is not None)
    show(summary, tmp_path, Reporter())
    assert "on the select items: start 1/K 0." in capsys.readouterr().err
    settings = settings_of(*sources, "baselines=[metagpt]")
    (point,) = find_baselines(settings, problem, Reporter()).values()
    assert find_finalist(open_run(tmp_path), problem, "start metagpt").x == pytest.approx(point)


def test_recipes_and_merge_yamls_are_judged_by_the_names_of_their_files(
    sources: list[str],
    pico_suite: Suite,
    problem: Problem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each is the merge that its file says; a file that changed is scored again, and the same one is not. From another
    directory they are found where the search was started.
    """
    monkeypatch.chdir(tmp_path)
    own = problem.space.constant(0.25)
    own["weight"][1, 0] = 0.35
    (tmp_path / "own.yaml").write_text(recipe_of(problem, own).to_yaml())
    models = [f"- {{model: {path}, parameters: {{weight: 0.45}}}}" for path in pico_suite.experts.values()]
    theirs, text = tmp_path / "their.yml", "merge_method: task_arithmetic\nbase_model: {}\nmodels:\n{}\n"
    theirs.write_text(text.format(pico_suite.base, "\n".join(models)))
    names = ["start own.yaml", "start their.yml"]
    few = [*sources, "fitness.select_items=30"]  # of which nobody is dropped
    settings = settings_of(*few, "baselines=[own.yaml,their.yml]")
    points = find_baselines(settings, problem, Reporter())
    assert [*points] == names
    moved = problem.space.moves("weight")  # else no task vector is there
    np.testing.assert_allclose(problem.space.decode(points[names[0]])["weight"][moved], own["weight"][moved])
    np.testing.assert_allclose(problem.space.decode(points[names[1]])["weight"][moved], 0.45)
    assert "cannot express" not in capsys.readouterr().err

    given = compose(*few, "searcher=random", "budget=1", "start=0.1", f"baselines={settings['baselines']}")
    summary = run_search(given, tmp_path / "run", Reporter())
    assert summary is not None
    reached = [summary.select.finalists[name] for name in names]
    assert f"{names[1]} {reached[1]:.4f}" in starts_of(summary)[0]
    monkeypatch.chdir(pico_suite.path)
    point = find_finalist(open_run(tmp_path / "run"), problem, names[1])
    np.testing.assert_array_equal(point.x, points[names[1]])
    assert point.value == reached[1]
    monkeypatch.chdir(tmp_path)
    run_search(given, tmp_path / "run", Reporter())
    assert "This search is complete" in capsys.readouterr().err
    theirs.write_text(theirs.read_text().replace("0.45", "1.4"))
    with pytest.raises(ConfigError, match=r"their\.yml has changed since the run .* judged it"):
        find_finalist(open_run(tmp_path / "run"), problem, names[1])
    assert find_finalist(open_run(tmp_path / "run"), problem, names[0]).value == reached[0]
    other = run_search(given, tmp_path / "run", Reporter())
    assert "This search is complete" not in capsys.readouterr().err
    assert other is not None
    assert find_finalist(open_run(tmp_path / "run"), problem, names[1]).value == other.select.finalists[names[1]]
    assert [other.select.finalists[name] == value for name, value in zip(names, reached, strict=True)] == [True, False]
    judged = {name: Model("recipe", tmp_path / "own.yaml") for name in ("own",)} | {"c": Model("constant", 1.4)}
    scores = evaluate(under(problem, settings), judged, "select", Silent()).models
    assert reached[0] == pytest.approx(scores["own"].mean)
    with pytest.raises(ConfigError, match=r"baselines: start=.*their.yml: it merges by linear and the search by ties"):
        find_baselines(settings_of(*sources, "method=ties", f"baselines=[{theirs}]"), problem, Silent())


def test_a_recipe_of_another_method_is_no_baseline(sources: list[str], problem: Problem, tmp_path: Path) -> None:
    recipe = recipe_of(problem, problem.space.constant(0.25))
    (tmp_path / "own.yaml").write_text(replace(recipe, method={**recipe.method, "name": "ties"}).to_yaml())
    with pytest.raises(ConfigError, match=r"baselines: .*own.yaml gives numbers only, since the method"):
        find_baselines(settings_of(*sources, f"baselines=[{tmp_path / 'own.yaml'}]"), problem, Silent())


def test_a_recipe_of_finer_groups_is_said_to_be_averaged(
    sources: list[str], problem: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = problem.space.constant(0.25)
    own["weight"][1, 0] = 0.35
    (tmp_path / "own.yaml").write_text(recipe_of(problem, own).to_yaml())
    vectors = problem.vectors
    more: dict[str, Any] = {"zero": vectors.zero}
    space = make_space("model", vectors.parameters, list(problem.space.rows), problem.method.variables, **more)
    settings = settings_of(*sources, f"baselines=[{tmp_path / 'own.yaml'}]")
    find_baselines(settings, replace(problem, space=space), Reporter())
    assert "own.yaml: what is nearest to it stands in its place" in capsys.readouterr().err
    (tmp_path / "own.yaml").write_text(recipe_of(problem, problem.space.constant(0.25)).to_yaml())
    find_baselines(settings, replace(problem, space=space), Reporter())
    assert "what is nearest" not in capsys.readouterr().err


def test_a_start_that_was_dropped_early_is_said_to_be(
    sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its value is of fewer items than that of the winner, beside which it stands."""
    given = compose(*sources, "searcher=random", "budget=1", "start=0.1", "baselines=[metagpt]")
    summary = run_search(given, tmp_path, Reporter())
    assert summary is not None
    seen = {**summary.select.seen, "start metagpt": 5}
    (line,) = starts_of(replace(summary, select=replace(summary.select, seen=seen)))
    assert f" (scored on 5 of {summary.items['select']} items), winner (" in line
    assert line.count("scored on") == 1


def test_a_baseline_that_the_space_cannot_express_is_said_to_be_another(
    sources: list[str], problem: Problem, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(*sources, "baselines=[metagpt,0.3]")
    find_baselines(settings, problem, Reporter())
    assert "cannot express" not in capsys.readouterr().err
    vectors, names = problem.vectors, list(problem.space.rows)
    space = make_space(
        "model", vectors.parameters, names, problem.method.variables, zero=vectors.zero, sharing="shared"
    )
    find_baselines(settings, replace(problem, space=space), Reporter())
    assert "note: the space cannot express start metagpt: its nearest point" in capsys.readouterr().err
    find_start({**settings, "start": "metagpt"}, replace(problem, space=space), Reporter())
    assert "note: the space cannot express start metagpt: its nearest point" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ("baselines=metagpt", "metagpt is no list"),
        ("baselines=[1/K,constants]", "constants is no start that needs no search"),
        ("baselines=[recipe.yaml]", r"recipe\.yaml is no start that needs no search"),
    ],
)
def test_baselines_that_are_none(sources: list[str], problem: Problem, given: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match=rf"baselines: {wrong}: write a list of numbers, .* files that are"):
        find_baselines(settings_of(*sources, given), problem, Reporter())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["searcher=cmaes", "start=metagpt"], True),
        (["searcher=cmaes", "start=1/K"], True),
        (["searcher=cmaes", "start=metagpt", "baselines=[metagpt]"], False),
        (["searcher=cmaes", "start=0.3"], False),
        (["searcher=cmaes"], False),
        (["searcher=random", "start=metagpt"], False),
        (["searcher=tpe", "start=metagpt"], False),
    ],
)
def test_a_start_that_the_search_does_not_score_is_said_to_be_so(
    sources: list[str], problem: Problem, given: list[str], said: bool
) -> None:
    settings = settings_of(*sources, *given)
    note = unscored(settings, problem, find_start(settings, problem, Silent()))
    start = str(settings["start"])
    assert ("does not score it" in note and f"'baselines=[{start}]'" in note) == said


@pytest.mark.parametrize("transform", ["star", "ties", "[trim,elect]", "iso_c"])
@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("start=1/K", "start: 1/K"),
        ("start=metagpt", "start: metagpt"),
        ("start={cocktail: {temperature: 2}}", r"start: cocktail\(temperature=2\)"),
        ("baselines=[0.3,lines]", "baselines: lines"),
    ],
)
def test_closed_forms_are_of_experts_that_no_transform_has_changed(
    sources: list[str], tmp_path: Path, transform: str, given: str, named: str
) -> None:
    settings = compose(*sources, f"transform={transform}", given)
    name = transform.strip("[]").replace(",", r" \+ ")
    with pytest.raises(ConfigError, match=rf"{named} is made .* first \({name}\), .* transform=none; or, .* such as 1"):
        run_search(settings, tmp_path, Silent())
    assert not (tmp_path / "trials.jsonl").exists()


def test_a_run_that_began_with_a_closed_form_after_a_transform_goes_on(
    sources: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(*sources, "transform=star", "start=1/K", "baselines=[0.3]")
    check_untransformed(settings, True, Reporter())
    assert "note: start=1/K is made for the experts as they are, and the search" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="baselines: 1/K is made for the experts"):
        check_untransformed({**settings, "baselines": ["1/K"]}, True, Silent())


def test_of_another_method_a_closed_form_is_said_to_be_another_merge(
    sources: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for method, noted in (("linear", 0), ("ties", 2)):
        check_untransformed(
            settings_of(*sources, f"method={method}", "start=1/K", "baselines=[0.3,lines]"), False, Reporter()
        )
        assert capsys.readouterr().err.count("for a sum of task vectors, and") == noted


def test_lines_need_groups_of_other_depths(sources: list[str], problem: Problem) -> None:
    vectors, names = problem.vectors, list(problem.space.rows)
    space = make_space("model", vectors.parameters, names, problem.method.variables, zero=vectors.zero)
    flat = replace(problem, space=space)
    for given in ("start=lines", "baselines=[lines]"):
        find = find_start if given.startswith("start") else find_baselines
        with pytest.raises(ConfigError, match=r"start=lines grows with the depth, .* write space=layer, or start=1/K"):
            find(settings_of(*sources, given), flat, Silent())
    found = find_start(settings_of(*sources, "start=lines"), flat, Silent(), began=True)
    assert found is not None
    np.testing.assert_allclose(found["weight"], 1 / len(names))


def test_workers_score_the_experts_of_a_cocktail_as_this_process_does(
    sources: list[str], problem: Problem, tmp_path: Path
) -> None:
    """Each expert is one unit on all items, found by its name: so the log is serial's, whatever the blocks."""
    asked: list[str] = []

    def found(place: str, workers: Workers | None) -> list[np.ndarray]:
        settings = settings_of(*sources, "start=cocktail", "baselines=[cocktail]", f"model.cache={tmp_path / place}")
        here = under(problem, settings)  # with another cache, or what is known is not scored again
        start = find_start(settings, here, Silent(), workers) or {}
        return [start["weight"], *find_baselines(settings, here, Silent(), workers).values()]

    def score(units: Sequence[Unit]) -> Iterator[tuple[int, Scored]]:
        for i, unit in enumerate(units):
            named: Any = unit.model
            asked.append(named.what["value"])
            expert = contender_of(model_of(named.what), problem, Silent())
            yield i, Scored(expert.score(live_fitness(problem, problem.items[unit.split]), unit.ids))
            problem.become(None)

    for own, theirs in zip(found("here", None), found("there", Workers(score, 1)), strict=True):
        np.testing.assert_array_equal(own, theirs)
    assert asked == list(problem.sources.experts)
