"""What holds for every fitness: a matrix of fitnesses and properties. test_heads.py has the tests of heads alone."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError
from evomerge.fitness.base import Fitness, Outcome
from evomerge.fitness.classification import Classification
from evomerge.fitness.command import Command
from evomerge.fitness.custom import Custom
from evomerge.fitness.items import UNLABELED, Item
from evomerge.problem import Problem
from evomerge.recipes.live_directory import writer_of
from evomerge.runs.build import build_problem, read_splits
from evomerge.runs.checks import make_fitness
from evomerge.runs.config import plain
from evomerge.runs.sources import make_heads
from tests.kit import outside_command
from tests.kit.classifiers import build_classifiers, save_classifiers
from tests.kit.helpers import compose
from tests.kit.language import documents, write_jsonl, write_task

CLASSIFICATION = ("frozen", "own", "own-pooler", "mixed")
LANGUAGE = ("lm_eval", "perplexity")
FITNESSES = (*CLASSIFICATION, "file", "module", "command", *LANGUAGE)
OUTSIDE = f"{sys.executable} -I -S '{outside_command.__file__}' {{model}} {{items}} {{out}}"
TASKS = ("animals", "trees", "metals")
CLOSE = {"atol": 1e-5, "rtol": 0}  # padding and the place in a batch change sums in their last digits


@dataclass
class Case:
    """A fitness on an assembled live model, and a few items of each task."""

    problem: Problem
    make: Callable[..., Any]
    items: dict[str, list[Item]]

    def __post_init__(self) -> None:
        self.model, self.tokenizer = self.problem.live.model, self.problem.live.processor
        self.ids = {task: [item.id for item in chosen] for task, chosen in self.items.items()}
        self.fitness: Fitness = self.make()
        self.prepared = self.fitness.prepare(self.tokenizer, self.items)

    def score(self, ids: dict[str, Any] | None = None) -> Outcome:
        return self.fitness(self.model, self.prepared, self.ids if ids is None else ids)

    @property
    def smooth(self) -> str:
        """The metric that changes with any weight."""
        return "log_probability" if "log_probability" in self.fitness.metrics else self.fitness.metrics[-1]

    def merge(self, *weights: float) -> None:
        space = self.problem.space
        self.problem.merger.apply({"weight": np.tile(weights[: len(space.rows)], (len(space.groups), 1))})


@pytest.fixture(scope="module")
def cases(pico_suite, problem, language_family, tmp_path_factory) -> Callable[[str], Case]:
    """Make the cases, each once."""
    path = tmp_path_factory.mktemp("fitness")
    for name in ("own", "own-pooler"):
        save_classifiers(path / name, pico_suite, pooler=name == "own-pooler")

    @cache
    def case(name: str) -> Case:
        if name in LANGUAGE:
            return language_case(name, language_family, path / name)
        parts = problem
        if name in ("own", "own-pooler", "mixed"):
            directory = path / ("own" if name == "mixed" else name)
            parts = build_classifiers(directory, pico_suite, frozen="trees" if name == "mixed" else None)
        makers = {
            "file": lambda: Custom(f"{Path(__file__).parents[1] / 'kit' / 'user_fitness.py'}:score"),
            "module": lambda: Custom("tests.kit.user_fitness:score"),
            "command": lambda: Command(OUTSIDE, str(path)).with_writer(writer_of(parts.live, parts.vectors.base)),
        }
        heads = make_heads(parts.sources, parts.vectors.parameters)
        make = makers.get(name, lambda **settings: Classification(heads, **{"batch_size": 5, **settings}))
        return Case(parts, make, {task: chosen[:8] for task, chosen in parts.items["search"].items()})

    return case


def language_case(name: str, family: Path, folder: Path) -> Case:
    """A fitness that reads its items by itself, on a pico language model."""
    folder.mkdir()
    rows = {task: documents(60, seed=number) for number, task in enumerate(TASKS)}
    if name == "lm_eval":
        files = {task: write_task(folder, task, rows[task], like="choice") for task in TASKS}
    else:
        files = {task: write_jsonl(folder / f"{task}.jsonl", rows[task]) for task in TASKS}
    tasks = ", ".join(f"{task}: {file}" for task, file in files.items())
    models = [f"model.base={family}/base", f"model.experts=[{family}/left,{family}/right]", "model.device=cpu"]
    kind = [f"fitness={name}", f"fitness.tasks={{{tasks}}}", "model.auto_class=AutoModelForCausalLM"]
    settings = plain(compose("model=directories", *models, *kind, f"model.cache={folder}/cache"))
    parts = build_problem(settings, Reporter())
    items = {task: chosen[:8] for task, chosen in parts.items["search"].items()}

    def make() -> Fitness:
        fitness = make_fitness(settings["fitness"])
        read_splits(parts.sources, fitness)
        return fitness

    return Case(parts, make, items)


@pytest.fixture(params=FITNESSES)
def case(request, cases):
    yield cases(request.param)
    cases(request.param).problem.merger.restore()


@pytest.fixture(params=CLASSIFICATION)
def classification(request, cases):
    yield cases(request.param)
    cases(request.param).problem.merger.restore()


def assert_close(one: Outcome, other: Outcome, **tolerances: float) -> None:
    assert {task: list(metrics) for task, metrics in one.results.items()} == {
        task: list(metrics) for task, metrics in other.results.items()
    }
    for task, metrics in one.results.items():
        for metric, values in metrics.items():
            np.testing.assert_allclose(values, other.results[task][metric], **(tolerances or CLOSE), err_msg=task)


def flat(outcome: Outcome, metric: str) -> np.ndarray:
    return np.concatenate([metrics[metric] for metrics in outcome.results.values()])


def test_scores_follow_the_weights_and_nothing_else(case):
    metric = case.smooth
    base = case.score()
    assert_close(base, case.score(), atol=0, rtol=0)
    case.merge(0.6, 0.6, 0.6)
    merged = case.score()
    for task in case.ids:
        assert np.abs(base.results[task][metric] - merged.results[task][metric]).min() > 0
    case.merge(1, 0, 0)
    assert not np.allclose(flat(merged, metric), flat(case.score(), metric))
    case.merge(0.6, 0.6, 0.6)
    assert_close(merged, case.score(), atol=0, rtol=0)
    case.problem.merger.restore()
    assert_close(base, case.score(), atol=0, rtol=0)


def test_every_item_has_its_own_result_and_nothing_is_aggregated(case):
    outcome = case.score()
    assert dict(outcome.items) == case.ids
    assert list(outcome.results) == list(case.ids)
    for metrics in outcome.results.values():
        assert set(case.fitness.metrics) <= set(metrics)
        for values in metrics.values():
            assert (type(values), values.dtype, values.shape) == (np.ndarray, np.float64, (8,))
            assert np.isfinite(values).all()
    assert len(np.unique(flat(outcome, case.smooth))) > 20
    means = outcome.scores()
    assert means["trees"] == {name: values.mean() for name, values in outcome.results["trees"].items()}


def test_results_do_not_depend_on_the_items_scored_along(case):
    everything = case.score()
    some = {task: ids[2::3] for task, ids in case.ids.items() if task != "animals"}
    outcome = case.score(some)
    assert dict(outcome.items) == some
    expected = {task: {m: v[2::3] for m, v in everything.results[task].items()} for task in some}
    assert_close(outcome, Outcome(some, expected))
    alone = case.score({"metals": case.ids["metals"][3:4]})
    assert_close(alone, Outcome({}, {"metals": {m: v[3:4] for m, v in everything.results["metals"].items()}}))


def test_results_come_in_the_order_of_the_ids(case):
    everything, order = case.score(), np.random.default_rng(0).permutation(8)
    shuffled = {task: tuple(case.ids[task][i] for i in order) for task in reversed(case.ids)}
    outcome = case.score(shuffled)
    assert outcome.items == {task: list(ids) for task, ids in shuffled.items()}
    expected = {task: {m: v[order] for m, v in everything.results[task].items()} for task in shuffled}
    assert_close(outcome, Outcome({}, expected))


@pytest.mark.parametrize("name", [name for name in FITNESSES if name != "lm_eval"])  # whose ids cannot be made up
def test_an_id_belongs_to_its_task(cases, name):
    case = cases(name)
    one, two = case.items["animals"][0], case.items["trees"][1]
    items = {"animals": [Item("same", one.text, one.label)], "trees": [Item("same", two.text, two.label)]}
    prepared = case.fitness.prepare(case.tokenizer, items)
    outcome = case.fitness(case.model, prepared, {task: ["same"] for task in items})
    assert_close(outcome, case.score({"animals": [one.id], "trees": [two.id]}))


def test_global_random_states_stay_as_they_are(case):
    before = global_states()
    fitness = case.make()
    fitness(case.model, fitness.prepare(case.tokenizer, case.items), case.ids)
    assert global_states() == before


def global_states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002


def test_the_model_stays_in_eval_mode_and_without_gradients(case):
    case.score()
    assert not any(module.training for module in case.model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in case.model.parameters())


def test_a_task_without_items_has_no_results_and_no_score(case):
    outcome = case.score({"animals": [], "trees": case.ids["trees"]})
    assert {values.shape for values in outcome.results["animals"].values()} == {(0,)}
    assert outcome.results["animals"].keys() == outcome.results["trees"].keys()
    expected = case.score({"trees": case.ids["trees"]})
    assert_close(Outcome({}, {"trees": outcome.results["trees"]}), expected)
    with pytest.raises(ConfigError, match="No item of the task animals was scored"):
        outcome.scores()


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_the_batch_size_does_not_matter(classification, batch_size):
    fitness = classification.make(batch_size=batch_size)
    prepared = fitness.prepare(classification.tokenizer, classification.items)
    assert_close(fitness(classification.model, prepared, classification.ids), classification.score())


def test_metrics_are_those_of_the_softmax(classification):
    results = classification.score().results
    for task, metrics in results.items():
        right, log_probability = metrics["accuracy"], metrics["log_probability"]
        classes = len(classification.problem.sources.tasks[task].classes) or (3 if task == "animals" else 4)
        assert set(right) <= {0.0, 1.0}
        assert (log_probability < 0).all()
        assert (np.exp(log_probability[right == 1]) >= 1 / classes).all()  # the likeliest class
        assert (np.exp(log_probability[right == 0]) <= 0.5).all()


def test_texts_are_tokenised_once(classification):
    calls = []

    class Counting:
        pad_token_id, model_max_length = classification.tokenizer.pad_token_id, 20

        def __call__(self, texts, **kwargs):
            calls.extend(texts)
            return classification.tokenizer(texts, **kwargs)

    prepared = classification.fitness.prepare(Counting(), classification.items)
    for ids in (classification.ids, {"trees": classification.ids["trees"][:3]}, classification.ids):
        classification.fitness(classification.model, prepared, ids)
    assert sorted(calls) == sorted(item.text for chosen in classification.items.values() for item in chosen)


def test_batches_are_made_once_for_the_same_ids(classification, monkeypatch):
    padded = []
    pad = torch.nn.utils.rnn.pad_sequence
    monkeypatch.setattr(torch.nn.utils.rnn, "pad_sequence", lambda *a, **k: padded.append(1) or pad(*a, **k))
    prepared = classification.fitness.prepare(classification.tokenizer, classification.items)
    classification.fitness(classification.model, prepared, classification.ids)
    assert padded
    padded.clear()
    first = classification.fitness(classification.model, prepared, {t: tuple(i) for t, i in classification.ids.items()})
    assert not padded
    fewer = classification.fitness(classification.model, prepared, {"trees": classification.ids["trees"][:3]})
    assert padded
    again = classification.fitness(classification.model, prepared, classification.ids)
    assert_close(first, again, atol=0, rtol=0)
    assert_close(fewer, classification.score({"trees": classification.ids["trees"][:3]}))


def test_texts_are_sorted_by_length_over_the_tasks_of_a_module(cases):
    batches: list[list[int]] = []
    case = cases("frozen")
    hook = case.model.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(kwargs["attention_mask"].sum(1).tolist()), with_kwargs=True
    )
    with hook:
        case.fitness(case.model, case.fitness.prepare(case.tokenizer, case.items), case.ids)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 4]
    lengths = [length for batch in batches for length in batch]
    assert lengths == sorted(lengths)


def test_a_text_is_cut_to_what_model_and_setting_allow(classification):
    item = classification.items["trees"][0]
    long = Item("long", " ".join([item.text] * 30), item.label)
    prepared = classification.fitness.prepare(classification.tokenizer, {"trees": [long]})
    outcome = classification.fitness(classification.model, prepared, {"trees": ["long"]})
    assert np.isfinite(outcome.results["trees"]["log_probability"]).all()
    fitness = classification.make(max_length=5)
    short = Item("short", " ".join(item.text.split()[:3]), item.label)
    prepared = fitness.prepare(classification.tokenizer, {"trees": [item, short]})
    values = fitness(classification.model, prepared, {"trees": [item.id, "short"]}).results["trees"]["log_probability"]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_a_label_that_the_head_does_not_have(classification):
    items = {"trees": [*classification.items["trees"][:2], Item("x", "some ant", 7)]}
    with pytest.raises(ConfigError, match="The task trees has the label 7, but its head has 4 classes"):
        classification.fitness.prepare(classification.tokenizer, items)


@pytest.mark.parametrize(
    ("items", "what"), [([Item("x", "some ant", UNLABELED)], "an item without a label"), ([], "no items")]
)
def test_items_without_labels_and_tasks_without_items_are_refused_first(classification, items, what):
    with pytest.raises(ConfigError, match=f"The task trees has {what}"):
        classification.fitness.prepare(classification.tokenizer, {"trees": items})


def test_logits_that_are_no_numbers_make_no_right_answers(classification):
    classification.merge(float("nan"), 0, 0)
    assert np.isnan(flat(classification.score(), "accuracy")).all()
    assert np.isnan(flat(classification.score(), "log_probability")).all()


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"max_length": 0}])
def test_sizes_below_one(settings):
    with pytest.raises(ConfigError, match=r"must both be at least 1"):
        Classification({}, **settings)


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_gradients_are_taken_with_the_batches_that_a_score_has_kept(cases, name):
    case = cases(name)
    case.merge(0.5, 0.4, 0.3)
    scored = case.score()
    model = case.model.requires_grad_(True)
    try:
        losses = [
            torch.nn.functional.cross_entropy(answer.logits, answer.labels, reduction="sum")
            for answers in case.fitness.logits(model, case.prepared, case.ids)
            for answer in answers.values()
        ]
        total = torch.stack(losses).sum()
        total.backward()
        assert total.item() == pytest.approx(-sum(flat(scored, "log_probability")), rel=1e-5)
        assert all(p.grad is not None for n, p in model.named_parameters() if "encoder" in n)
    finally:
        model.requires_grad_(False).zero_grad()
