"""The numbers of a run, its coefficients and its warnings."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.recipes.recipe import Recipe
from evomerge.report.charts import convergence
from evomerge.report.concerns import _search_error, concerns
from evomerge.report.facts import RunFacts
from evomerge.report.grids import ALL, grids
from evomerge.report.page import _progress
from evomerge.report.wording import closed, headline, number, signed, verdict, with_error
from evomerge.runs.directory import open_run
from evomerge.selection.noise import Noise
from evomerge.selection.statistics import Paired
from tests.kit.reports import coordinates_of, finish, write_run


def facts_of(path: Path) -> RunFacts:
    return RunFacts(open_run(path))


def edit(path: Path, **changes: Any) -> RunFacts:
    """Facts of a run whose summary has other entries: `report__winner__mean=0.5`."""
    file = path / "summary.json"
    summary = json.loads(file.read_text())
    for name, value in changes.items():
        *outer, last = name.split("__")
        node = summary
        for part in outer:
            node = node[part]
        node[last] = value
    file.write_text(json.dumps(summary))
    return facts_of(path)


def said(facts: RunFacts) -> str:
    return "\n".join(concerns(facts, grids(facts)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finish(write_run(tmp_path / "run", errors={6: "ValueError: 6 of 20 items", 7: "ValueError: 7 of 20 items"}))


def test_trials_are_numbered_in_the_order_of_their_points(run: Path) -> None:
    facts = facts_of(run)
    assert facts.done == facts.last == 12
    assert [n for n, _ in facts.failed] == [6, 7]
    assert [dot.number for dot in facts.scored] == [1, 2, 3, 4, 5, 8, 9, 10, 11, 12]
    values = [dot.value for dot in facts.scored]
    assert [value for _, value in facts.best_so_far] == sorted(value for _, value in facts.best_so_far)
    assert facts.best_so_far[-1] == (12, max(values))
    assert facts.means[1] == (5, 8, pytest.approx(np.mean(values[4:6])))
    assert facts.losses == []
    assert facts.by_value


def test_steps_of_a_gradient_are_no_values(tmp_path: Path) -> None:
    facts = facts_of(write_run(tmp_path / "run", "searcher=gradient", batches=1, steps=12))
    assert (len(facts.scored), len(facts.losses)) == (4, 12)
    assert facts.loss == "cross entropy"
    assert not facts.by_value
    assert facts.smooth_losses[-1] == (16, pytest.approx(np.mean([2.0 / n for n in range(7, 17)])))
    of, point = facts.standing() or ("", np.array([]))
    assert of == "step 16"
    assert np.array_equal(point, facts.run.batches[-1].points[0])


def test_finalists_are_the_trials_that_the_summary_names(run: Path) -> None:
    finalists = {"best": 0.6, "best_2": 0.5, "mean": 0.4, "constant": 0.3}
    trials = {"best": [2, 3], "best_2": [1, 0], "mean": None, "constant": [0, 1]}
    facts = edit(run, select__finalists=finalists, select__trials=trials)
    assert [(f.name, f.number) for f in facts.finalists] == [
        ("best", 12),
        ("best_2", 5),
        ("mean", None),
        ("constant", 2),
    ]
    assert [finalist.name for finalist in facts.finalists if finalist.winner] == ["best"]
    accuracy = np.mean([row["accuracy"] for row in facts.numbered[-1][2].scores.values()])
    assert facts.finalists[0].search == pytest.approx(accuracy)


def test_a_summary_of_version_0_2_names_no_trials(run: Path) -> None:
    """Then none is guessed from the names."""
    del (summary := json.loads((run / "summary.json").read_text()))["select"]["trials"]
    (run / "summary.json").write_text(json.dumps(summary))
    assert {(finalist.number, finalist.search) for finalist in facts_of(run).finalists} == {(None, None)}


def test_a_search_that_has_gone_on_says_so(run: Path) -> None:
    assert "has gone on after its winner was scored" in said(edit(run, trials=10))


def test_steps_among_the_finalists(tmp_path: Path) -> None:
    run = finish(write_run(tmp_path / "run", batches=1, steps=6))
    trials = {"step_3": [4, 0], "step_6": None}
    facts = edit(run, select__winner="step_6", select__finalists={"step_3": 0.5, "step_6": 0.6}, select__trials=trials)
    assert [(f.name, f.number, f.search) for f in facts.finalists] == [("step_3", 8, None), ("step_6", None, None)]


def test_optimism_is_what_is_lost_from_select_to_report(run: Path) -> None:
    facts = facts_of(run)
    assert facts.optimism["winner"].select == 0.64
    assert facts.optimism["winner"].report == pytest.approx(0.63)
    assert facts.optimism["winner"].optimism == pytest.approx(0.01)
    assert facts.optimism["gain"].select == pytest.approx(0.03)
    assert facts.optimism["gain"].report == pytest.approx(0.03)
    constant = next(dot for dot in facts.scored if np.allclose(facts.run.batches[0].points[dot.trial.index], 0.4))
    assert facts.optimism["best constant"].search == facts.on_report_metric(constant.trial)


def test_the_worst_task_and_weights_decide_here_as_they_did_there(tmp_path: Path) -> None:
    scores = {"reviews": 0.9, "news": 0.5}
    worst = facts_of(write_run(tmp_path / "worst", "objective.aggregate=worst"))
    assert worst.together(scores) == 0.5
    weighted = facts_of(write_run(tmp_path / "weighted", "++objective.weights.news=3"))
    assert weighted.together(scores) == pytest.approx(0.6)
    normalised = facts_of(write_run(tmp_path / "normalised", "objective.normalised=true"))
    assert normalised.together(scores) is None
    assert worst.together({**scores, "other": None}) is None


def test_time(run: Path) -> None:
    facts = facts_of(run)
    assert facts.seconds == {"merge": pytest.approx(0.4), "forward": pytest.approx(3.2), "other": pytest.approx(0.4)}
    assert facts.pace == pytest.approx(60)


def test_numbers_in_words() -> None:
    assert number(-0.12345) == "−0.1235"
    assert number(-0.00001) == "0.0000"
    assert number(None) == number(float("nan")) == "–"
    assert signed(0.5, 1) == "+0.5"
    assert signed(None) == "–"
    assert with_error(0.5, None, 1) == "0.5"
    assert verdict(Paired(0.02, 0.01)) == "better"
    assert verdict(Paired(0.019, 0.01)) == "same"
    assert verdict(Paired(-0.03, 0.01)) == "worse"
    assert verdict(Paired(0.0, 0.0)) == "same"
    assert verdict(Paired(0.03, None)) == "same"


@pytest.mark.parametrize(
    ("diff", "words"),
    [
        (0.03, ("is better than the best constant", "0.0300 ± 0.0100 above that of the best constant, 0.4")),
        (-0.03, ("is worse than", "below that of the best constant")),
        (0.0, ("cannot be told from", "no different (± 0.0100) from that of")),
    ],
)
def test_the_headline(diff: float, words: tuple[str, str], tmp_path: Path) -> None:
    short, sentence = headline(facts_of(finish(write_run(tmp_path / "run"), diff=diff)))
    assert words[0] in short
    assert words[1] in sentence.replace("\xa0", " ")
    assert "600 report items" in sentence


# coefficients


def test_the_winner_by_depth_and_what_was_held(run: Path) -> None:
    (grid,) = grids(facts_of(run))
    assert [row.label for row in grid.rows] == ["embeddings", "layer 0", "layer 1"]
    assert [[cell.frozen for cell in row.cells] for row in grid.rows] == [[True, True], [False, False], [False, False]]
    assert grid.rows[2].cells[1].value == pytest.approx(0.7)
    assert grid.centre == 0.4
    assert next(row.label for row, _ in grid.downwards) == "layer 1"


def test_the_best_so_far_while_there_is_no_winner(tmp_path: Path) -> None:
    names = [name for name in coordinates_of() if name != "weight/encoder.layer.1/news"]
    facts = facts_of(write_run(tmp_path / "run", coordinates=[*names, "density/encoder.layer.0/news"]))
    best = max(facts.scored, key=lambda dot: dot.value)
    weight, density = grids(facts)
    assert weight.of == f"candidate {best.number}, the best so far"
    assert weight.columns == density.columns == ("reviews", "news")
    point = dict(zip(facts.run.coordinates, facts.run.batches[best.trial.batch].points[best.trial.index], strict=True))
    assert weight.rows[0].cells[1].value == point["weight/encoder.layer.0/news"]
    assert weight.rows[1].cells[1] == grids(facts)[1].rows[0].cells[0]  # held, at what the log does not tell
    assert weight.rows[1].cells[1].frozen
    assert weight.rows[1].cells[1].value is None
    assert weight.centre is None


def test_coordinates_that_are_no_groups(tmp_path: Path) -> None:
    line = [f"weight/{end}/{expert}" for end in ("shallow", "deep") for expert in ("reviews", "news")]
    (grid,) = grids(facts_of(write_run(tmp_path / "line", "space=line", coordinates=line)))
    assert [row.label for row in grid.rows] == ["shallow", "deep"]
    shared = ["weight/encoder.layer.0/*", "weight/encoder.layer.1/*"]
    run = write_run(tmp_path / "shared", "space.sharing=shared", coordinates=shared)
    (grid,) = grids(facts_of(run))
    assert grid.columns == (ALL,)
    (grid,) = grids(facts_of(finish(run)))
    assert (grid.columns, [row.cells[0].frozen for row in grid.rows]) == ((ALL,), [True, False, False])
    tied = ["weight/*/news", "weight/encoder.layer.0/reviews", "weight/encoder.layer.1/reviews"]
    run = write_run(tmp_path / "tied", "space.tied=[weight/*/news]", coordinates=tied)
    (grid,) = grids(facts_of(run))
    assert grid.rows[0].label == "*"
    (grid,) = grids(facts_of(finish(run)))
    assert [[cell.frozen for cell in row.cells] for row in grid.rows] == [[True, False], [False, False], [False, False]]
    signed = [f"weight/{group}/news" for group in ("embeddings", "encoder.layer.0", "encoder.layer.1")]
    run = write_run(tmp_path / "signed", "space.tied=[{news: 1, reviews: -1}]", coordinates=signed)
    (grid,) = grids(facts_of(finish(run)))
    assert not any(cell.frozen for row in grid.rows for cell in row.cells)


def test_rows_that_a_transform_made_are_the_columns(tmp_path: Path) -> None:
    """Also those that no expert is: one merged row, or one beside the experts'."""
    for names in (["merged"], ["common", "reviews", "news"]):
        own = [f"weight/encoder.layer.{i}/{name}" for i in range(2) for name in names]
        run = write_run(tmp_path / "-".join(names), "transform=wudi", coordinates=own)
        (grid,) = grids(facts_of(run))
        assert grid.columns == tuple(names)
        recipe = Recipe.from_yaml((finish(run) / "recipe.yaml").read_text())
        rows = {f"encoder.layer.{i}": dict.fromkeys(names, 0.5) for i in range(2)}
        made = replace(recipe, rows=names, coefficients={"weight": rows})
        (run / "recipe.yaml").write_text(made.to_yaml())
        (grid,) = grids(facts_of(run))
        assert grid.columns == tuple(names)
        assert [[cell.value for cell in row.cells] for row in grid.rows] == [[0.5] * len(names)] * 2


def test_coordinates_that_are_amounts_are_no_weights(tmp_path: Path) -> None:
    assert grids(facts_of(write_run(tmp_path / "run", "space.sum=1"))) == []


def test_tensors_stand_in_their_blocks_and_held_ones_together(tmp_path: Path) -> None:
    parts = ("attention.weight", "attention.bias", "mlp.weight")
    groups = [f"embeddings.{i}" for i in range(3)] + [f"encoder.layers.{i}.{part}" for i in range(2) for part in parts]
    run = finish(
        write_run(tmp_path / "run", "space=tensor", coordinates=coordinates_of([g for g in groups if "emb" not in g]))
    )
    recipe = Recipe.from_yaml((run / "recipe.yaml").read_text())
    rows = {g: {"reviews": 0.0, "news": 0.0} if "emb" in g else {"reviews": 0.1, "news": 0.9} for g in groups}
    changed = Recipe(recipe.base, recipe.experts, recipe.method, "tensor", {"weight": rows})
    (run / "recipe.yaml").write_text(changed.to_yaml())
    (grid,) = grids(facts_of(run))
    assert [(row.block, row.label) for row in grid.rows] == [
        ("embeddings", "3 groups, held at 0"),
        *[(f"layers {i}", part) for i in range(2) for part in parts],
    ]
    assert [span for _, span in grid.downwards] == [3, 0, 0, 3, 0, 0, 1]


# warnings


@pytest.mark.parametrize(
    ("winner", "experts", "words"),
    [
        (0.75, 0.8, "That is 50% of the way from the best constant to the experts"),
        (0.85, 0.8, "That is more than the experts reach"),
        (0.69, 0.8, None),
        (0.85, None, None),
    ],
)
def test_how_far_it_is_to_the_experts(winner: float, experts: float | None, words: str | None, tmp_path: Path) -> None:
    run = finish(write_run(tmp_path / "run"))
    means = {"best_constant": 0.7, "winner": winner, "experts": experts}
    found = closed(edit(run, **{f"report__{name}__mean": mean for name, mean in means.items()}))
    assert (found is None) if words is None else (found or "").startswith(words)


def test_a_good_run_has_no_warnings(tmp_path: Path) -> None:
    assert said(facts_of(finish(write_run(tmp_path / "run")))) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"paired__winner_vs_best_constant__diff": 0.005}, "not better than the best constant by two standard errors"),
        ({"paired__winner_vs_best_constant__diff": -0.05}, "worse than the best constant"),
        ({"select__winner": "constant"}, "itself a constant"),
        ({"select__winner": "start lines", "select__finalists": {"start lines": 0.7}}, "itself a start"),
        ({"select__constant": "0.6"}, "at the end of those that were tried (0.2 to 0.6)"),
        ({"select__finalists__best": 0.75}, "but 0.0300 on the report items: believe the latter"),
        ({"report__experts__tasks": {"reviews": 0.3, "news": 0.9}}, "expert of reviews is no better than the base"),
        ({"report__winner__tasks": {"reviews": 0.1, "news": 0.9}}, "On reviews the winner is below the base"),
        (
            {"report__best_constant__tasks": {"reviews": 0.9, "news": 0.6}},
            "On reviews the best constant is better than",
        ),
        ({"items": {"search": 40, "select": 60, "report": 600}}, "select split has about 30 items of a task"),
        ({"select__finalists__best_2": None}, "best_2 could not be scored"),
    ],
)
def test_warnings_of_the_selection(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in said(edit(finish(write_run(tmp_path / "run")), **changes))


def test_failures_that_differ_in_numbers_are_one_reason(run: Path) -> None:
    assert "2 of 12 candidates failed" in said(facts_of(run))
    assert "“ValueError: 6 of 20 items” (2 times)" in said(facts_of(run))


def rotating(run: Path) -> None:
    settings = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(settings.replace("rotate: false", "rotate: true"), encoding="utf-8")


def test_a_winner_that_fitted_its_search_items(tmp_path: Path) -> None:
    run = finish(write_run(tmp_path / "run", items=200))
    low = {"report__winner__mean": 0.2, "report__winner__tasks": {"reviews": 0.2, "news": 0.2}}
    assert "it has fitted the few items that it was found on" in said(edit(run, **low))
    rotating(run)
    assert "it was lucky with the few items that it was found on" in said(edit(run, **low))


def test_thin_items(tmp_path: Path) -> None:
    text = said(facts_of(write_run(tmp_path / "run", items=6)))
    assert "Few search items of a task, so candidates are ranked by luck: reviews (6), news (6)" in text


@pytest.mark.parametrize(("items", "thin"), [(4, False), (3, True)])
def test_fewer_items_are_thin_where_generations_have_others(tmp_path: Path, items: int, thin: bool) -> None:
    run = write_run(tmp_path / "run", items=items)
    rotating(run)
    assert ("Few search items" in said(facts_of(run))) == thin


def test_coefficients_at_their_bounds(tmp_path: Path) -> None:
    run = finish(write_run(tmp_path / "run"), bounds={"weight": [0.3, 0.6]})
    assert "75% of the weights lie at their bounds [0.3, 0.6]" in said(facts_of(run))
    assert "at their bounds" not in said(edit(run, bounds={"weight": [None, None]}))
    of_0_2 = finish(write_run(tmp_path / "of settings", "++space.bounds.weight=[0.3,0.6]"))
    assert "75% of the weights lie at their bounds [0.3, 0.6]" in said(facts_of(of_0_2))


def test_warnings_of_the_log_are_quoted_once(tmp_path: Path) -> None:
    run = finish(write_run(tmp_path / "run"), logged={"it is 7": 2, "[odd] one": 1})
    lines = ["From evomerge.log, 2 such lines: it is 7", "From evomerge.log: [odd] one"]
    assert said(facts_of(run)).splitlines() == lines
    many = finish(write_run(tmp_path / "many"), logged={letter: 1 for letter in "abcdefghi"})
    assert said(facts_of(many)).splitlines()[-1] == "evomerge.log holds 3 more warnings."


def test_the_noise_floor_stands_beside_the_best_value(run: Path, tmp_path: Path) -> None:
    facts = facts_of(run)
    assert facts.noise is not None
    assert facts.noise.candidates == 10
    assert (band := convergence(facts)) is not None
    assert band.lines[0].kind == "noise"
    known = edit(run, noise={"candidates": 20, "value": 0.5, "difference": 0.2, "share": 0.375})
    assert known.noise == Noise(20, 0.5, 0.2, 0.375)
    assert "of the spread of the last 20 candidates' values, 38% is sampling noise" in _progress(known)
    worst = facts_of(write_run(tmp_path / "worst", "objective.aggregate=worst"))
    assert worst.noise is None
    assert "noise" not in _progress(worst)


def test_a_batch_of_which_a_race_dropped_some_has_no_mean(run: Path) -> None:
    facts = facts_of(run)
    before, trials = facts.means, facts.run.batches[2].trials
    trials[0] = replace(trials[0], status="censored") if trials[0] else None
    raced = RunFacts(facts.run)
    assert [number for number, *_ in before] == [1, 5, 9]
    assert raced.means == before[:2]


def test_the_items_of_a_candidate_are_those_that_the_last_one_has(run: Path) -> None:
    facts = facts_of(run)
    for trial in [trial for trial in facts.run.batches[2].trials if trial]:
        facts.run.batches[2].trials[trial.index] = replace(trial, items={"reviews": ["a", "b"], "news": ["c"]})
    assert facts.items == {"search": {"reviews": 2, "news": 1}}


def test_the_error_of_search_items_counts_what_each_stands_for(run: Path) -> None:
    facts = facts_of(run)
    plain = _search_error(facts, 12)
    dot = facts.scored[-1]
    counts = {task: [1] * 10 + [9] * 10 for task in dot.trial.items}  # both halves have the same results
    facts.scored[-1] = replace(dot, trial=replace(dot.trial, weights=counts))
    assert _search_error(facts, 12) == pytest.approx(plain * math.sqrt(20 * (1 + 81) * 10 / 100**2))


def test_the_error_of_search_items_weighs_tasks_as_the_objective_does(run: Path) -> None:
    facts = facts_of(run)
    both, (one, other) = _search_error(facts, 12), facts.scored[-1].trial.items
    alone = []
    for weights in ({one: 2, other: 0}, {one: 0, other: 1}):
        facts.settings["objective"]["weights"] = weights
        alone.append(_search_error(facts, 12))
    assert both == pytest.approx(math.hypot(*alone) / 2)
