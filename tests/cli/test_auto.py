"""`evomerge auto`: what it chooses of what is given, and that what it chose runs, ends well and is not worse."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

import evomerge as em
from evomerge.cli.quoting import written
from evomerge.cli.settings import compose_settings
from evomerge.common.errors import ConfigError
from evomerge.runs.config import plain
from evomerge.runs.guess import Guess, effort, guess
from evomerge.runs.sources import find_sources
from tests.kit.language import save_language_family, write_task
from tests.processes.command import evomerge

SIZES = {"search": 1000, "select": 2000, "report": 3000}


def ended(place: Path, *arguments: str) -> str:
    """Run it, look at what it leaves, and return what it printed."""
    done = evomerge("auto", *arguments, cwd=place)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line.split(":")[0] for line in said[:4]] == ["fitness", "search", "effort", "the same as"]
    merge = next(line for line in said if line.startswith("merge:")).removeprefix("merge:")
    out = place / "runs" / "auto"
    assert shlex.split(merge)[:3] == ["evomerge", "merge", "runs/auto/recipe.yaml"]
    assert (out / "report.html").is_file()
    select = em.load(out).summary.select
    whole = max(select.seen.values())  # who was dropped has a value on fewer items, which is another number
    rivals = [v for name, v in select.finalists.items() if name.startswith("constant") and select.seen[name] == whole]
    assert all(select.value >= value for value in rivals)
    return done.stdout + done.stderr


@pytest.mark.slow
def test_two_fine_tunes_with_heads_of_their_own(own_classifiers, tmp_path):
    for name in ("base", "mood", "topic", "mood.jsonl", "topic.jsonl"):
        (tmp_path / name).symlink_to(own_classifiers / name)
    command = ("base", "mood", "topic", "--tasks", "mood.jsonl", "topic.jsonl", "--hours", "0.001")
    said = ended(tmp_path, *command)
    assert "with the heads of the experts of the same names: mood <- mood, topic <- topic" in said
    assert "searcher=gradient space=tensor" in said
    assert "This search is complete" in ended(tmp_path, *command)
    other = evomerge("auto", "base", "mood", "topic", "--tasks", "mood.jsonl", "--hours", "0.001", cwd=tmp_path)
    assert other.returncode == 2
    assert "runs/auto holds another search: name a new directory with --out" in other.stderr
    merged = evomerge("merge", "runs/auto/recipe.yaml", "runs/auto/merged", cwd=tmp_path)
    assert merged.returncode == 0, merged.stderr


@pytest.mark.slow
def test_a_suite_with_frozen_heads(pico_suite, tmp_path):
    (tmp_path / "suite").symlink_to(pico_suite.path)
    experts = [f"suite/experts/{name}" for name in pico_suite.experts]
    said = ended(tmp_path, "suite/base", *experts, "--tasks", "suite", "--hours", "0.002")
    assert "with the frozen heads that lie beside the tasks" in said


@pytest.mark.slow
def test_language_models_with_tasks_of_lm_eval(tmp_path):
    save_language_family(tmp_path)
    for name, kind in (("left", "choice"), ("right", "rolling")):
        write_task(tmp_path / "tasks", name, like=kind)
    said = ended(tmp_path, "base", "left", "right", "--tasks", "tasks", "--hours", "0.001")
    assert "fitness=lm_eval" in said
    assert "model.auto_class=AutoModelForCausalLM" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("base", "nobody", "--tasks", "mood.jsonl"), "nobody"),
        (("base", "mood", "topic", "--tasks", "other.jsonl"), "--tasks other.jsonl: there is no such file"),
        (("base", "mood", "topic", "--tasks", "mood.jsonl", "--hours", "0"), "--hours 0 is no time"),
        (
            ("base", "mood", "--tasks", "topic.jsonl", "mood.jsonl"),
            "head scores the task topic (topic.jsonl): no",
        ),
    ],
)
def test_what_search_refuses_is_refused(own_classifiers, tmp_path, arguments, message):
    for name in ("base", "mood", "topic", "mood.jsonl", "topic.jsonl"):
        (tmp_path / name).symlink_to(own_classifiers / name)
    done = evomerge("auto", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "runs").exists()


def test_what_tasks_are_of(tmp_path):
    """Files by their endings and their first line, directories by what is in them; all else are names of lm-eval."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "label": 1}) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "x"}) + "\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.txt").write_text("x")
    (tmp_path / "more" / "d.txt").write_text("x")

    def fitness(*tasks: str) -> object:
        return guess("base", [], tasks).settings["fitness"]

    assert fitness(str(tmp_path / "a.jsonl")) == "classification"
    assert fitness(str(tmp_path / "b.jsonl")) == "perplexity"
    assert fitness("arc_easy", "piqa") == "lm_eval"
    more = tmp_path / "more"
    assert list(guess("base", [], [str(more)]).settings["fitness.tasks"]) == ["c", "d"]
    (more / "task.yaml").write_text("task: task")
    assert list(guess("base", [], [str(more)]).settings["fitness.tasks"]) == ["task"]
    with pytest.raises(ConfigError, match=r"several kinds.*a \(labels\), arc_easy \(lm_eval\)"):
        fitness(str(tmp_path / "a.jsonl"), "arc_easy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="there are no tasks in this directory"):
        fitness(str(tmp_path / "empty"))


@pytest.fixture
def files(own_classifiers, tmp_path, monkeypatch) -> Path:
    """A directory with `base`, and as many experts and tasks of any name as `put` is asked for."""
    (tmp_path / "base").symlink_to(own_classifiers / "base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tests.cli.test_auto.OWN", own_classifiers)
    return tmp_path


OWN = Path()


def put(name: str, like: str = "mood") -> str:
    """Let a model or a file of items be at a path, and return the path."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).symlink_to(OWN / like)
    return name


def composed(chosen: Guess) -> dict:
    """Return a guess as `evomerge search` has it."""
    return plain(compose_settings([f"{name}={written(value)}" for name, value in chosen.settings.items()]))


def test_two_tasks_of_one_name_are_refused(files):
    two = [put("a/mood.jsonl", "mood.jsonl"), put("b/mood.jsonl", "mood.jsonl")]
    with pytest.raises(ConfigError, match=r"called mood, a/mood\.jsonl and b/mood\.jsonl: .* Rename"):
        guess("base", [put("mood")], two)
    (files / "a" / "mood.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"called mood, a/mood\.jsonl and a/mood\.txt"):
        guess("base", ["mood"], ["a/mood.jsonl", "a/mood.txt"])


def test_the_order_of_a_directory_is_nobodys(files):
    """Only what was named one by one is paired by order; the pairs are said."""
    experts = [put("m/zeta"), put("m/alpha", "topic")]
    tasks = [put("tasks/z-task-of-zeta.jsonl", "mood.jsonl"), put("tasks/a-task-of-alpha.jsonl", "topic.jsonl")]
    with pytest.raises(ConfigError, match=r"task a-task-of-alpha \(tasks/a-.*There is zeta, alpha\. .*zeta\.jsonl; or"):
        guess("base", experts, ["tasks"])
    chosen = guess("base", experts, tasks)
    assert chosen.fitness.endswith("both are given: z-task-of-zeta <- m/zeta, a-task-of-alpha <- m/alpha")
    assert {name: task["expert"] for name, task in chosen.settings["fitness.tasks"].items()} == {
        "z-task-of-zeta": "zeta",
        "a-task-of-alpha": "alpha",
    }


@pytest.mark.parametrize(
    ("experts", "tasks", "names"),
    [
        (["mood", "topic"], ["émotion.jsonl", "x,y/t.jsonl"], ["emotion", "t"]),
        (["m,n/mood", "topic"], ["a:b.jsonl", "日本.jsonl"], ["a_b", "unnamed"]),
        (["1", "2"], ["1.jsonl", "2.jsonl"], ["n_1", "n_2"]),
        (["null", "true"], ["null.jsonl", "true.jsonl"], ["n_null", "n_true"]),
        (["x/é", "y/e"], ["e.jsonl", "é.jsonl"], ["e", "e_2"]),
        (["r/a=b", "r/${c}"], ["a b.jsonl", "it's.jsonl"], ["a_b_2", "it_s"]),
        (["a/last", "b/last"], ["mood.jsonl", "topic.jsonl"], ["mood", "topic"]),
    ],
)
def test_search_is_given_what_auto_was_given(files, experts, tasks, names):
    """Whatever the names are: settings reach `search` as they were, and each task has the expert that is its own."""
    for path, like in zip(experts, ("mood", "topic"), strict=True):
        put(path, like)
    for path, like in zip(tasks, ("mood", "topic"), strict=True):
        put(path, f"{like}.jsonl")
    settings = composed(guess("base", experts, tasks))
    sources = find_sources(settings["model"], settings["fitness"]["tasks"])
    assert [str(path) for path in sources.experts.values()] == experts
    assert [str(task.items) for task in sources.tasks.values()] == tasks
    assert list(sources.tasks) == names
    for number, task in enumerate(sources.tasks.values()):
        owner = next((path for path in experts if Path(path).name == task.items.stem), experts[number])
        assert str(sources.experts[str(task.expert)]) == owner


@pytest.mark.slow
def test_the_command_that_it_prints_does_the_same(files):
    experts = [put("m,n/last"), put("o/last", "topic")]
    tasks = [put("émotion.jsonl", "mood.jsonl"), put("x,y/a:b.jsonl", "topic.jsonl")]
    given = (*experts, "--tasks", *tasks, "--hours", "0.001", "--out", "a=b,c")
    done = evomerge("auto", "base", *given, cwd=files)
    assert done.returncode == 0, done.stderr
    assert "émotion is called emotion; a:b is called a_b" in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.startswith("the same as: "))
    again = evomerge(*shlex.split(line.removeprefix("the same as: "))[1:], cwd=files)
    assert again.returncode == 0, again.stderr
    assert "This search is complete: a=b,c" in again.stdout + again.stderr


def test_a_merge_for_each_block_takes_time():
    """Choosing merges each model once for each block of items: 21 models, 20 blocks of 2000 items in 2 tasks."""
    chosen, hours = Guess({}, "", "", gradient=False, tasks=2), 3600 * 24
    assert effort(chosen, 1.0, 0.0, SIZES, hours).seconds == 200 + 21 * 20 + 2


@pytest.mark.parametrize("gradient", [True, False])
def test_more_time_buys_more_and_is_kept_to(gradient):
    chosen = Guess({}, "", "", gradient, 3)
    efforts = [effort(chosen, 0.1, 0.005, SIZES, 3600 * hours) for hours in (0.01, 0.05, 0.1, 0.3, 1, 10)]
    taken = [one.seconds for one in efforts]
    assert taken == sorted(taken)
    assert len({str(one.settings) for one in efforts}) > 3 - gradient
    for one, hours in zip(efforts, (0.01, 0.05, 0.1, 0.3, 1, 10), strict=True):
        assert one.seconds <= 3600 * hours or one == efforts[0]
    assert "fitness.select_items" not in efforts[-1].settings
