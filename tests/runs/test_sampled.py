"""Searches whose items are drawn by disagreement, or grow: what the log holds, what it costs, and who is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError, LogError
from evomerge.fitness.base import Fitness
from evomerge.fitness.draws import ByDisagreement
from evomerge.problem import Problem, Sampling
from evomerge.runs import identity
from evomerge.runs.budget import grown, make_budget
from evomerge.runs.build import sampling_of
from evomerge.runs.config import check
from evomerge.runs.responses import check_drawn
from evomerge.runs.run import run_search
from evomerge.runs.sampled import to_go_on
from evomerge.runs.suite import Suite
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.splits import make_subsets
from evomerge.search.journal import read_log
from evomerge.search.stopping import Interrupt, fixed
from evomerge.searchers.base import Part
from evomerge.selection.recalling import Recalling
from tests.kit.evaluations import settings_of, sources_of
from tests.kit.helpers import compose

FEW = ("space=model", "fitness.select_items=6", "fitness.report_items=6")


class Seen:
    """A search that has seen nothing yet."""

    trials = items = batches = 0


DRAWN = ("fitness.sampling=disagreement", "fitness.grow=0.2", "fitness.rotate=true", "budget=20")


@pytest.fixture(scope="module")
def sources(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*sources_of(pico_suite, tmp_path_factory.mktemp("cache")), *FEW]


@pytest.fixture(scope="module")
def finished(sources: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    assert run_search(compose(*sources, *DRAWN), directory, Reporter()) is not None
    return directory


def test_the_log_has_weights_and_scores_that_are_means_by_them(finished: Path, problem: Problem) -> None:
    trials = [line for line in read_log(finished / "trials.jsonl") if line["kind"] == "trial"]
    sizes = {task: len(items) for task, items in problem.items["search"].items()}
    shown = dict[int, list[object]]()
    for trial in trials:
        shown.setdefault(trial["batch"], []).append((trial["items"], trial["weights"]))
        for task, weights in trial["weights"].items():
            assert sum(weights) == sizes[task]
            results = trial["results"][task]["log_probability"]
            assert trial["scores"][task]["log_probability"] == pytest.approx(np.average(results, weights=weights))
        assert trial["values"][0] == pytest.approx(
            np.mean([row["log_probability"] for row in trial["scores"].values()])
        )
    for each in shown.values():
        assert all(one == each[0] for one in each)  # all candidates of a generation see the same
    assert json.loads((finished / "summary.json").read_text())["responses"] == 2 * sum(sizes.values())
    numbers = [sum(map(len, trial["items"].values())) for trial in trials]
    assert numbers == sorted(numbers)
    assert numbers[0] == 6
    assert 20 < numbers[-1] <= 30


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        (["budget=20", "fitness.sampling=disagreement"], (6, 30)),
        (["budget_items=900"], (6, 30)),
        (["fitness.items=4", "fitness.grow=0.05", "budget_items=100"], (3, 4)),  # one of each task at least
    ],
)
def test_a_fixed_sample_keeps_what_it_has_and_the_last_generation_has_all(
    given: list[str], ends: tuple[int, int], sources: Sequence[str], tmp_path: Path
) -> None:
    assert run_search(compose(*sources, "fitness.grow=0.2", *given), tmp_path, Reporter()) is not None
    seen = dict[int, dict[str, set[str]]]()
    for line in read_log(tmp_path / "trials.jsonl"):
        if line["kind"] == "trial":
            seen[line["batch"]] = {task: set(ids) for task, ids in line["items"].items()}
    samples = [seen[number] for number in sorted(seen)]
    assert len(samples) >= 3
    assert tuple(sum(map(len, sample.values())) for sample in (samples[0], samples[-1])) == ends
    for one, other in pairwise(samples):
        assert all(one[task] <= other[task] for task in one)


def test_a_search_that_was_cut_off_draws_the_same_items_again(
    finished: Path, sources: Sequence[str], tmp_path: Path
) -> None:
    whole = (finished / "trials.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "trials.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    cache = f"model.cache={tmp_path / 'cache'}"  # what base and experts said is asked anew
    assert run_search(compose(*sources, *DRAWN, cache), tmp_path, Reporter()) is not None
    assert (tmp_path / "trials.jsonl").read_bytes() == whole


def test_a_run_that_grew_by_another_rule_is_complete_but_does_not_go_on(
    sources: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logs of earlier versions name no rule, and their samples had other sizes."""
    config = compose(*sources, "fitness.grow=0.5", "budget=8")
    with monkeypatch.context() as earlier:
        earlier.setattr(identity, "sampling_identity", lambda *_: {"grow": [0.5, 8]})
        found = run_search(config, tmp_path, Reporter())
    assert found is not None
    before = (tmp_path / "trials.jsonl").read_bytes()
    capsys.readouterr()
    assert run_search(config, tmp_path, Reporter()) == found
    assert "This search is complete" in capsys.readouterr().err
    (tmp_path / "summary.json").unlink()  # as if it had been stopped before its end
    with pytest.raises(LogError, match=r"belongs to another search: grow was \[0\.5, 8\], is \[0\.5, 8, .nested.\]"):
        run_search(config, tmp_path, Reporter())
    assert (tmp_path / "trials.jsonl").read_bytes() == before


def test_a_log_of_other_items_than_are_drawn_now_is_refused(
    finished: Path, sources: Sequence[str], problem: Problem, tmp_path: Path
) -> None:
    drawn = replace(problem, sampling=sampling_of(settings_of(*sources, *DRAWN)))
    rng = np.random.default_rng(0)
    apart = {task: rng.random(len(items)) for task, items in problem.items["search"].items()}
    subset = make_subsets(drawn)["search"].informed(ByDisagreement(apart))
    with pytest.raises(LogError, match=r"generation 0 was scored on other items .* other last digits\. Go on where"):
        check_drawn(drawn, subset, finished / "trials.jsonl")
    check_drawn(replace(drawn, sampling=Sampling(search=30)), subset, finished / "trials.jsonl")


@pytest.mark.parametrize(
    ("given", "parts", "points"),
    [
        ([], [Part(False, 50)], 50),
        ([], [Part(False, 6), Part(True, 60), Part(False, 34)], 40),  # steps have no samples
        (["budget_items=450"], [Part(False, 50)], 18),  # of 22 or 23 items on average, between 15 and 30, and one
        (["budget_items=450"], [Part(True, 30), Part(False, 50)], 5),  # 10 inputs a step
        (["fitness.items=null", "budget_items=900"], [Part(False, 50)], None),
        (["fitness.sampling=disagreement", "budget_items=2000"], [Part(False, 500)], None),
    ],
)
def test_samples_have_their_full_size_when_the_budget_ends(
    given: list[str], parts: list[Part], points: int | None, sources: Sequence[str], problem: Problem
) -> None:
    settings = settings_of(*sources, "fitness.grow=0.5", "budget=500", *given)
    every = sum(map(len, problem.items["search"].values()))
    left, size = {"stratified": (900, every), "disagreement": (2000 - 2 * every, 30)}[settings["fitness"]["sampling"]]
    growth = grown(replace(problem, sampling=sampling_of(settings)), settings, parts, 10).sampling.growth
    assert growth is not None
    assert growth.points == (int((left - size) // (0.75 * size)) if points is None else points)


@pytest.mark.parametrize(("items", "left"), [(245, 6), (246, None)])
def test_a_budget_that_cuts_the_first_generation_is_warned_of(
    items: int, left: int | None, sources: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six constants of 6 items each, then 7 candidates, each paid for on 30 items: what is said is what happens."""
    given = [*sources, "searcher=cmaes", "fitness.grow=0.2", f"budget_items={items}"]
    assert run_search(compose(*given), tmp_path, Reporter()) is not None
    said = capsys.readouterr().err
    assert ("CMA-ES learns from whole generations alone" in said) is (left is not None)
    lines = [line for line in read_log(tmp_path / "trials.jsonl") if line.get("batch") == 1]
    scored = [line["kind"] for line in lines if line["kind"] in ("trial", "tell")]
    assert scored == ["trial"] * (7 if left is None else left) + ["tell"] * (left is None)
    if left:
        assert f"the budget leaves {left} of a first generation of 7 candidates" in said
        assert f"(budget.items={items} buys {6 + left} in all: a candidate begins once" in said


def test_a_budget_by_which_samples_grew_is_not_to_be_raised(sources: Sequence[str], problem: Problem) -> None:
    settings = settings_of(*sources, *DRAWN)
    asked = replace(problem, sampling=sampling_of(settings))
    assert "another run directory" in to_go_on(grown(asked, settings, [Part(True, 6), Part(False, 2)]).sampling.growth)
    for other in (problem, grown(asked, settings, [Part(True, 60)])):  # steps have no samples
        assert "Raise `budget`" in to_go_on(other.sampling.growth)


def test_what_base_and_experts_cost_is_said_and_paid(sources: Sequence[str], problem: Problem, tmp_path: Path) -> None:
    cost = 2 * sum(map(len, problem.items["search"].values()))
    drawn = ["fitness.sampling=disagreement", f"budget_items={cost + 29}"]
    with pytest.raises(ConfigError, match=f"after the {cost} that fitness.sampling=disagreement takes"):
        run_search(compose(*sources, *drawn), tmp_path, Reporter())
    settings = {**settings_of(*sources, *drawn), "budget_items": cost + 190}
    assert make_budget(settings, [Part(False, 50)], fixed(30), Interrupt(), spent=cost).left(Seen()) == 6


def test_who_has_no_expert_to_compare_is_refused(problem: Problem) -> None:
    drawn = replace(problem, sampling=Sampling(search=30, by="disagreement"))
    assert make_subsets(drawn)["search"].size == 30
    with pytest.raises(ConfigError, match=r"searcher\.lag=2 asks for new ones"):
        check(settings_of("model=pico", "fitness.sampling=adaptive", "searcher.lag=2"))
    alone = {**drawn.sources.tasks, "trees": replace(drawn.sources.tasks["trees"], expert=None)}
    with pytest.raises(ConfigError, match=r"trees has no expert: write fitness\.tasks\.trees\.expert"):
        make_subsets(replace(drawn, sources=replace(drawn.sources, tasks=alone)))


def test_who_scores_no_candidate_need_not_score_base_and_experts(
    sources: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = [*sources, f"model.cache={tmp_path / 'cache'}", *DRAWN, "searcher=gradient"]
    monkeypatch.setattr(LiveFitness, "__call__", lambda self, ids: pytest.fail("it was scored"))
    with pytest.raises(ConfigError, match=r"and this search takes steps of a gradient alone: leave it out"):
        run_search(compose(*drawn, "start=0.4"), tmp_path, Reporter())
    with pytest.raises(pytest.fail.Exception):  # here constants are scored first
        run_search(compose(*drawn), tmp_path, Reporter())


def test_what_another_search_has_scored_is_not_scored_again(
    sources: Sequence[str], problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by other searchers, whose first candidates are the same; the log does not depend on it."""
    mine = [*sources, f"model.cache={tmp_path / 'cache'}", "evaluator.blocks=2"]
    calls, counted = [], LiveFitness.__call__
    monkeypatch.setattr(
        LiveFitness, "__call__", lambda self, ids: calls.append(sum(map(len, ids.values()))) or counted(self, ids)
    )
    found = []
    for name, more in {"first": [], "again": [], "other": ["searcher=random"]}.items():
        before = len(calls)
        summary = run_search(compose(*mine, "budget=8", "fitness.remember=true", *more), tmp_path / name, Reporter())
        assert summary is not None
        found.append((summary.remembered, calls[before:].count(15)))  # blocks of a candidate
    assert [items for items, _ in found] == [0, 8 * 30, 7 * 30]  # six constants, and the best of them once more
    assert found[0][1] - found[1][1] == 2 * 8
    assert (tmp_path / "first" / "trials.jsonl").read_bytes() == (tmp_path / "again" / "trials.jsonl").read_bytes()
    own = replace(problem, fitness=cast(Fitness, SimpleNamespace(pure=False)))
    with pytest.raises(ConfigError, match=r"write fitness\.remember=false"):
        Recalling(lambda units: iter(()), own, wanted=True)
