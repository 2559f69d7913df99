"""Models side by side: what a search has scored gets the same scores again, on the same items, with the same errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError
from evomerge.fitness.base import Outcome
from evomerge.problem import Problem
from evomerge.runs.build import build_problem
from evomerge.runs.directory import open_run, read_summary
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.selection.evaluation import compare, evaluate
from evomerge.selection.named import Model, find_model
from tests.kit.evaluations import elsewhere, is_base, recipe_of, remembered, settings_of, sources_of, under
from tests.kit.helpers import compose


@pytest.fixture(scope="module")
def sources(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return sources_of(pico_suite, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def run(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    assert run_search(compose(*sources, "budget=9", "searcher=random"), directory, Reporter()) is not None
    return directory


def test_a_run_is_worth_what_its_summary_says(run: Path, sources: list[str], problem: Problem, tmp_path) -> None:
    summary, settings = read_summary(run), settings_of(*sources)
    assert summary is not None
    constant = float(summary.select.constant)
    models = {
        "best_constant": Model("constant", constant),
        "winner": Model("recipe", run / "recipe.yaml"),
        "base": Model("base"),
        "experts": Model("experts"),
    }
    before = remembered(settings)
    evaluate(
        under(problem, settings),
        {name: model for name, model in models.items() if name != "experts"},
        "report",
        Reporter(),
    )
    assert remembered(settings) == before  # nothing was scored again
    for cached in (settings, elsewhere(settings, tmp_path)):
        result = evaluate(under(problem, cached), models, "report", Reporter())
        assert (result.split, result.metric, result.items) == ("report", "accuracy", 90)
        assert result.models == {name: summary.report[name] for name in models}
        assert result.paired["winner"] == summary.gain
        assert set(result.paired) == {"winner", "base", "experts"}
        assert is_base(problem)
    del models["base"], models["experts"]
    before = remembered(settings)
    selected = evaluate(under(problem, settings), models, "select", Reporter()).models
    assert remembered(settings) == before  # neither were these, though they were scored block by block
    assert selected["winner"].mean == summary.select.value
    assert selected["best_constant"].mean == summary.select.constants[str(constant)]


def test_on_search_items_a_trial_gets_its_own_scores(run: Path, sources: list[str], problem: Problem, tmp_path):
    trial = list(open_run(run).trials())[-1]
    (point,) = [batch.points[trial.index] for batch in open_run(run).batches if batch.index == trial.batch]
    settings = settings_of(*sources)
    recipe = recipe_of(under(problem, settings), problem.space.decode(np.array(point)))
    (tmp_path / "trial.yaml").write_text(recipe.to_yaml())
    settings["fitness"]["report_metric"] = "log_probability"
    models = {"trial": Model("recipe", tmp_path / "trial.yaml")}
    result = evaluate(under(problem, settings), models, "search", Reporter())
    scores = {task: metrics["log_probability"] for task, metrics in trial.scores.items()}
    assert result.models["trial"].tasks == pytest.approx(scores, abs=1e-12)
    assert result.items == 30


def tasks_of(suite: Suite, experts: dict[str, str | None]) -> str:
    given = ", ".join(
        f"{name}: {{items: {suite.tasks[name].items}, head: {suite.tasks[name].head}, expert: {expert or 'null'}}}"
        for name, expert in experts.items()
    )
    return f"fitness.tasks={{{given}}}"


def test_tasks_without_an_expert_leave_no_mean(sources: list[str], pico_suite: Suite) -> None:
    settings = settings_of(*sources, tasks_of(pico_suite, {"animals": "animals", "trees": None}))
    problem = build_problem(settings, Reporter())
    models = {"experts": Model("experts"), "base": Model("base"), "metals": Model("expert", "metals")}
    result = evaluate(under(problem, settings), models, "report", Reporter())
    assert set(result.models["experts"].tasks) == {"animals"}
    assert result.models["experts"].mean is result.models["experts"].se is None
    assert result.paired["base"].diff is None
    assert set(result.models["metals"].tasks) == {"animals", "trees"}


def test_experts_where_no_task_has_one(sources: list[str], pico_suite: Suite) -> None:
    settings = settings_of(*sources, tasks_of(pico_suite, {"animals": None}))
    with pytest.raises(ConfigError, match=r"No task has an expert.*fitness\.tasks\.<task>\.expert"):
        evaluate(under(build_problem(settings, Reporter()), settings), {"e": Model("experts")}, "report", Reporter())


def test_a_fitness_that_fails_names_the_model_and_leaves_the_base(
    sources: list[str], pico_suite: Suite, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def score(model, tokenizer, items): return 1 / 0\n")
    given = ["fitness=custom", f"fitness.function={tmp_path}/mine.py:score"]
    settings = settings_of(*sources, *given, tasks_of(pico_suite, {"animals": "animals"}))
    problem = build_problem(settings, Reporter())
    result = evaluate(under(problem, settings), {"the merge": Model("constant", 1.0)}, "report", Reporter())
    assert result.errors["the merge"] == "ZeroDivisionError: division by zero"
    assert is_base(problem)


def test_weights_of_tasks_count_in_means_and_differences() -> None:
    items = {"a": ["1", "2"], "b": ["3", "4"]}
    one = Outcome(items, {"a": {"m": np.array([0.0, 1.0])}, "b": {"m": np.array([1.0, 1.0])}})
    other = Outcome(items, {"a": {"m": np.array([0.0, 0.0])}, "b": {"m": np.array([1.0, 0.0])}})
    models, pairs = compare({"one": one, "other": other}, ["a", "b"], "m", {"a": 3.0})
    assert models["one"].mean == pytest.approx(0.75 * 0.5 + 0.25)
    assert pairs["other"].diff == pytest.approx(-0.75 * 0.5 - 0.25 * 0.5)
    assert pairs["other"].se == pytest.approx(np.hypot(0.75 * 0.5, 0.25 * 0.5))


def test_a_weight_for_a_task_that_is_not_there_is_refused(sources: list[str], problem: Problem) -> None:
    settings = settings_of(*sources, "objective.weights={tree: 2}")
    with pytest.raises(ConfigError, match="Did you mean 'trees'"):
        evaluate(under(problem, settings), {"base": Model("base")}, "report", Reporter())


def test_names_of_models(run: Path, pico_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = list(pico_suite.experts)
    (tmp_path / "trees").symlink_to(pico_suite.base)
    (tmp_path / "base").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    assert find_model("base", experts) == Model("base")
    assert find_model("./base", experts) == Model("recipe", Path("base/recipe.yaml"))
    assert find_model("trees", experts) == Model("expert", "trees")
    assert find_model("./trees", experts) == find_model("trees", []) == Model("directory", Path("trees"))
    assert find_model(str(run / "recipe.yaml"), experts) == Model("recipe", run / "recipe.yaml")
    assert find_model("constant:-0.25", experts) == Model("constant", -0.25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exprets", "Unknown model 'exprets': did you mean 'experts'.*are named by their paths"),
        ("tree", "did you mean 'trees'"),
        ("constant:high", "'constant:high' is no constant: write a number"),
        ("constant:nan", "is no constant"),
        ("runs/onne", r"There is no runs/onne\. Did you mean runs/one\?"),
        ("runs", r"runs is no model directory.*There is runs/one\."),
        ("runs/two", r"runs/two has no winner yet.*evomerge export"),
        ("notes.txt", r"notes\.txt is no recipe"),
    ],
)
def test_names_of_nothing(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("runs/one/recipe.yaml", "runs/two/trials.jsonl", "notes.txt"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        find_model(text, ["animals", "trees"])
