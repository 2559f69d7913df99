"""Which documents of lm-eval's tasks a search may see, with which examples before them, and how tasks are found."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.common.errors import ConfigError, SuiteError
from evomerge.fitness.items import check_disjoint
from evomerge.fitness.lm_eval import documents as lm_eval_documents
from tests.kit.language import documents, read, scored, write_jsonl, write_task

PUBLIC = {"training_split": "train", "validation_split": "validation"}


def with_splits(folder: Path, names: list[str], **changes) -> Path:
    """A task whose data set has splits of these names, ten documents each."""
    rows = documents(10 * len(names))
    files = {
        name: str(write_jsonl(folder / f"{name}.jsonl", rows[10 * i : 10 * (i + 1)])) for i, name in enumerate(names)
    }
    kwargs = {"data_files": files, "cache_dir": str(folder / "cache")}
    return write_task(folder, "choice", [], **{"test_split": names[-1], "dataset_kwargs": kwargs, **changes})


def texts(items) -> list[str]:
    return [json.loads(item.text)["question"] for item in items]


@pytest.fixture
def public(monkeypatch):
    monkeypatch.setattr(lm_eval_documents, "is_public", lambda task: True)


def test_documents_of_ones_own_are_divided_by_their_content(tmp_path):
    rows = documents(60)
    _, splits = read({"choice": write_task(tmp_path, "choice", rows)})
    check_disjoint(splits)
    sizes = {split: len(items["choice"]) for split, items in splits.items()}
    assert sum(sizes.values()) == 60
    assert sizes["search"] > sizes["report"]
    random.Random(1).shuffle(rows)
    _, others = read({"choice": write_task(tmp_path / "again", "choice", rows[:50])})
    for split, items in others.items():
        assert {item.id for item in items["choice"]} <= {item.id for item in splits[split]["choice"]}
    assert {item.label for item in splits["search"]["choice"]} == {0, 1, 2, 3}  # subsets are balanced over answers


def test_splits_that_are_called_as_ours_are_taken_as_they_are(tmp_path):
    path = with_splits(tmp_path, ["search", "select", "report"])
    _, splits = read({"choice": path})
    for i, split in enumerate(("search", "select", "report")):
        assert texts(splits[split]["choice"]) == [row["question"] for row in documents(30)[10 * i : 10 * (i + 1)]]


def test_three_splits_can_be_named_and_one_can_be_divided(tmp_path):
    path = with_splits(tmp_path, ["train", "validation", "test"])
    named = {"search": "validation", "select": "train", "report": "test"}
    _, splits = read({"choice": path}, {"choice": {"splits": named}})
    assert texts(splits["select"]["choice"]) == [row["question"] for row in documents(30)[:10]]
    _, splits = read({"choice": path}, {"choice": {"split": "train"}})
    assert sum(len(items["choice"]) for items in splits.values()) == 10


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"split": "tran"}, r"pico_choice has no split 'tran'\. Did you mean 'train'\?"),
        ({"split": "train", "splits": {}}, "needs one `split`, which is divided, or all three `splits`"),
        ({"splits": {"search": "train"}}, "needs one `split`, which is divided, or all three `splits`"),
        ({"splits": "train"}, "needs one `split`, which is divided, or all three `splits`"),
        ({"fewshot": -1}, r"fitness\.tasks\.choice\.fewshot is -1"),
        ({"fewshot": "two"}, r"fitness\.tasks\.choice\.fewshot is two"),
    ],
)
def test_settings_of_a_task_that_mean_nothing(tmp_path, given, message):
    with pytest.raises(ConfigError, match=message):
        read({"choice": with_splits(tmp_path, ["train", "validation", "test"])}, {"choice": given})


def test_a_split_without_documents_is_refused(tmp_path):
    with pytest.raises(SuiteError, match="gives no items for the split 'select'"):
        read({"choice": write_task(tmp_path, "choice", documents(1))})


def test_a_document_that_is_repeated_is_kept_once(tmp_path, caplog):
    _, splits = read({"choice": write_task(tmp_path, "choice", documents(30) + documents(30))})
    assert sum(len(items["choice"]) for items in splits.values()) == 30
    assert "30 documents are repeated" in caplog.text


def test_public_test_splits_are_not_searched_on(tmp_path, public):
    path = with_splits(tmp_path, ["train", "validation", "test"], **PUBLIC)
    fitness, splits = read({"choice": path})  # without a word: validation, divided
    assert texts(splits["search"]["choice"])[0] in [row["question"] for row in documents(30)[10:20]]
    assert fitness.warnings == []
    with pytest.raises(
        ConfigError, match=r"'test', the split on which .* published.*split=train \(there is test, train, v"
    ):
        read({"choice": path}, {"choice": {"split": "test"}})
    with pytest.raises(ConfigError, match=r"fitness\.public_test=true, and the report will say so first"):
        read({"choice": path}, {"choice": {"splits": {"search": "train", "select": "test", "report": "validation"}}})
    fitness, _ = read({"choice": path}, {"choice": {"split": "test"}}, public_test=True)
    (warning,) = fitness.warnings
    assert warning.startswith("coefficients were chosen by 'test' of pico_choice, the split on which its results are")


def test_what_counts_as_public():
    def task(path: str | None, source: str, function=None) -> SimpleNamespace:
        config = SimpleNamespace(dataset_path=path, custom_dataset=function, metadata={"config_source": source})
        return SimpleNamespace(config=config)

    assert lm_eval_documents.is_public(task("allenai/ai2_arc", "my/copy.yaml"))
    assert lm_eval_documents.is_public(task("json", "/somewhere/lm_eval/tasks/asdiv/default.yaml"))
    assert not lm_eval_documents.is_public(task("json", "my/own.yaml"))
    assert not lm_eval_documents.is_public(task(None, "my/own.yaml", print))


def test_public_test_splits_may_be_reported_on(tmp_path, public):
    path = with_splits(tmp_path, ["train", "validation", "test"], **PUBLIC)
    named = {"search": "train", "select": "validation", "report": "test"}
    fitness, _ = read({"choice": path}, {"choice": {"splits": named}})
    assert fitness.warnings == []


def test_a_validation_split_is_public_where_there_is_no_test_split(tmp_path, public):
    path = with_splits(tmp_path, ["train", "validation"], test_split=None, **PUBLIC)
    _, splits = read({"choice": path})
    assert texts(splits["search"]["choice"])[0] in [row["question"] for row in documents(20)[:10]]
    with pytest.raises(ConfigError, match="'validation', the split on which results"):
        read({"choice": path}, {"choice": {"split": "validation"}})


def test_examples_may_not_come_from_what_judges(tmp_path):
    path = write_task(tmp_path, "choice")
    with pytest.raises(ConfigError, match=r"drawn from documents that select or report items are made of \(\d+ of"):
        read({"choice": path}, {"choice": {"fewshot": 2}})


def test_no_document_is_an_example_before_itself(tmp_path, language_family):
    path = with_splits(tmp_path, ["search", "select", "report"], fewshot_split="search")
    fitness, splits = read({"choice": path}, {"choice": {"fewshot": 9}})
    model = AutoModelForCausalLM.from_pretrained(language_family / "base").eval()
    prepared = fitness.prepare(AutoTokenizer.from_pretrained(language_family / "base"), splits["search"])
    fitness(model, prepared, {"choice": [item.id for item in splits["search"]["choice"]]})
    for query in prepared.queries.values():
        prompt = query.instances[0].args[0]
        assert prompt.count("Q :") == 10
        assert prompt.count(f"Q : {query.document.doc['question']} A :") == 1


def test_too_many_examples_are_refused(tmp_path):
    path = write_task(tmp_path, "choice", fewshot_config={"samples": documents(3, seed=9)})
    with pytest.raises(ConfigError, match="has no 4 few-shot examples to draw"):
        read({"choice": path}, {"choice": {"fewshot": 4}})


def test_a_task_without_examples_keeps_none_and_says_so(tmp_path):
    fitness, _ = read({"choice": write_task(tmp_path, "choice", num_fewshot=0)}, fewshot=2)
    assert fitness.warnings == [
        "pico_choice says num_fewshot: 0 itself, so fewshot=2 has no effect on it, as in lm-eval"
    ]


def test_the_digest_names_all_that_decides_scores_and_no_paths(tmp_path):
    examples = {"fewshot_config": {"samples": documents(3, seed=9)}}
    settings = {
        "same": {},
        "prompt": {"doc_to_text": "{{question}}"},
        "delimiter": {"target_delimiter": ""},
        "shots": {"num_fewshot": 2, **examples},
        "other shots": {"num_fewshot": 2, "fewshot_config": {"samples": documents(3, seed=8)}},
    }
    first, _ = read({"choice": write_task(tmp_path / "first", "choice")})
    codes = {
        name: read({"choice": write_task(tmp_path / name, "choice", **s)})[0].identity()["code"]
        for name, s in settings.items()
    }
    assert codes.pop("same") == first.identity()["code"]
    assert len({first.identity()["code"], *codes.values()}) == len(settings)


@pytest.mark.parametrize("fewshot", [0, 2])
def test_another_document_matters_where_it_changes_the_examples_of_others(tmp_path, fewshot):
    """They are drawn one document after the other, so one more on top moves all of them."""
    found = []
    for name in ("as it was", "with one more"):
        folder = tmp_path / name
        folder.mkdir()
        path = with_splits(folder, ["shots", "search", "select", "report"], fewshot_split="shots")
        if name == "with one more":
            file = folder / "report.jsonl"
            file.write_text(json.dumps(documents(1, seed=99)[0]) + "\n" + file.read_text())
        splits = {split: split for split in ("search", "select", "report")}
        found.append(read({"choice": path}, {"choice": {"fewshot": fewshot, "splits": splits}})[0].identity())
    assert (found[0] == found[1]) == (fewshot == 0)


def test_a_group_is_one_task_and_its_tasks_are_its_strata(tmp_path, language_family):
    rows = documents(60)
    for i, name in enumerate(("easy", "hard")):
        write_task(tmp_path, name, rows[30 * i : 30 * (i + 1)], like="choice", task=name)
    (tmp_path / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["easy", "hard"]}))
    fitness, splits = read({"both": tmp_path / "both.yaml"})
    assert {item.label for item in splits["search"]["both"]} == {0, 1}
    model = AutoModelForCausalLM.from_pretrained(language_family / "base").eval()
    tokenizer = AutoTokenizer.from_pretrained(language_family / "base")
    outcome = scored(fitness, model, tokenizer, splits["search"])
    alone, others = read({"hard": tmp_path / "hard.yaml"})
    single = scored(alone, model, tokenizer, others["search"])
    scores = dict(zip(outcome.items["both"], outcome.results["both"]["log_probability"], strict=True))
    for item, value in zip(single.items["hard"], single.results["hard"]["log_probability"], strict=True):
        assert scores[item] == pytest.approx(value, abs=1e-4)


def test_a_name_is_found_in_a_directory_of_ones_own(tmp_path):
    write_task(tmp_path / "deep" / "down", "choice", task="mine")
    _, splits = read({"choice": "mine"}, {"choice": {"include_path": str(tmp_path / "deep")}})
    assert splits["search"]["choice"]


def test_documents_of_a_hub_without_a_network_are_an_error_before_the_search(monkeypatch):
    from lm_eval.tasks import _index

    roots: list[Path] = []
    build = _index.TaskIndex.build
    monkeypatch.setattr(_index.TaskIndex, "build", staticmethod(lambda paths: roots.extend(paths) or build(paths)))
    with pytest.raises(SuiteError, match=r"the documents of arc_easy come from a hub, which was not reached.*HF_HOME"):
        read({"arc": "arc_easy"})
    assert roots == []  # 14,000 files are not parsed to find one


def test_a_name_that_lm_eval_does_not_have(monkeypatch):
    """Near ones are named, here of a few tasks: lm-eval parses 14,000 files to find all."""
    from lm_eval.tasks._index import TaskIndex

    few = staticmethod(lambda root: (root / "arc").rglob("*.yaml"))
    monkeypatch.setattr(TaskIndex, "_iter_yaml_files", few)
    with pytest.raises(
        ConfigError, match=r"fitness\.tasks\.arc: lm-eval has no task 'arc_esy'\. Did you mean .*arc_easy"
    ):
        read({"arc": "arc_esy"})


@pytest.mark.parametrize(
    ("like", "changes", "message"),
    [
        ("generated", {"generation_kwargs": {"until": ["."], "do_sample": True}}, "draws its answers at random"),
        ("generated", {"generation_kwargs": {"until": ["."], "temperature": 0.7}}, "draws its answers at random"),
        ("generated", {"repeats": 4}, "draws its answers at random"),
        ("generated", {"unsafe_code": True}, "runs code that models write"),
        ("choice", {"doc_to_image": "question"}, "takes images or sound"),
        ("choice", {"doc_to_text": "{{nothing}}"}, "lm-eval cannot load .* 'nothing' is undefined"),
        ("choice", {"process_docs": "here"}, "lm-eval cannot load|cannot be read"),
    ],
)
def test_tasks_that_cannot_be_scored_here(tmp_path, like, changes, message):
    with pytest.raises((ConfigError, SuiteError), match=message):
        read({"mine": write_task(tmp_path, "mine", like=like, **changes)})


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"fitness\.tasks\.mine names .*mine\.yaml, which is no file"):
        read({"mine": tmp_path / "mine.yaml"})
    path = write_task(tmp_path, "choice")
    (tmp_path / "choice.jsonl").unlink()
    with pytest.raises(SuiteError, match=r"lm-eval cannot load .*choice\.yaml"):
        read({"choice": path})
