"""A search of language models from settings to run directory, by tasks of lm-eval and by perplexity."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError
from evomerge.recipes.recipe import Recipe
from evomerge.report import write_report
from evomerge.runs.build import build_problem
from evomerge.runs.config import plain
from evomerge.runs.run import run_search
from evomerge.search.journal import read_log
from tests.kit.helpers import compose
from tests.kit.language import TASKS, documents, save_language_family, write_jsonl, write_task


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_language_family(tmp_path_factory.mktemp("language"))
    for name in TASKS:
        write_task(path / "tasks", name)
    write_jsonl(path / "texts.jsonl", [{"text": row["text"]} for row in documents(40)])
    return path


def settings(family: Path, *more: str) -> list[str]:
    return [
        "fitness=lm_eval",
        f"model.base={family}/base",
        f"model.experts=[{family}/left,{family}/right]",
        f"model.cache={family}/cache",
        "model.device=cpu",
        "space=model",
        *more,
    ]


def tasks(family: Path, *names: str, **more: str) -> str:
    given = ", ".join(f"{name}: {{task: {family}/tasks/{name}.yaml{more.get(name, '')}}}" for name in names)
    return f"fitness.tasks={{{given}}}"


def test_the_length_of_answers_is_a_value_beside_others(family, tmp_path):
    values = "objective.values={good: {}, short: {tasks: [generated], metric: length, minimise: true}}"
    given = settings(family, tasks(family, "choice", "generated"), "fitness.items=8", "budget=4", values)
    summary = run_search(compose(*given, "objective=pareto", "searcher=random"), tmp_path / "run", Reporter())
    assert summary is not None
    assert summary.front is not None
    assert 0 < (summary.front.winner.report["short"].mean or 0) <= 4
    trials = [row for row in read_log(tmp_path / "run" / "trials.jsonl") if row["kind"] == "trial"]
    for trial in trials:
        assert trial["values"][1] == -trial["scores"]["generated"]["length"]
        assert "length" not in trial["scores"]["choice"]


def test_the_length_of_answers_has_a_limit_where_a_task_without_it_is_held_out(family, tmp_path):
    limit = ["objective.constraints={length: '<= 1.5 * base'}", "fitness.held_out=[choice]", "searcher=random"]
    given = settings(family, tasks(family, "choice", "generated"), "fitness.items=8", "budget=3", *limit)
    summary = run_search(compose(*given), tmp_path / "run", Reporter())
    assert summary is not None
    assert summary.limits is not None
    assert summary.limits.report.keys() == {"length"}
    assert summary.held_out is not None
    assert list(summary.held_out.report["winner"].tasks) == ["choice"]


def test_a_search_by_every_kind_of_task(family, tmp_path, capsys):
    given = settings(family, tasks(family, *TASKS), "fitness.items=16", "budget=8", "objective.weights={choice: 2}")
    summary = run_search(compose(*given), tmp_path / "run", Reporter())
    assert summary is not None
    assert summary.failed == 0
    assert summary.metric == "score"
    measures = {"choice": "acc", "answer": "minus_log_perplexity", "rolling": "minus_log_word_perplexity"}
    assert summary.measures == measures | {"generated": "exact_match"}
    assert any(text.startswith("score is not the same in all tasks (choice acc, ") for text in summary.warnings)
    page, printed = write_report(tmp_path / "run").read_text(), capsys.readouterr().out
    assert "score on 36 report items that the search never saw; higher is better" in printed
    for text in ("choice (acc)", "rolling (minus_log_word_perplexity)", "generated (exact_match)"):
        assert text in page
        assert text in " ".join(printed.replace("│", " ").replace("┃", " ").split())
    assert set(summary.winner.tasks) == set(TASKS)
    rows = list(read_log(tmp_path / "run" / "trials.jsonl"))
    trials = [row for row in rows if row["kind"] == "trial"]
    assert len(trials) == 8
    for trial in trials:
        assert {task: len(items) for task, items in trial["items"].items()} == dict.fromkeys(TASKS, 4)
        assert trial["items"] == trials[0]["items"]
        for results in trial["results"].values():
            assert {"log_probability", "score"} <= results.keys()
        smooth = [trial["scores"][task]["log_probability"] for task in TASKS]
        assert trial["values"][0] == pytest.approx(np.average(smooth, weights=[2, 1, 1, 1]))
    assert len({trial["values"][0] for trial in trials}) == 8
    assert str(family) not in (tmp_path / "run" / "trials.jsonl").read_text()
    assert Recipe.from_yaml((tmp_path / "run" / "recipe.yaml").read_text()).auto_class == "AutoModelForCausalLM"
    longer = run_search(compose(*given, "budget=10"), tmp_path / "run", Reporter())
    assert longer is not None
    assert longer.trials == 10


def test_the_same_search_elsewhere_has_the_same_log(family, tmp_path):
    shutil.copytree(family, tmp_path / "moved", ignore=shutil.ignore_patterns("cache"))
    for name in TASKS:
        path = tmp_path / "moved" / "tasks" / f"{name}.yaml"
        path.write_text(path.read_text().replace(str(family), str(tmp_path / "moved")))
    logs = []
    for root, batch in ((family, 16), (tmp_path / "moved", 16)):
        given = settings(root, tasks(root, "choice", "generated"), "fitness.items=8", "budget=4", "fitness.rotate=true")
        assert run_search(compose(*given, f"fitness.batch_size={batch}"), tmp_path / root.name, Reporter())
        logs.append((tmp_path / root.name / "trials.jsonl").read_bytes())
    assert logs[0] == logs[1]


def test_a_search_by_perplexity(family, tmp_path):
    given = [*settings(family, "budget=5", "fitness.items=6", f"fitness.tasks={{texts: {family}/texts.jsonl}}")]
    summary = run_search(compose(*given, "fitness=perplexity"), tmp_path / "run", Reporter())
    assert summary is not None
    assert (summary.trials, summary.failed, summary.metric) == (5, 0, "log_probability")


def test_language_models_are_loaded_with_their_heads(family):
    for fitness in ("lm_eval", "perplexity"):
        assert compose(f"fitness={fitness}").model.auto_class == "AutoModelForCausalLM"
        assert compose("fitness=lm_eval", "model.auto_class=AutoModel").model.auto_class == "AutoModel"
    given = settings(family, tasks(family, "choice"), "model.auto_class=AutoModel")
    with pytest.raises(
        ConfigError, match=r"LlamaModel has no language-modelling head: write model\.auto_class=AutoModelFo"
    ):
        build_problem(plain(compose(*given)), Reporter())


def test_settings_of_other_fitnesses_are_refused(family):
    given = settings(
        family, f"fitness.tasks={{texts: {{items: {family}/texts.jsonl, fewshot: 2}}}}", "fitness=perplexity"
    )
    with pytest.raises(ConfigError, match=r"fitness\.tasks\.texts\.fewshot means nothing to the fitness Perplexity"):
        build_problem(plain(compose(*given)), Reporter())
    given = settings(family, tasks(family, "choice", "rolling"), "fitness.report_metric=acc")
    with pytest.raises(
        ConfigError, match=r"fitness\.report_metric is 'acc'; this fitness gives log_probability, score\."
    ):
        build_problem(plain(compose(*given)), Reporter())


def test_warnings_about_public_splits_come_first(family, monkeypatch):
    monkeypatch.setattr("evomerge.fitness.lm_eval.documents.is_public", lambda task: True)
    given = settings(family, tasks(family, "choice"), "fitness.public_test=true")
    problem = build_problem(plain(compose(*given)), Reporter())
    assert problem.warnings[0].startswith("coefficients were chosen by 'test' of pico_choice")
