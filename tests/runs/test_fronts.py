"""A search with several values, or with constraints, from its settings to its log; and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError
from evomerge.fitness.base import Outcome
from evomerge.problem import Problem
from evomerge.runs.build import build_problem, goal_of, make_searcher
from evomerge.runs.checks import make_fitness
from evomerge.runs.compare import run_comparison
from evomerge.runs.config import check, plain, run_name
from evomerge.runs.contestants import Compared
from evomerge.runs.identity import search_identity
from evomerge.runs.learning import check_learning
from evomerge.runs.objectives import asked_metrics, check_reported, check_valued, check_valued_metrics
from evomerge.runs.suite import Suite
from evomerge.runs.worker import Worker, build_message
from evomerge.search.evaluators.mixed import make_evaluators
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.evaluators.splits import APPROXIMATELY, approximately, live_fitness, make_subsets
from evomerge.search.evaluators.units import Model, Unit
from evomerge.search.evaluators.wire import packed, scored_of, unit_message, unpacked
from evomerge.search.log import TrialLog
from evomerge.search.loop import search
from evomerge.search.stopping import Budget
from evomerge.searchers.base import Searcher
from tests.kit.evaluations import settings_of, sources_of
from tests.kit.helpers import compose

TASKS, METRICS = ("animals", "trees", "metals"), ("accuracy", "log_probability")
SEVERAL = ("objective=pareto", "searcher=random")
NAMED = "objective.values={known: [animals, trees], calm: {tasks: [metals], metric: accuracy, minimise: true}}"
KEPT = "objective.constraints={trees: '>= 0.9 * base'}"
NEAR = "objective.values={known: [animals, trees], near: {metric: distance, minimise: true}}"


def checked(*overrides: str) -> None:
    """Check the settings of a search on the pico suite, before anything of it is loaded."""
    settings = plain(compose("model=pico", *overrides))
    check(settings)
    check_valued(settings, TASKS)
    check_reported(settings, METRICS)
    check_valued_metrics(settings, METRICS, TASKS)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=pareto"], "CmaEs goes by one value, and this search has several: write searcher=lines"),
        (["objective=pareto", "searcher=greedy"], "Greedy goes by one value"),
        (["objective=pareto", "searcher=gradient"], "or make one value of them, with objective=mean, worst or cheb"),
        ([*SEVERAL, "racing.alpha=0.1"], "racing.alpha drops the candidates that fall behind in one value"),
        ([*SEVERAL, "objective.normalised=true"], "objective.normalised is for one value"),
        ([*SEVERAL, "objective.forget=[trees]"], "a task to forget is a value to be small"),
        (["objective=worst", "searcher=random", NAMED], "objective.aggregate=worst makes one value"),
        ([*SEVERAL, "objective.values=[trees]"], "write names, and of which tasks each is made"),
        ([*SEVERAL, "objective.values={a: [trees]}"], "objective.values has one value, a"),
        ([*SEVERAL, "objective.values={1: [trees], 2: [metals]}"], "the name 1, which is no text"),
        ([*SEVERAL, "objective.constraints={1: '>= 0.9 * base'}"], "the name 1, which is no text"),
        ([*SEVERAL, "objective.weights={trees: 3}"], "here every value is one task"),
        (
            [*SEVERAL, "objective.values={trees: [metals], b: [trees]}", "objective.constraints={trees: '>= base'}"],
            "give the value another name",
        ),
        (
            [*SEVERAL, "objective.choose={at_least: {trees: '>= 0.98 * base'}, best: metals}"],
            "objective.choose.at_least.trees is '>= 0.98",
        ),
        ([*SEVERAL, "objective.values={a: trees, b: [metals]}"], "objective.values.a is trees; write a list of tasks"),
        (
            [*SEVERAL, "objective.values={a: [trees], b: {task: [metals]}}"],
            "b: Unknown setting 'task': did you",
        ),
        ([*SEVERAL, "objective.values={a: [trees], b: {minimise: 1}}"], "b.minimise is 1; write true or false"),
        (
            [*SEVERAL, "objective.values={a: [trees], b: [metal]}"],
            "values.b: Unknown task 'metal': did you",
        ),
        ([*SEVERAL, "objective.values={a: [trees], b: {metric: length}}"], "this fitness gives accuracy, log_probab"),
        ([*SEVERAL, "objective.constraints={tree: '>= base'}"], "constraints: Unknown value, task or metric 'tree'"),
        (["objective.constraints={distance: '<= 1.2 * base'}"], "a share of the base's distance from itself, which is"),
        ([*SEVERAL, NEAR, "objective.constraints={near: '<= base'}"], "constraints.near is a share of the base's dist"),
        (
            [*SEVERAL, NEAR, "objective.choose={at_least: {near: '0.9 * base'}, best: known}"],
            "choose.at_least.near is a share of the base's distance",
        ),
        ([*SEVERAL, NEAR.replace("minimise: true", "minimise: false")], "write minimise: true beside it"),
        (["fitness.report_metric=distance"], "the merge that lies farthest from the base: write 'objective.values="),
        (["objective.constraints={trees: '> 0.9 * base'}"], "write a limit that is a share of the base's score"),
        (["objective.constraints={trees: '>= -1 * base'}"], "a share of the base's score is above 0"),
        ([KEPT, "fitness.rotate=true"], "objective.constraints needs the base on the items of a candidate"),
        ([KEPT, "racing.alpha=0.1"], "objective.constraints counts all of them: leave racing.alpha out"),
        (["objective.sure=1"], "objective.sure=1 says how surely constraints must hold, and there are none"),
        ([KEPT, "objective.sure=-1"], "objective.sure is -1.0: write a number of standard errors from 0"),
        (["objective.choose={best: trees}"], "write objective=pareto as well"),
        ([*SEVERAL, "objective.choose=best"], "objective.choose is best; write knee, or"),
        ([*SEVERAL, "objective.choose={at_least: {trees: '0.9 * base'}, best: tree}"], "choose: Unknown value 'tree'"),
        ([*SEVERAL, "objective.choose={at_least: {trees: much}, best: trees}"], "choose.at_least.trees is '>= much'"),
        (["objective.aggregate=median"], "write one of mean, worst, chebyshev, pareto"),
    ],
)
def test_what_cannot_be_honoured_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        checked(*overrides)


def test_a_front_of_one_task_is_refused() -> None:
    settings = plain(compose("model=pico", *SEVERAL))
    with pytest.raises(ConfigError, match="two values or more, and trees is one"):
        check_valued(settings, ["trees"])


def test_groups_of_settings_are_what_their_parts_are() -> None:
    """An old command is the search that it was, by whatever name."""
    assert plain(compose("model=pico")) == plain(compose("model=pico", "objective=mean"))
    assert plain(compose("objective=worst")) == plain(compose("objective.aggregate=worst"))
    assert plain(compose("objective=normalised")) == plain(compose("objective.normalised=true"))
    assert goal_of(plain(compose("objective=chebyshev"))).normalised
    groups = {"searcher": "tpe", "objective": "mean"}
    assert run_name(groups, ["searcher=tpe"]) == run_name({"searcher": "tpe"}, ["searcher=tpe"])
    assert "pareto" in run_name({**groups, "objective": "pareto"}, ["objective=pareto"])


@pytest.mark.parametrize("overrides", [SEVERAL, (KEPT,)])
def test_a_comparison_ranks_by_one_value(overrides: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="A comparison ranks methods by one value"):
        run_comparison(plain(compose("model=pico", *overrides)), Compared(None, (0.4,)), tmp_path / "one", Reporter())


def test_a_constraint_has_no_gradient() -> None:
    settings = plain(compose("model=pico", "searcher=gradient", KEPT))
    with pytest.raises(ConfigError, match="has no gradient: a loss"):
        check_learning(settings, make_fitness(settings["fitness"]))


@pytest.fixture(scope="module")
def sources(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return sources_of(pico_suite, tmp_path_factory.mktemp("cache"))


def searched(sources: list[str], path: Path, trials: int, *overrides: str) -> tuple[Problem, Searcher, list[Any]]:
    """Run a search as far as its log, and return the log's trials."""
    settings = plain(compose(*sources, "fitness.items=18", "start=0.4", *overrides))
    check(settings)
    problem = build_problem(settings, Reporter())
    searcher = make_searcher(settings, problem.space, {"weight": 0.4}, problem.objectives)
    fitnesses = {split: live_fitness(problem, items) for split, items in problem.items.items()}
    scorer, subset = SerialScorer(problem, fitnesses), make_subsets(problem)["search"]
    _, _, evaluate = make_evaluators(problem, scorer, subset, None)
    with TrialLog(path, search_identity(problem, settings), {"machine": "this"}) as log:
        search(searcher, evaluate, log, Budget(trials))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return problem, searcher, [line for line in lines if line["kind"] == "trial"]


@pytest.mark.parametrize("searcher", ["random", "tpe", "nsga2"])
def test_every_task_is_a_value_and_a_cut_log_goes_on(searcher: str, sources: list[str], tmp_path: Path) -> None:
    given = ("objective=pareto", f"searcher={searcher}", KEPT)
    problem, found, trials = searched(sources, tmp_path / "whole.jsonl", 20, *given)
    assert problem.objectives == 3
    for trial in trials:
        assert trial["values"] == [trial["scores"][task]["log_probability"] for task in problem.items["search"]]
        assert len(trial["violations"]) == 1
    searched(sources, tmp_path / "cut.jsonl", 7, *given)
    _, again, _ = searched(sources, tmp_path / "cut.jsonl", 20, *given)
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [one.trial for one in again.incumbents().values()] == [one.trial for one in found.incumbents().values()]


def test_named_values_and_constraints_are_what_they_say(sources: list[str], tmp_path: Path) -> None:
    limits = "objective.constraints={calm: '<= 0.5', animals: '>= 0.5 * base'}"
    weighed = "objective.weights={trees: 3, metals: 0}"  # which counts within a mean alone
    problem, _, trials = searched(sources, tmp_path / "log", 8, *SEVERAL, NAMED, limits, weighed)
    objective = problem.goal.objective("log_probability", problem.items["search"])
    assert objective.names == ("known", "calm")
    base = None
    for trial in trials:
        scores, (calm, animals) = trial["scores"], trial["violations"]
        known = (scores["animals"]["log_probability"] + 3 * scores["trees"]["log_probability"]) / 4
        assert trial["values"] == pytest.approx([known, -scores["metals"]["accuracy"]])
        assert calm == pytest.approx((scores["metals"]["accuracy"] - 0.5) / 0.5)
        share = 1 - animals  # of the limit
        base = base or scores["animals"]["accuracy"] / share
        assert scores["animals"]["accuracy"] == pytest.approx(share * base)


def test_one_value_with_a_constraint_is_below_the_base_where_it_is_violated(sources: list[str], tmp_path: Path) -> None:
    problem, found, trials = searched(sources, tmp_path / "log", 16, "searcher=random", KEPT.replace("0.9", "0.6"))
    assert problem.objectives == 1
    keeping = [trial["values"][0] for trial in trials if trial["violations"][0] <= 0]
    lacking = [trial for trial in trials if trial["violations"][0] > 0]
    assert keeping
    assert lacking
    worth = {round(trial["values"][0] + trial["violations"][0], 9) for trial in lacking}
    assert len(worth) == 1  # that of the base
    best = found.incumbents()["best"]
    assert best.trial is not None
    assert max(keeping) == trials[best.trial[0] * 8 + best.trial[1]]["values"][0]


@pytest.mark.parametrize("method", ["linear", "dare_ties"])
def test_the_distance_from_the_base_is_a_value_and_a_constraint(
    method: str, sources: list[str], tmp_path: Path
) -> None:
    given = (*SEVERAL, NEAR, "objective.constraints={distance: '<= 0.04'}", f"method={method}", "space=model")
    problem, _, trials = searched(sources, tmp_path / "whole", 8, *given)
    base = {name: problem.vectors.base.tensor(name).double() for name in problem.vectors.parameters}
    length = sum(float(tensor.square().sum()) for tensor in base.values())
    live = dict(problem.live.model.named_parameters())
    points = [json.loads(line)["points"] for line in (tmp_path / "whole").read_text().splitlines() if "points" in line]
    for trial in trials:
        problem.merger.apply(problem.space.decode(np.array(points[trial["batch"]][trial["index"]])))
        apart = sum(float((live[name].double() - tensor).square().sum()) for name, tensor in base.items())
        distance = trial["scores"]["trees"]["distance"]
        assert distance == pytest.approx((apart / length) ** 0.5, rel=1e-8)
        assert trial["values"][1] == pytest.approx(-distance, rel=1e-15)
        assert trial["violations"] == [pytest.approx(distance / 0.04 - 1)]
    searched(sources, tmp_path / "cut", 3, *given)
    searched(sources, tmp_path / "cut", 8, *given)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_worker_and_a_live_model_say_the_same_distance(sources: list[str]) -> None:
    settings = settings_of(*sources, *SEVERAL, NEAR, "fitness.approximate=bfloat16")
    own = build_problem(settings, Reporter())
    worker = Worker(unpacked(packed(build_message(settings, own, torch.get_num_threads()))))
    score = live_fitness(own, own.items["search"])
    scorer = SerialScorer(own, {"search": score, APPROXIMATELY: approximately(own, score)})
    ids, x = make_subsets(own)["search"](0), np.full(own.space.dim, 0.5)
    models: list[Model] = [x, own.space.decode(x), "base", "experts"]
    for model in models:
        message = worker.answer(unit_message(1, Unit(model, ids)))
        there, here = scored_of(unpacked(packed(message))).outcome, scorer.one(Unit(model, ids)).outcome
        assert isinstance(there, Outcome)
        assert isinstance(here, Outcome)
        found = {float(value) for task in ids for value in there.results[task]["distance"]}
        assert found == {float(value) for task in ids for value in here.results[task]["distance"]}
        assert len(found) == (3 if model is models[-1] else 1)  # of each its own


def test_a_metric_that_some_tasks_have_is_a_value_of_these() -> None:
    offers, short = {"trees": ("length",)}, "{known: [animals], short: {tasks: [trees], metric: length}}"
    settings = plain(compose("model=pico", *SEVERAL, f"objective.values={short}"))
    check_valued_metrics(settings, METRICS, TASKS, offers)
    assert {"length", "accuracy"} <= asked_metrics(settings)
    everywhere = plain(compose("model=pico", *SEVERAL, f"objective.values={short.replace('tasks: [trees], ', '')}"))
    with pytest.raises(ConfigError, match=r"this fitness gives accuracy, log_probability, of trees length, and dist"):
        check_valued_metrics(everywhere, METRICS, TASKS, offers)
    limited = plain(compose("model=pico", "objective.constraints={length: '<= 1.2 * base'}"))
    check_valued_metrics(limited, (*METRICS, "length"), TASKS)
    (condition,) = goal_of(limited).conditions(TASKS)
    assert (condition.metric, list(condition.weights)) == ("length", list(TASKS))


def test_a_metric_that_every_task_of_the_search_offers_has_a_limit() -> None:
    limited = plain(compose("model=pico", "objective.constraints={length: '<= 1.2 * base'}"))
    every = dict.fromkeys(TASKS, ("length",))
    check_valued_metrics(limited, METRICS, TASKS, every)  # a task that is held out may lack it
    with pytest.raises(ConfigError, match=r"Unknown value, task or metric .length.\. There are .*, distance") as none:
        check_valued_metrics(limited, METRICS, TASKS, {})
    assert "over all tasks" not in str(none.value)
    others = ", ".join(task for task in TASKS if task != "trees")
    with pytest.raises(ConfigError, match=f"over all tasks, and {others} cannot have .* of trees length, and dist"):
        check_valued_metrics(limited, METRICS, TASKS, {"trees": ("length",)})
    misspelt = plain(compose("model=pico", "objective.constraints={lenght: '<= 1.2 * base'}"))
    with pytest.raises(ConfigError, match=r"did you mean .length.\?"):
        check_valued_metrics(misspelt, METRICS, TASKS, every)


def test_a_fitness_with_a_distance_of_its_own_gives_that() -> None:
    settings = plain(compose("model=pico", *SEVERAL, NEAR.replace(", minimise: true", "")))
    check_valued_metrics(settings, (*METRICS, "distance"), TASKS)
    check_reported(plain(compose("fitness.report_metric=distance")), ("distance",))


def test_values_and_constraints_make_another_search_and_choosing_does_not(problem: Problem) -> None:
    def identity(*overrides: str) -> str:
        return json.dumps(search_identity(problem, plain(compose("model=pico", *overrides))), sort_keys=True)

    one = identity("searcher=random", "objective=mean")
    assert identity("searcher=random", "searcher.incumbents=7") == one  # they are of fronts
    assert identity(*SEVERAL, "searcher.incumbents=7") != identity(*SEVERAL)
    usual, choose = identity(*SEVERAL), "objective.choose={at_least: {trees: '0.9 * base'}, best: metals}"
    assert identity(*SEVERAL, choose) == usual
    assert identity(KEPT, "objective.sure=1") == identity(KEPT)
    others = [identity("searcher=random"), identity(*SEVERAL, NAMED), identity(*SEVERAL, KEPT)]
    assert len({usual, *others}) == 4
    assert len({identity(KEPT), identity(KEPT, "fitness.report_metric=log_probability")}) == 2
    orders = ["{a: [trees], b: [metals]}", "{b: [metals], a: [trees]}"]  # a trial has numbers and no names
    assert len({identity(*SEVERAL, f"objective.values={order}") for order in orders}) == 2


def test_the_distance_from_the_experts_is_largest_where_it_weighs_most() -> None:
    """Weighted Chebyshev: by hand."""
    from evomerge.fitness.objectives import Objective
    from tests.fitness.test_objectives import outcome

    ends = {"a": (0.2, 0.6), "b": (0.5, 1.0)}
    objective = Objective("m", "chebyshev", {"a": 3}, ends)
    assert objective(outcome({"a": 0.4, "b": 0.75}))[0] == pytest.approx((0.75 * -0.5,))
    assert objective(outcome({"a": 0.6, "b": 0.5}))[0] == pytest.approx((0.25 * -1.0,))
    assert Objective("m", "chebyshev", {"a": 0}, ends)(outcome({"a": 0.2, "b": 0.75}))[0] == pytest.approx((-0.5,))
    assert np.isnan(objective(outcome({"a": np.nan, "b": 0.75}))[0]).all()
