"""Item response theory, by hand and by what is known of made-up items; and estimates of scores on all items by it."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.fitness import irt
from evomerge.fitness.base import Outcome
from evomerge.fitness.estimates import FORMS, HALF, MANY, Answers, Estimate, calibrate
from evomerge.fitness.irt import ItemParameters, fit_abilities, fit_items, fit_merges, gp_irt, p_irt

A, B = np.array([1.0, 1, 1, 2, 0.5, 1])[:, None], np.array([0.0, -1, 1, 0, 0, 2])
SEEN, ANSWERS = np.array([0, 1, 2]), np.array([1.0, 1, 0])


def test_item_response_theory_by_hand() -> None:
    """The largest likelihood, without priors."""
    known = ItemParameters(A, B, np.empty((0, 1)))
    chances = known.chances(np.array([0.5]))
    np.testing.assert_allclose(chances, [0.622459, 0.817574, 0.377541, 0.731059, 0.562177, 0.182426], atol=1e-6)
    (ability,) = fit_abilities(known, SEEN, ANSWERS[None], prior=0.0)
    np.testing.assert_allclose(ability, 0.802933, atol=2e-6)
    filled = known.chances(ability)
    np.testing.assert_allclose(filled[3:], [0.832837, 0.59904, 0.231997], atol=1e-6)
    assert p_irt(filled, SEEN, ANSWERS) == pytest.approx(0.610646, abs=1e-6)
    assert gp_irt(filled, SEEN, ANSWERS) == pytest.approx(0.638656, abs=1e-6)
    (merged,) = fit_merges(known, np.array([[2.0], [-1.0]]), SEEN, ANSWERS[None], prior=0.0)
    np.testing.assert_allclose(merged, 0.802934, atol=2e-6)
    assert p_irt(known.chances(merged), SEEN, ANSWERS) == pytest.approx(0.610646, abs=1e-6)


def test_priors_keep_abilities_finite() -> None:
    known = ItemParameters(A, B, np.empty((0, 1)))
    (ability,) = fit_abilities(known, SEEN, np.ones((1, 3)))
    slope = A[SEEN].T @ (1 - known.chances(ability)[SEEN]) - ability
    assert 0 < ability[0] < 3
    np.testing.assert_allclose(slope, 0, atol=1e-8)


def test_items_are_found_again() -> None:
    rng = np.random.default_rng(0)
    loads = np.eye(2)[np.repeat([0, 1], 30)]
    true = ItemParameters(loads * rng.uniform(0.7, 1.5, (60, 1)), rng.normal(0, 1, 60), rng.normal(0, 1, (300, 2)))
    answers = (rng.random((300, 60)) < true.chances(true.abilities)).astype(float)
    found = fit_items(answers, loads)
    assert np.corrcoef(found.b, true.b)[0, 1] > 0.97
    assert np.corrcoef(found.abilities.ravel(), true.abilities.ravel())[0, 1] > 0.85
    np.testing.assert_array_equal(found.a > 0, loads > 0)
    assert (fit_items(answers[:4], loads, sharpness=False).a == loads).all()


IDS = {"a": [f"a{i}" for i in range(60)], "b": [f"b{i}" for i in range(40)]}
SAMPLE = {"b": IDS["b"][1::4], "a": IDS["a"][::5]}
MODELS = ["base", "one", "two", "three", *(f"merge {i}" for i in range(12))]


def made(seed: int = 0) -> Answers:
    """Answers by Rasch's model: the abilities of merges are mostly between those of experts."""
    rng = np.random.default_rng(seed)
    hard, able = rng.normal(0, 1.2, 100), rng.normal(0, 1, (16, 2))
    able[4:] = 0.4 * rng.dirichlet(np.ones(3), 12) @ able[1:4] * 3
    chances = 1 / (1 + np.exp(hard - np.repeat(able, [60, 40], axis=1)))
    rows = (rng.random(chances.shape) < chances).astype(float)
    return Answers(IDS, dict(zip(MODELS, rows, strict=True)), MODELS[1:4])


def value(outcome: Outcome) -> float:
    return float(np.mean([scores["accuracy"] for scores in outcome.scores().values()]))


@pytest.mark.parametrize("form", FORMS)
def test_an_estimate_of_all_items_is_what_was_scored(form: str) -> None:
    answers = made()
    whole = answers.outcome("merge 3", "accuracy")
    found = Estimate(form, "accuracy", answers.without("merge 3"))(whole)
    assert list(found.results) == ["a", "b"]
    assert {task: scores["accuracy"] for task, scores in found.scores().items()} == pytest.approx(
        {task: scores["accuracy"] for task, scores in whole.scores().items()}
    )


@pytest.mark.parametrize("form", FORMS)
def test_an_estimate_is_made_of_answers_and_chances_of_each_task(form: str) -> None:
    answers, score = made(), "accuracy"
    estimate, outcome = Estimate(form, score, answers.without("merge 3")), answers.outcome("merge 3", score, SAMPLE)
    items = fit_items(
        np.stack([row for name, row in answers.rows.items() if name != "merge 3"]),
        np.repeat(np.eye(2), [60, 40], axis=0),
    )
    places = [*range(0, 60, 5), *range(61, 100, 4)]
    right = answers.rows["merge 3"][places]
    how = (items.abilities[1:4],) if form in ("mp-irt", "gmp-irt") else ()
    (ability,) = (fit_merges if how else fit_abilities)(items, *how, np.array(places), right[None])
    filled = items.chances(ability)
    filled[places] = right
    expected = {"a": filled[:60].mean(), "b": filled[60:].mean()}
    if form in HALF:
        expected = {task: (expected[task] + outcome.scores()[task][score]) / 2 for task in expected}
    assert {task: row[score] for task, row in estimate(outcome).scores().items()} == pytest.approx(expected, abs=1e-6)


def test_items_that_stand_for_others_count_so_in_the_mean() -> None:
    answers = made()
    outcome = answers.outcome("merge 3", "accuracy", SAMPLE)
    counts = {"a": [1] * 11 + [49], "b": [4] * 10}
    weighed = Outcome(outcome.items, outcome.results, None, counts)
    for form in FORMS:
        estimate = Estimate(form, "accuracy", answers)
        apart = weighed.scores()["a"]["accuracy"] - outcome.scores()["a"]["accuracy"]
        found = [estimate(one).scores()["a"]["accuracy"] for one in (weighed, outcome)]
        assert found[0] - found[1] == pytest.approx(apart / 2 if form in HALF else 0)


def test_what_is_neither_right_nor_wrong_is_no_answer() -> None:
    estimate = Estimate("p-irt", "accuracy", made())
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        estimate(Outcome({"a": ["a0"], "b": ["b0"]}, {task: {"accuracy": np.array([0.5])} for task in "ab"}))


@pytest.mark.parametrize("form", FORMS)
def test_where_the_theory_holds_estimates_are_nearer_than_means(form: str) -> None:
    rng, answers = np.random.default_rng(1), made()
    samples = [{task: sorted(rng.choice(ids, 10, replace=False)) for task, ids in IDS.items()} for _ in range(8)]
    found = calibrate(form, "accuracy", answers, samples, value)
    assert found is not None
    assert (found.models, found.items, found.samples) == (16, 20, 8)
    assert 0 < found.error < found.plain
    assert not found.worse
    assert f"estimates by {form} of 16 models, each left out" in found.said


def test_a_form_by_experts_leaves_no_expert_out_that_is_alone() -> None:
    answers = Answers(IDS, {name: made().rows[name] for name in ("base", "one")}, ["one"])
    found = calibrate("mp-irt", "accuracy", answers, [SAMPLE], value)
    assert found is not None
    assert found.models == 1


@pytest.mark.parametrize("form", FORMS)
def test_an_item_that_is_there_twice_has_two_answers(form: str) -> None:
    ids = {"a": ["x", "y", "x", "z"], "b": ["w", "v"]}
    rows = {"base": [1, 0, 1, 0, 1, 0], "one": [1, 1, 0, 0, 0, 1], "two": [0, 1, 1, 1, 1, 1]}
    answers = Answers(ids, {name: np.array(row, float) for name, row in rows.items()}, ["one", "two"])
    whole = answers.outcome("one", "accuracy")
    assert whole.results["a"]["accuracy"].tolist() == [1, 1, 0, 0]
    found = Estimate(form, "accuracy", answers)(whole).scores()
    assert {task: row["accuracy"] for task, row in found.items()} == {"a": 0.5, "b": 0.5}


def test_how_items_are_fitted_does_not_change_when_one_model_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, plain = [], irt.fit_items
    monkeypatch.setattr(irt, "fit_items", lambda rows, loads, sharp: asked.append(sharp) or plain(rows, loads, sharp))
    rows = dict(list(made().rows.items())[:MANY])
    calibrate("p-irt", "accuracy", Answers(IDS, rows, MODELS[1:4]), [SAMPLE], value)
    assert asked == [True] * MANY
