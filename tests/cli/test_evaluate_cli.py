"""`evomerge evaluate` as people use it: what it takes for settings and models, which split, what it prints."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.cli.evaluate import main
from evomerge.cli.progress import Reporter
from evomerge.cli.scores import show, show_worth
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.common.progress import Silent
from evomerge.runs.beside import read_worth
from evomerge.runs.directory import open_run
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.selection.comparison import Comparison
from evomerge.selection.statistics import Paired, Score
from evomerge.selection.worth import OfTask, Worth, harmful
from tests.kit.helpers import compose
from tests.processes.command import evomerge


@pytest.fixture(scope="module")
def place(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of a user with a complete run, `runs/one`, and its recipe in a file of its own."""
    path = tmp_path_factory.mktemp("user")
    sources = ["model=pico", f"model.suite={pico_suite.path}", f"model.cache={path / 'cache'}", "model.device=cpu"]
    small = ["fitness.items=30", "fitness.select_items=60", "fitness.report_items=90", "budget=5", "searcher=random"]
    assert run_search(compose(*sources, *small), path / "runs" / "one", Reporter()) is not None
    shutil.copyfile(path / "runs" / "one" / "recipe.yaml", path / "winner.yaml")
    return path


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


@pytest.fixture
def summary(place: Path) -> dict[str, Any]:
    return json.loads((place / "runs/one/summary.json").read_text())


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    """The JSON of a command, and what it said beside."""
    main([*arguments, "--json"])
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_a_run_with_nothing_else_repeats_its_summary(capsys, summary) -> None:
    result, said = evaluated(capsys, "runs/one", "base", "experts")
    assert (result["split"], result["metric"], result["items"]) == ("report", "accuracy", 90)
    assert list(result["models"]) == ["runs/one", "base", "experts"]
    assert result["models"]["runs/one"] == summary["report"]["winner"]
    assert result["models"]["experts"] == summary["report"]["experts"]
    assert list(result["paired"]) == ["base", "experts"]
    assert "settings: those of runs/one/config.yaml" in said
    assert "scoring base on 90 report items (2 of 3)" in said


def test_the_table(capsys) -> None:
    main(["base", "runs/one", "experts"])
    out = capsys.readouterr().out
    assert out.startswith("accuracy on 90 report items, those that neither guided nor chose; higher is better\n")
    for text in ("mean ± se", "animals", "metals", "runs/one", "experts, each on its own task"):
        assert text in out
    assert "minus base, paired on the same items" in out


def test_a_merge_that_keeps_nothing_is_told(capsys) -> None:
    nothing = Paired(0.0, 0.1)
    task = OfTask(base=0.5, merge=0.5, best="a", score=0.7, kept=0.0, over=-0.2, se=0.1)
    show_worth(Worth("m", {"t": task}, "a", nothing, nothing, 0.0), Reporter())
    assert "0% of the best experts' gains are kept" in capsys.readouterr().out


def test_what_a_merge_is_worth(capsys) -> None:
    result, _ = evaluated(capsys, "runs/one", "--worth")
    assert list(result["models"]) == ["runs/one", "base", "animals", "trees", "metals", "ensemble of the experts"]
    worth = result["worth"]
    assert set(worth["tasks"]) == {"animals", "trees", "metals"}
    for task, one in worth["tasks"].items():
        scores = {name: result["models"][name]["tasks"][task] for name in ("animals", "trees", "metals")}
        assert one["score"] == scores[one["best"]] == max(scores.values())
        assert one["over"] == result["models"]["runs/one"]["tasks"][task] - one["score"]
    assert worth["over_base"]["diff"] == -result["paired"]["base"]["diff"]
    main(["runs/one", "--worth"])
    out = capsys.readouterr().out
    assert "what runs/one is worth beside base and experts" in out
    assert f"merge - {worth['single']}, the best single expert over all tasks: " in out
    with pytest.raises(ConfigError, match="--worth says what a merge is worth, and base is none"):
        main(["base", "runs/one", "--worth"])
    assert "ensemble of the experts" in result["models"]
    assert worth["over_ensemble"]["diff"] == -result["paired"]["ensemble of the experts"]["diff"]
    assert "merge - ensemble of the experts, a forward pass of each in place of one: " in out


def test_what_is_found_of_a_run_stays_with_it_and_nothing_else_does(place: Path, capsys) -> None:
    """What belongs on the page of a run is on its items, by its metric, with nothing chosen beside it."""
    derived = shutil.ignore_patterns("worth.json", "around.json", "report.html")  # of tests before this one
    run = Path(shutil.copytree(place / "runs/one", place / "runs/kept", ignore=derived))
    for others, flag in (
        (["base", "--items", "9"], "--worth"),
        (["--items", "9"], "--worth"),
        (["--split", "search"], "--worth"),
        (["fitness.report_items=9"], "--around"),
    ):
        _, said = evaluated(capsys, "runs/kept", *others, flag)
        assert f"not kept for the page of runs/kept: that shows what `evomerge evaluate runs/kept {flag}` finds" in said
    assert not {"worth.json", "around.json"} & {file.name for file in run.iterdir()}
    result, said = evaluated(capsys, "runs/kept", "--worth", "time_limit=900")
    assert "kept in runs/kept/worth.json, and drawn in runs/kept/report.html" in said
    assert json.loads((run / "worth.json").read_text())["models"] == result["models"]
    assert "Every model on every task" in (run / "report.html").read_text()
    evaluated(capsys, "runs/kept", "--around")
    page = (run / "report.html").read_text()
    assert "Every model on every task" in page
    assert "Around the winner" in page


def test_what_is_found_on_other_items_is_not_kept(place: Path, pico_suite: Suite, capsys) -> None:
    """With other items of the same number: scores of two sets of items never stand beside each other."""
    suite = Path(shutil.copytree(pico_suite.path, place / "suite"))
    few = ["fitness.items=9", "fitness.select_items=9", "fitness.report_items=9", "budget=2", "searcher=random"]
    own = ["model=pico", f"model.suite={suite}", f"model.cache={place / 'cache'}", "model.device=cpu", *few]
    assert run_search(compose(*own), place / "runs/other", Silent()) is not None
    evaluated(capsys, "runs/other", "--worth")
    run = place / "runs/other"
    kept, before = (run / "worth.json").read_bytes(), open_run(run).summary
    assert read_worth(open_run(run)) is not None
    for file in suite.rglob("report.jsonl"):
        labels = [json.loads(line) for line in file.read_text().splitlines()]
        turned = [{**row, "label": 1 - row["label"] if row["label"] in (0, 1) else row["label"]} for row in labels]
        old = hashlib.sha256(file.read_bytes()).hexdigest()
        file.write_text("".join(json.dumps(row) + "\n" for row in turned))
        sealed = (suite / "suite.json").read_text()
        (suite / "suite.json").write_text(sealed.replace(old, hashlib.sha256(file.read_bytes()).hexdigest()))
    _, said = evaluated(capsys, "runs/other", "--worth")
    assert "not kept for the page of runs/other: its report items are others" in said
    assert (run / "worth.json").read_bytes() == kept
    assert run_search(compose(*own), run, Silent()) is not None
    after = open_run(run)
    assert before is not None
    assert after.summary is not None
    assert after.summary.items == before.items
    assert after.summary.chosen["select"] == before.chosen["select"]
    assert after.summary.chosen["report"] != before.chosen["report"]
    assert read_worth(after) is None
    _, said = evaluated(capsys, "runs/other", "--worth")
    beside = read_worth(open_run(run))
    assert beside is not None
    assert beside.result.models["winner"].mean == after.summary.winner.mean


def test_the_value_around_a_winner(place: Path, capsys) -> None:
    """A factor is what it says: the same as a recipe with these weights."""
    recipe = yaml.safe_load((place / "winner.yaml").read_text())
    recipe["coefficients"]["weight"] = {
        group: {row: 0.9 * value for row, value in rows.items()}
        for group, rows in recipe["coefficients"]["weight"].items()
    }
    (place / "scaled.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    scaled, _ = evaluated(capsys, "runs/one", "scaled.yaml")
    found, _ = evaluated(capsys, "runs/one", "--around", "--each")
    assert (found["split"], found["items"]) == ("select", 60)
    assert [each["row"] for each in found["around"]] == ["all weights", "animals", "trees", "metals"]
    points = {point["factor"]: point for point in found["around"][0]["points"]}
    assert points[0.9]["score"] == scaled["models"]["scaled.yaml"]
    assert points[1.0]["over"]["diff"] == 0
    main(["runs/one", "--around"])
    assert "runs/one with all its weights scaled; accuracy on 60 select items" in capsys.readouterr().out
    for given, message in (
        (["runs/one", "--each"], "write --around --each"),
        (["runs/one", "base", "--around"], "looks at one merge alone"),
        (["runs/one", "--split", "held_out"], "No task is held out of the search"),
    ):
        with pytest.raises(ConfigError, match=message):
            main(given)


def test_one_model_alone_is_one_table(capsys) -> None:
    main(["runs/one"])
    assert "minus" not in capsys.readouterr().out


def test_an_item_a_task_has_no_standard_error(capsys) -> None:
    result, _ = evaluated(capsys, "runs/one", "base", "--items", "3")
    assert result["models"]["base"]["se"] is result["paired"]["base"]["se"] is None
    main(["runs/one", "base", "--items", "3"])
    assert capsys.readouterr().out.count("± unknown") == 3


def test_tasks_without_an_expert_are_blank_in_its_row(capsys, pico_suite: Suite) -> None:
    tasks = ", ".join(
        f"{name}: {{items: {task.items}, head: {task.head}, expert: {'null' if name == 'trees' else name}}}"
        for name, task in pico_suite.tasks.items()
    )
    main(["experts", "base", "runs/one", f"fitness.tasks={{{tasks}}}"])
    rows = {
        line.split("│")[1].strip(): line.split("│")[2:] for line in capsys.readouterr().out.splitlines() if "│" in line
    }
    mean, animals, trees, metals, _ = (cell.strip() for cell in rows["experts, each on its own task"])
    assert mean == trees == ""
    assert float(animals) > 0.5 < float(metals)
    assert [cell.strip() for cell in rows["base"]][:2] == ["", ""]  # of the second table, which is minus `experts`


def test_several_merges_are_compared_on_the_select_split(capsys) -> None:
    result, said = evaluated(capsys, "runs/one", "constant:0.4", "base")
    assert (result["split"], result["items"]) == ("select", 60)
    assert "2 models to choose from are compared on the select split" in said
    result, said = evaluated(capsys, "runs/one", "constant:0.4", "--split", "report")
    assert result["split"] == "report"
    assert "Do not choose among these by their report scores" in said


def test_settings_of_a_run_with_others_in_their_place(capsys, place: Path, pico_suite: Suite) -> None:
    assert evaluated(capsys, "runs/one", "fitness.report_items=30")[0]["items"] == 30
    assert evaluated(capsys, "runs/one", "--items", "12", "--split", "search")[0]["items"] == 12
    result, _ = evaluated(capsys, "runs/one", "--metric", "log_probability", "objective.weights.trees=0")
    row = result["models"]["runs/one"]
    assert row["mean"] == pytest.approx((row["tasks"]["animals"] + row["tasks"]["metals"]) / 2)
    assert row["mean"] < 0
    trees = pico_suite.tasks["trees"]
    result, _ = evaluated(capsys, "runs/one", f"fitness.tasks={{new: {{items: {trees.items}, head: {trees.head}}}}}")
    assert list(result["models"]["runs/one"]["tasks"]) == ["new"]
    (place / "mine.py").write_text(
        "def score(model, tokenizer, items): return {t: [1.5] * len(i) for t, i in items.items()}"
    )
    result, _ = evaluated(capsys, "runs/one", "fitness=custom", "fitness.function=mine.py:score")
    assert (result["metric"], result["models"]["runs/one"]["mean"]) == ("score", 1.5)
    assert list(result["models"]["runs/one"]["tasks"]) == ["animals", "trees", "metals"]


def test_a_recipe_brings_its_models_and_only_lacks_tasks(capsys, pico_suite: Suite, summary) -> None:
    task = pico_suite.tasks["trees"]
    tasks = f"fitness.tasks={{trees: {{items: {task.items}, head: {task.head}, expert: trees}}}}"
    result, said = evaluated(capsys, "winner.yaml", tasks, "model.cache=cache")
    assert "models: those of winner.yaml" in said
    assert result["models"]["winner.yaml"]["tasks"].keys() == {"trees"}
    with pytest.raises(EvomergeError, match="There are no tasks"):
        main(["winner.yaml"])


def test_settings_that_name_models_hold(capsys, pico_suite: Suite) -> None:
    given = ["model=pico", f"model.suite={pico_suite.path}", "model.cache=cache", "model.device=cpu"]
    result, said = evaluated(capsys, "winner.yaml", "runs/one", "trees", *given, "fitness.select_items=30")
    assert "those of" not in said
    assert result["models"]["winner.yaml"] == result["models"]["runs/one"]
    assert result["items"] == 30


def test_what_a_name_was_taken_for_is_said(capsys, place: Path, pico_suite: Suite) -> None:
    (place / "trees").symlink_to(pico_suite.base)
    try:
        result, said = evaluated(capsys, "trees", "./trees", "base", "runs/one", "--split", "report")
        assert "trees is taken as the expert trees; what lies at that path is ./trees" in said
        assert result["models"]["./trees"] == result["models"]["base"] != result["models"]["trees"]
    finally:
        (place / "trees").unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/one", "tres"], "Unknown model 'tres': did you mean 'trees'"),
        (["runs/on"], "Did you mean runs/one"),
        (["base"], "Nothing says which base and experts are meant"),
        (["nonexist"], "Unknown model .nonexist."),
        (["runs/one", "fitnes.report_items=3"], r"There is no setting 'fitnes\.report_items'\. Did you mean"),
        (["runs/one", "--metric", "acuracy"], "this fitness gives accuracy, log_probability"),
        (["runs/one", "--items", "2"], r"fitness\.report_items is 2, less than one for each of 3 tasks"),
        (
            ["runs/one/mergekit.yaml", "runs/one"],
            r"mergekit\.yaml is no recipe of evomerge: this is a YAML for mergekit",
        ),
        (["broken/recipe.yaml"], r"broken/config\.yaml cannot be read"),
        (["empty/recipe.yaml"], r"empty/config\.yaml holds no settings of a search"),
    ],
)
def test_mistakes(arguments: list[str], message: str, place: Path) -> None:
    for name, text in {"broken": "a: [", "empty": ""}.items():
        (place / name).mkdir(exist_ok=True)
        (place / name / "config.yaml").write_text(text)
        shutil.copyfile(place / "winner.yaml", place / name / "recipe.yaml")
    with pytest.raises(EvomergeError, match=message):
        main(arguments)


@pytest.mark.parametrize("arguments", [[], ["base", "--split", "reports"], ["base", "--items", "many"], ["--json"]])
def test_wrong_flags_end_with_the_usage(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: evomerge evaluate MODEL" in capsys.readouterr().err


def test_a_setting_may_be_longer_than_the_name_of_a_file() -> None:
    tasks = "fitness.tasks={" + ", ".join(f"task{i}: gone{i}.jsonl" for i in range(30)) + "}"
    with pytest.raises(EvomergeError, match=r"gone0\.jsonl does not exist"):
        main(["runs/one", tasks])


def test_help_explains_splits_and_models(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "constant:0.4" in out
    assert "the report split is the default for one merge" in out


@pytest.mark.slow
def test_as_a_process(place: Path, summary) -> None:
    """Results on standard output and nothing else, progress on standard error, mistakes in one line."""
    done = evomerge("evaluate", "runs/one", "base", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["models"]["base"]["tasks"] == summary["report"]["base"]["tasks"]
    wrong = evomerge("evaluate", "runs/one", "bse", cwd=place)
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert "Unknown model 'bse': did you mean 'base'?" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_leave_one_out_scores_the_average_without_each_expert(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    third = f"constant:{1 / 3}"
    found, _ = evaluated(capsys, "--leave-one-out", third, "runs/one", "--split", "report")
    assert list(found["models"]) == ["soup", third, "runs/one", "without:animals", "without:trees", "without:metals"]
    assert found["models"][third] == found["models"]["soup"] != found["models"]["without:trees"]
    assert found["paired"][third]["diff"] == 0
    with pytest.raises(ConfigError, match="Unknown expert 'metal': did you mean 'metals'"):
        main(["without:metal", "runs/one"])


def test_a_metric_of_the_fitness_that_is_called_distance_is_as_any_other(
    capsys: pytest.CaptureFixture[str], place: Path, pico_suite: Suite
) -> None:
    """The one of the weights has no items, no standard error, and says nothing of what is better."""
    (place / "own.py").write_text(
        "def score(model, items):\n    texts = [float(len(item.text)) for item in items]\n"
        "    return {'score': texts, 'distance': texts}\nscore.metrics = ('score', 'distance')\n"
    )
    of = ["model=pico", f"model.suite={pico_suite.path}", "fitness=custom", "--metric", "distance", "--items", "30"]
    main(["--leave-one-out", *of, "fitness.function=own.py:score"])
    told = capsys.readouterr().out
    assert told.startswith("distance on 30 select items, those that choose a winner; higher is better\n")
    assert "better by more than two se without: none of them" in told
    assert "of the weights" not in told
    (place / "plain.py").write_text((place / "own.py").read_text().replace("distance", "length"))
    with pytest.raises(ConfigError, match="says how far a model lies from the base, not how good it is"):
        main(["--leave-one-out", *of, "fitness.function=plain.py:score"])
    found, said = evaluated(capsys, "experts", "base", *of[:-2], "fitness.function=plain.py:score")
    assert (found["items"], found["of_weights"], "scoring base on 3 report items" in said) == (3, True, True)
    assert found["models"]["base"]["mean"] == 0 < found["models"]["experts"]["mean"]


def test_an_expert_harms_by_more_than_two_standard_errors(capsys: pytest.CaptureFixture[str]) -> None:
    paired = {"without:a": Paired(0.1, 0.06), "without:b": Paired(0.1, 0.04), "constant:2": Paired(0.1, 0.01)}
    models = {name: Score(0.5, 0.1) for name in ("soup", *paired)}
    result = Comparison("report", "accuracy", {}, 9, models, paired, {}, {})
    assert harmful(result) == ["b"]
    show(result, Reporter(), harmful(result))
    assert "better by more than two se without: b\n" in capsys.readouterr().out
