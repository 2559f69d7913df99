"""Which documents a task of lm-eval gives, where names and folders could mean several; and those that nobody can ask,
which are found before the search, in every split."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError, SuiteError
from evomerge.fitness.items import SPLITS, make_item
from evomerge.fitness.lm_eval import loading as lm_eval_loading
from evomerge.fitness.lm_eval.loading import is_public
from evomerge.fitness.sampling import Subset
from evomerge.runs.run import run_search
from tests.kit.helpers import compose
from tests.kit.language import documents, read, write_jsonl, write_task
from tests.processes.command import evomerge


def task(path: str | None, source: str = "my/own.yaml", **kwargs: Any) -> SimpleNamespace:
    config = SimpleNamespace(
        dataset_path=path, custom_dataset=None, dataset_kwargs=kwargs or None, metadata={"config_source": source}
    )
    return SimpleNamespace(config=config)


def test_what_is_local_is_not_public_and_what_is_public_is_not_local(tmp_path, monkeypatch):
    for name in ("mine", "data/mine", "allenai/ai2_arc", "datasets--a--b/snapshots/0"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for own in ("mine", "./mine", "data/mine", str(tmp_path / "mine")):
        assert not is_public(task(own)), own
    assert not is_public(task("parquet", data_files={"test": ["mine/test.parquet"]}))
    assert not is_public(task("json", data_files="mine.jsonl"))
    for public in ("nobody/knows", "allenai/ai2_arc", str(tmp_path / "allenai" / "ai2_arc")):
        assert is_public(task(public)), public
    assert is_public(task(str(tmp_path / "datasets--a--b" / "snapshots" / "0")))  # the cache of a hub
    assert is_public(task("parquet", data_files={"test": ["hf://datasets/allenai/ai2_arc/test.parquet"]}))
    assert is_public(task("json", data_files="https://example.org/test.jsonl"))
    assert is_public(task("json", data_files={"test": "/cache/datasets--a--b/snapshots/0/test.jsonl"}))
    assert is_public(task("mine", source="C:\\lm_eval\\tasks\\x.yaml".replace("\\", "/").replace("C:", "/C")))


def test_a_folder_is_read_and_its_test_split_searched_on(tmp_path, monkeypatch):
    """Beside the YAML, too, wherever the command runs."""
    write_jsonl(tmp_path / "data" / "mine" / "test.jsonl", documents(40), parents=True)
    path = write_task(tmp_path, "choice", dataset_path="data/mine", dataset_kwargs=None)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for here in (tmp_path, Path(__file__).parent):
        monkeypatch.chdir(here)
        fitness, splits = read({"mine": path}, {"mine": {"split": "test"}})
        assert sum(len(items["mine"]) for items in splits.values()) == 40
        assert fitness.warnings == []
    (tmp_path / "data").rename(tmp_path / "allenai")
    (tmp_path / "allenai" / "mine").rename(tmp_path / "allenai" / "ai2_arc")
    copy = write_task(tmp_path, "choice", dataset_path=str(tmp_path / "allenai" / "ai2_arc"), dataset_kwargs=None)
    with pytest.raises(ConfigError, match="would choose coefficients by 'test'"):  # a copy of a benchmark
        read({"mine": copy}, {"mine": {"split": "test"}})


@pytest.fixture
def lm_evals(tmp_path, monkeypatch) -> Path:
    """Tasks that lm-eval has: here those of a directory, under the name `arc_mini`."""
    write_task(tmp_path / "lm_eval" / "tasks", "theirs", documents(30, seed=1), like="choice", task="arc_mini")
    real = lm_eval_loading._by_name
    include = tmp_path / "lm_eval" / "tasks"

    def found(name: str, given: Any, setting: str) -> Any:
        if name != "arc_mini":
            raise ConfigError(f"{setting}: lm-eval has no task '{name}'.")
        return real(name, [include], setting)

    monkeypatch.setattr(lm_eval_loading, "_by_name", found)
    return include


def test_a_directory_named_like_a_task_changes_nothing_and_is_named(tmp_path, monkeypatch, lm_evals):
    monkeypatch.chdir(tmp_path)
    fitness, before = read({"arc": "arc_mini"}, public_test=True)
    assert not [text for text in fitness.warnings if "directory" in text]
    (tmp_path / "arc_mini").mkdir()
    write_task(tmp_path, "arc_mini", documents(30, seed=2), like="choice", task="mine")
    fitness, after = read({"arc": "arc_mini"}, public_test=True)
    assert after == before
    (said,) = [text for text in fitness.warnings if "directory" in text]
    assert "arc_mini is taken as the task of that name, and the directory ./arc_mini is not looked at" in said
    _, own = read({"arc": "arc_mini.yaml"})  # as it says
    assert own != before


def test_a_directory_of_another_name_stands_for_the_yaml_beside_it(tmp_path, monkeypatch, lm_evals):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep" / "mine").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "deep"):
        write_task(folder, "mine", like="choice")
    (tmp_path / "mine").mkdir()
    for name in ("mine", "deep/mine", str(tmp_path / "mine")):
        fitness, splits = read({"mine": name})
        assert sum(len(items["mine"]) for items in splits.values()) == 40
        assert fitness.warnings == []
    (tmp_path / "mine.yaml").unlink()
    with pytest.raises(ConfigError, match="lm-eval has no task 'mine'"):
        read({"mine": "mine"})


def test_a_folder_that_hides_the_data_set_of_a_task_is_named(tmp_path, monkeypatch, lm_evals):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = lm_evals / "theirs.yaml"
    config = yaml.safe_load(path.read_text()) | {"dataset_path": "org/arc", "dataset_kwargs": None}
    path.write_text(yaml.safe_dump(config))
    write_jsonl(tmp_path / "org" / "arc" / "test.jsonl", documents(30), parents=True)
    fitness, _ = read({"arc": "arc_mini"}, public_test=True)
    assert any("the documents of arc_mini come from the folder ./org/arc, which" in text for text in fitness.warnings)
    with pytest.raises(ConfigError, match="would choose coefficients by 'test'"):  # whose they are is not known
        read({"arc": "arc_mini"})


def rows_of(split: str, n: int, change: dict[str, Any], bad: int) -> list[dict[str, Any]]:
    rows = documents(n, seed=SPLITS.index(split))
    return [row | change if i == bad else row for i, row in enumerate(rows)]


def three(folder: Path, kind: str, where: str, change: dict[str, Any]) -> Path:
    """A task with three splits, and one document in one of them that nobody can ask."""
    files = {
        split: str(write_jsonl(folder / f"{split}.jsonl", rows_of(split, 8, change if split == where else {}, 5)))
        for split in SPLITS
    }
    kwargs = {"data_files": files, "cache_dir": str(folder / "cache")}
    return write_task(folder, kind, [], test_split="report", dataset_kwargs=kwargs)


BAD = [
    ("choice", {"label": 4}, "document 5 of pico_choice: the reference answer 4 is none of the 4 choices"),
    ("choice", {"choices": ["w1", "", "w2", "w3"]}, "document 5 of pico_choice: .*has no tokens of its own"),
    ("answer", {"answer": ""}, "document 5 of pico_answer: .*has no tokens of its own|answer is empty"),
    ("rolling", {"text": " "}, "document 5 of pico_rolling: its text is blank, which has no likelihood"),
    ("rolling", {"text": ""}, "document 5 of pico_rolling: its text is empty, which has no likelihood"),
    ("generated", {"answer": " "}, "document 5 of pico_generated: .*has no tokens of its own"),
]


@pytest.mark.parametrize("where", SPLITS)
@pytest.mark.parametrize(("kind", "change", "message"), BAD)
def test_what_nobody_can_ask_is_found_before_the_search(language_family, tmp_path, where, kind, change, message):
    path = three(tmp_path, kind, where, change)
    given = [
        "fitness=lm_eval",
        f"model.base={language_family}/base",
        f"model.experts=[{language_family}/left]",
        f"model.cache={tmp_path}/cache",
        "model.device=cpu",
        "space=layer",
        "budget=4",
        f"fitness.tasks={{mine: {{task: {path}}}}}",
    ]
    with pytest.raises(
        SuiteError, match=rf"Of the {where} items, 1 of 8 of the task mine cannot be asked: ({message})"
    ):
        run_search(compose(*given), tmp_path / "run", Reporter())
    assert not (tmp_path / "run" / "trials.jsonl").exists()
    if where == "report" and kind == "choice":
        done = evomerge("evaluate", "base", *given[:-3], given[-1], cwd=tmp_path)
        assert done.returncode == 2
        assert "evomerge: Of the report items, 1 of 8 of the task mine cannot be asked" in done.stderr


def test_with_other_items_for_every_generation_all_are_looked_at():
    items = {"a": [make_item(f"{i}", 0) for i in range(10)]}
    assert len(Subset(items, 4, 0, rotate=True).every()["a"]) == 10
    assert Subset(items, 4, 0).every() == Subset(items, 4, 0)(0)
