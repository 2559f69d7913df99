"""The command as people use it: processes of its own, from settings to run directory."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from evomerge.recipes.recipe import Recipe
from evomerge.runs.suite import Suite
from evomerge.search.journal import read_log
from tests.processes.command import evomerge

# Each test starts processes, some of which load torch and transformers; test_run.py is the fast form.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of a user, with the pico suite where the settings expect it."""
    path = tmp_path_factory.mktemp("user")
    (path / "suites").symlink_to(pico_suite.path.parent)
    return path


@pytest.fixture(scope="module")
def smoke(place: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    done = evomerge("search", "experiment=smoke", "budget=16", cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "runs" / "smoke-pico-linear-layer-cmaes", done


def test_the_run_directory_is_complete(smoke) -> None:
    directory, done = smoke
    names = {path.name for path in directory.iterdir()}
    assert {
        "trials.jsonl",
        "timings.jsonl",
        "config.yaml",
        "recipe.yaml",
        "mergekit.yaml",
        "summary.json",
        "heads",
        "command.txt",
    } <= names
    made = "evomerge search experiment=smoke budget=16 hydra.run.dir=runs/smoke-pico-linear-layer-cmaes\n"
    assert (directory / "command.txt").read_text() == made
    summary = json.loads((directory / "summary.json").read_text())
    assert list(summary["report"]) == ["base", "experts", "best_constant", "winner"]
    for row in summary["report"].values():
        assert set(row) == {"mean", "se", "tasks", "tasks_se"}
        assert set(row["tasks"]) == {"animals", "trees", "metals"}
        assert row["mean"] == pytest.approx(sum(row["tasks"].values()) / 3)
        assert 0 < row["se"] < 0.05
    assert set(summary["paired"]["winner_vs_best_constant"]) == {"diff", "se", "tasks", "tasks_se"}
    report = summary["report"]
    assert summary["paired"]["winner_vs_best_constant"]["diff"] == pytest.approx(
        report["winner"]["mean"] - report["best_constant"]["mean"]
    )
    assert report["base"]["mean"] < report["best_constant"]["mean"] < report["experts"]["mean"]
    assert set(summary["seconds"]) == {"merge", "forward", "other"}
    assert min(summary["seconds"].values()) >= 0
    assert {"torch", "numpy", "evomerge"} <= set(summary["versions"])
    assert summary["items"] == {"search": 48, "select": 360, "report": 600}
    assert summary["trials"] == 16
    assert "winner - best constant" in done.stderr
    assert "best constant" in done.stdout
    assert "free coefficients" in done.stderr


def test_the_recipe_rebuilds_the_winner(smoke, problem) -> None:
    """Merging by the recipe's coefficients gives the model whose score is in the summary."""
    directory, _ = smoke
    recipe = Recipe.from_yaml((directory / "recipe.yaml").read_text())
    summary = json.loads((directory / "summary.json").read_text())
    assert recipe.base.sha256 == problem.vectors.base.sha256
    coefficients = recipe.on_groups(problem.space.groups, problem.space.rows, problem.vectors.parameters)
    problem.merger.apply(coefficients)
    prepared = problem.fitness.prepare(problem.live.processor, problem.items["report"])
    outcome = problem.fitness(
        problem.live.model,
        prepared,
        {task: [item.id for item in items] for task, items in problem.items["report"].items()},
    )
    problem.merger.restore()
    scores = {task: metrics["accuracy"] for task, metrics in outcome.scores().items()}
    assert scores == pytest.approx(summary["report"]["winner"]["tasks"], abs=0.011)
    assert yaml.safe_load((directory / "mergekit.yaml").read_text())["merge_method"] == "task_arithmetic"


def test_splits_are_disjoint_and_the_search_saw_only_its_own(smoke, problem) -> None:
    directory, _ = smoke
    texts = {
        split: {item.text for items in problem.items[split].values() for item in items}
        for split in ("search", "select", "report")
    }
    assert not texts["search"] & texts["select"]
    assert not texts["search"] & texts["report"]
    assert not texts["select"] & texts["report"]
    search_ids = {item.id for items in problem.items["search"].values() for item in items}
    trials = [line for line in read_log(directory / "trials.jsonl") if line["kind"] == "trial"]
    seen = [frozenset(i for ids in trial["items"].values() for i in ids) for trial in trials]
    assert len(set(seen)) == 1  # the same items for all candidates
    assert seen[0] <= search_ids


def test_the_same_command_again_has_nothing_to_do_and_more_budget_goes_on(smoke, place: Path) -> None:
    directory, _ = smoke
    before = (directory / "trials.jsonl").read_bytes()
    again = evomerge("search", "experiment=smoke", "budget=16", cwd=place)
    assert again.returncode == 0
    assert "This search is complete" in again.stderr
    assert (directory / "trials.jsonl").read_bytes() == before
    more = evomerge("search", "experiment=smoke", "budget=20", cwd=place)
    assert more.returncode == 0, more.stderr
    after = (directory / "trials.jsonl").read_bytes()
    assert after.startswith(before)
    assert sum(line["kind"] == "trial" for line in read_log(directory / "trials.jsonl")) == 20


def test_other_settings_in_the_same_directory_are_refused(smoke, place: Path) -> None:
    directory, _ = smoke
    before = (directory / "trials.jsonl").read_bytes()
    done = evomerge(
        "search", "experiment=smoke", "budget=30", "searcher.sigma=0.3", f"hydra.run.dir={directory}", cwd=place
    )
    assert done.returncode == 2
    assert "belongs to another search: searcher was" in done.stderr
    assert (directory / "trials.jsonl").read_bytes() == before


def test_a_sweep_ends_in_a_table(place: Path) -> None:
    done = evomerge("search", "-m", "experiment=smoke", "budget=6", "searcher=tpe,random", "seed=1,2", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs are complete" in done.stdout
    for searcher in ("tpe", "random"):
        for seed in (1, 2):
            assert (place / "runs" / f"smoke-pico-linear-layer-{searcher}-s{seed}" / "recipe.yaml").is_file()
            assert f"smoke-pico-linear-layer-{searcher}-s{seed}" in done.stdout


@pytest.mark.parametrize(
    "settings",
    [
        ("space=model", "space.sharing=shared", "searcher=grid", "searcher.points=5", "budget=5"),
        ("space=line", "searcher=tpe", "method=ties"),
        ("space=blocks:2", "method=dare_ties", "searcher=random"),
        ("space=chunk:2", "searcher=random", "objective.aggregate=worst", "fitness.rotate=true"),
        ("space=tensor", "objective.normalised=true", "start=1/K", "fitness.metric=accuracy"),
    ],
    ids=" ".join,
)
def test_spaces_methods_and_objectives(settings: tuple[str, ...], place: Path) -> None:
    done = evomerge(
        "search",
        "experiment=smoke",
        "budget=6",
        "searcher=random",
        *settings,
        "fitness.select_items=60",
        "fitness.report_items=60",
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    assert ("No mergekit.yaml" in done.stderr) == any(s.startswith("space=chunk") for s in settings)


def test_a_recipe_is_a_warm_start_in_another_space(smoke, place: Path) -> None:
    directory, _ = smoke
    done = evomerge(
        "search",
        "experiment=smoke",
        "budget=2",
        "searcher=random",
        "searcher.batch=1",
        "space=tensor",
        f"start={directory}/recipe.yaml",
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    run = next(path for path in (place / "runs").iterdir() if "tensor-random" in path.name and "batch-1" in path.name)
    first = next(line for line in read_log(run / "trials.jsonl") if line["kind"] == "ask")["points"][0]
    recipe = Recipe.from_yaml((directory / "recipe.yaml").read_text())
    known = {value for row in recipe.coefficients["weight"].values() for value in row.values()}
    assert all(any(abs(x - value) < 1e-9 for value in known) for x in first)


def test_own_directories_in_one_line(own_classifiers: Path) -> None:
    """Experts with heads of their own: task names are expert names, so each task uses the head of its expert."""
    done = evomerge(
        "search",
        "model.base=base",
        "model.experts=[mood,topic]",
        "fitness.tasks={mood: mood.jsonl, topic: topic.jsonl}",
        "budget=8",
        cwd=own_classifiers,
    )
    assert done.returncode == 0, done.stderr
    (run,) = (own_classifiers / "runs").glob("directories-linear-layer-cmaes-*")
    recipe = Recipe.from_yaml((run / "recipe.yaml").read_text())
    for name, classes in (("mood", 2), ("topic", 3)):  # the heads that the merge leaves out are kept beside the recipe
        head = load_file(run / recipe.heads[name])
        assert head["classifier.weight"].shape[0] == classes
        assert not any("encoder" in key for key in head)
    assert set(json.loads((run / "summary.json").read_text())["report"]["experts"]["tasks"]) == {"mood", "topic"}


@pytest.mark.parametrize("where", ["own_fitness.py", "own_fitness"])
def test_a_fitness_of_ones_own(own_classifiers: Path, where: str) -> None:
    (own_classifiers / "own_fitness.py").write_text(
        "import torch\n"
        "def score(model, tokenizer, items):\n"
        "    norm = -sum(float(p.square().sum()) for p in model.parameters())\n"
        "    return {task: [norm + len(item.text) for item in chosen] for task, chosen in items.items()}\n"
    )
    done = evomerge(
        "search", "model.base=base", "model.experts={one: mood, two: topic}", "fitness=custom",
        f"fitness.function={where}:score",
        "fitness.tasks={all: mood.jsonl}", "budget=4", "searcher=random", f"hydra.run.dir=runs/{where}",
        cwd=own_classifiers,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "winner" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serch",), "Did you mean 'evomerge search'?"),
        (("search", "sercher=tpe"), "Did you mean searcher"),
        (("search",), "There is nothing to merge yet"),
        (("search", "model.base=base", "model.experts=[mood]"), "There are no tasks"),
        (("search", "model.base=base", "model.experts=[mod]", "fitness.tasks={mood: mood.jsonl}"), "mod"),
        (
            ("search", "model.base=base", "model.experts=[mood]", "fitness.tasks={mood: lost.jsonl}"),
            "lost.jsonl does not exist",
        ),
        (
            ("search", "model.base=base", "model.experts=[mood]", "fitness.tasks={x: mood.jsonl}"),
            "The task x has no head",
        ),
        (("search", "model=text", "model.suite=nowhere"), "build_suite.py"),
        (
            (
                "search",
                "model.base=base",
                "model.experts=[mood]",
                "fitness.tasks={mood: mood.jsonl}",
                "start=lost.yaml",
            ),
            "start=lost.yaml is no number",
        ),
        (
            ("search", "model.base=base", "model.experts=[mood]", "fitness.tasks={mood: mood.jsonl}", "budget=0"),
            "at least 1",
        ),
        (
            (
                "search",
                "model.base=base",
                "model.experts=[mood]",
                "fitness=custom",
                "fitness.function=own:f",
                "fitness.tasks={mood: mood.jsonl}",
            ),
            "'own' cannot be imported",
        ),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_mistakes_end_in_a_sentence(own_classifiers: Path, arguments: tuple[str, ...], message: str) -> None:
    done = evomerge(*arguments, cwd=own_classifiers)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_version(tmp_path: Path) -> None:
    assert "evomerge search experiment=smoke" in evomerge("--help", cwd=tmp_path).stdout
    assert evomerge("--version", cwd=tmp_path).stdout.startswith("0.")
    settings = evomerge("search", "--help", cwd=tmp_path)
    assert settings.returncode == 0
    assert "model.experts" in settings.stdout
