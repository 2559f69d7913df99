from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from evomerge.common.errors import CheckpointError, ConfigError, EvomergeError, SuiteError
from evomerge.fitness.heads import FrozenHead, OwnHead
from evomerge.runs.schema import ModelConfig
from evomerge.runs.sources import find_sources, make_heads, read_split
from evomerge.selection.marks import few_items


def found(*overrides: str):
    """What `evomerge search <overrides>` finds."""
    given = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(list(overrides))}
    tasks = given.pop("fitness.tasks", None)
    model = {"name": "own"} | {name.removeprefix("model."): value for name, value in given.items()}
    return find_sources({**asdict(ModelConfig()), **model}, tasks)


@pytest.fixture
def pico(pico_suite) -> str:
    return f"model.suite={pico_suite.path}"


def test_a_suite_is_complete_by_itself(pico_suite, pico):
    sources = found(pico)
    assert (sources.base, sources.experts, sources.tasks) == (pico_suite.base, pico_suite.experts, pico_suite.tasks)


def test_the_pico_suite_is_built_when_it_is_missing(pico_suite, monkeypatch):
    built = []
    monkeypatch.setattr("evomerge.demo.pico.build_pico", lambda path: built.append(path) or pico_suite)
    assert found("model.builder=evomerge.demo.pico.build_pico", "model.suite=some/where").tasks == pico_suite.tasks
    assert built == [Path("some/where")]
    with pytest.raises(SuiteError, match="build it with"):  # a directory of that name is not enough: it may be a user's
        found("model.suite=some/where/pico")


def test_some_experts_of_a_suite_and_their_tasks(pico_suite, pico):
    sources = found(pico, "model.experts=[metals,animals]")
    assert list(sources.experts) == ["metals", "animals"]
    assert list(sources.tasks) == ["animals", "metals"]
    assert list(found(pico, "model.experts=trees").experts) == ["trees"]


def test_another_base_and_other_tasks_for_a_suite(pico_suite, pico):
    sources = found(pico, "model.base=my/own/base", "fitness.tasks={trees: my.jsonl}")
    assert sources.base == Path("my/own/base")
    assert sources.experts == pico_suite.experts
    assert {name: (task.items, task.expert, task.head) for name, task in sources.tasks.items()} == {
        "trees": (Path("my.jsonl"), "trees", None)
    }


@pytest.mark.parametrize(
    "experts",
    ["[my/models/a,my/other/b/]", "{a: my/models/a, b: my/other/b}"],
    ids=["named by their directories", "named"],
)
def test_directories_of_the_users_own(experts):
    sources = found("model.base=my/models/base", f"model.experts={experts}", "fitness.tasks={a: a.jsonl, b: items/b}")
    assert sources.base == Path("my/models/base")
    assert sources.experts == {"a": Path("my/models/a"), "b": Path("my/other/b")}
    assert [(t.name, t.items, t.expert, t.head, t.classes) for t in sources.tasks.values()] == [
        ("a", Path("a.jsonl"), "a", None, ()),
        ("b", Path("items/b"), "b", None, ()),
    ]


def test_one_directory_and_names_that_are_numbers():
    assert found("model.base=x", "model.experts=my/own/a", "fitness.tasks={a: a.jsonl}").experts == {
        "a": Path("my/own/a")
    }
    sources = found("model.base=x", "model.experts=[1]", "fitness.tasks={1: {items: a.jsonl, classes: [0, 1]}}")
    assert sources.experts == {"1": Path("1")}
    assert (sources.tasks["1"].expert, sources.tasks["1"].classes) == ("1", ("0", "1"))


def test_tasks_in_the_long_form():
    task = "{items: my/items, head: my/head.safetensors, expert: b, classes: [no, yes]}"
    given = f"fitness.tasks={{quiz: {task}, a: {{items: a, expert: null}}}}"
    tasks = found("model.base=x", "model.experts=[a,b]", given).tasks
    quiz = tasks["quiz"]
    assert (quiz.items, quiz.head, quiz.expert) == (Path("my/items"), Path("my/head.safetensors"), "b")
    assert quiz.classes == ("no", "yes")
    assert tasks["a"].expert is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"nothing to merge yet\. Write model\.base=.*or model=text .*or experiment=smoke"),
        (["model.base=x"], "nothing to merge yet"),
        (["model.experts=[a]"], "nothing to merge yet"),
        (["model.base=x", "model.experts=[]"], "nothing to merge yet"),
        (
            ["model.base=x", "model.experts=[a,b]"],
            r"no tasks to score .*Write for example 'fitness\.tasks=",
        ),
        (
            ["model.base=x", "model.experts=[p/a,q/a]", "fitness.tasks={a: i}"],
            "Two experts have the same directory name",
        ),
    ],
)
def test_what_is_missing_is_said_with_what_to_write(overrides, message):
    with pytest.raises(ConfigError, match=message):
        found(*overrides)


def test_experts_that_a_suite_does_not_have(pico):
    with pytest.raises(ConfigError, match=r"model\.experts names 'tree', .*Did you mean 'trees'\?"):
        found(pico, "model.experts=[animals,tree]")
    with pytest.raises(ConfigError, match="nothing to merge yet"):
        found(pico, "model.experts=[]")


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("{}", r"fitness\.tasks is {}; write 'fitness\.tasks={name: items\.jsonl, \.\.\.}'"),
        ("[a.jsonl]", r"fitness\.tasks is \['a\.jsonl'\]; write"),
        ("a.jsonl", r"fitness\.tasks is a\.jsonl; write"),
        ("{q: null}", r"fitness\.tasks\.q is None; write the path of its items"),
        ("{q: [a, b]}", r"fitness\.tasks\.q is \['a', 'b'\]; write the path of its items"),
        ("{q: {item: a}}", r"fitness\.tasks\.q has the setting 'item'\. Did you mean 'items'\? There are items, head,"),
        ("{q: {head: h}}", r"fitness\.tasks\.q has no items: write fitness\.tasks\.q\.items=path/to/items\.jsonl"),
        ("{q: {items: ''}}", r"fitness\.tasks\.q has no items"),
        ("{q: {items: i, expert: spams}}", r"fitness\.tasks\.q\.expert names 'spams', .*Did you mean 'spam'\?"),
        ("{q: {items: i, classes: 'no,yes'}}", r"fitness\.tasks\.q\.classes is 'no,yes'; write a list of names"),
    ],
)
def test_tasks_that_cannot_be_understood(tasks, message):
    with pytest.raises(ConfigError, match=message):
        found("model.base=x", "model.experts=[spam,news]", f"fitness.tasks={tasks}")


def test_items_of_a_split_by_task(pico_suite, pico):
    items = read_split(found(pico).tasks, "select")
    assert {task: len(chosen) for task, chosen in items.items()} == {"animals": 120, "trees": 120, "metals": 120}
    with pytest.raises(SuiteError, match="items are missing: nowhere"):
        read_split(found(pico, "fitness.tasks={trees: nowhere}").tasks, "select")


def test_class_names_are_labels(pico, tmp_path):
    rows = [{"text": f"text {i}", "label": ("no", "yes")[i % 2]} for i in range(40)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = found(pico, f"fitness.tasks={{trees: {{items: {tmp_path}/mine.jsonl, classes: [no, yes]}}}}").tasks
    assert {item.label for item in read_split(tasks, "search")["trees"]} == {0, 1}
    with pytest.raises(EvomergeError, match="label 'no' is no class"):
        read_split(found(pico, f"fitness.tasks={{trees: {tmp_path}/mine.jsonl}}").tasks, "search")


def test_each_task_has_the_head_that_it_names_or_its_experts_own(pico_suite, pico):
    assert {type(head) for head in make_heads(found(pico), {}).values()} == {FrozenHead}
    head = pico_suite.tasks["metals"].head
    heads = make_heads(found(pico, f"fitness.tasks={{trees: i, q: {{items: i, head: {head}}}}}"), {})
    assert [(name, type(head)) for name, head in heads.items()] == [("trees", OwnHead), ("q", FrozenHead)]


def test_the_head_of_an_adapter_is_refused(pico, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    sources = found(pico, "fitness.tasks={trees: i}")
    sources = replace(sources, experts={**sources.experts, "trees": tmp_path})
    with pytest.raises(
        ConfigError, match=r"task trees is scored with the head of its expert trees, which is an adapter"
    ):
        make_heads(sources, {})


def test_a_task_without_a_head(pico):
    with pytest.raises(ConfigError, match=r"task quiz has no head\. .*\(fitness\.tasks\.quiz\.expert=one of animals"):
        make_heads(found(pico, "fitness.tasks={quiz: i}"), {})
    with pytest.raises(CheckpointError, match="none is no frozen head"):
        make_heads(found(pico, "fitness.tasks={quiz: {items: i, head: none}}"), {})


def test_class_names_in_another_order_than_the_head_are_refused(tmp_path):
    expert = tmp_path / "mood"
    expert.mkdir()
    (expert / "config.json").write_text(json.dumps({"id2label": {"0": "sad", "1": "happy"}}))
    own = ("model.base=b", f"model.experts=[{expert}]")
    with pytest.raises(ConfigError, match=r"\[happy,sad\], but the expert's own head has \[sad,happy\]"):
        found(*own, "fitness.tasks={mood: {items: m.jsonl, classes: [happy, sad]}}")
    assert found(*own, "fitness.tasks={mood: {items: m.jsonl, classes: [sad, happy]}}").tasks["mood"].classes
    (expert / "config.json").write_text(json.dumps({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    assert found(*own, "fitness.tasks={mood: {items: m.jsonl, classes: [happy, sad]}}").tasks["mood"].classes


def test_few_items():
    few = {"select": {"big": [None] * 50, "small": [None] * 7}}
    assert few_items(few) == ["few select items, so scores on them mean little: small (7)"]
    assert few_items({"select": {"big": [None] * 50}}) == []


def test_settings_that_only_some_fitnesses_have_are_handed_on():
    given = (
        "{arc: {task: arc_easy, split: train, fewshot: 2, expert: a}, mine: my.yaml, b: {items: org/data, field: body}}"
    )
    sources = found("model.base=x", "model.experts=[a,b]", f"fitness.tasks={given}")
    assert [(task.name, task.items, task.expert) for task in sources.tasks.values()] == [
        ("arc", Path("arc_easy"), "a"),
        ("mine", Path("my.yaml"), None),
        ("b", Path("org/data"), "b"),
    ]
    assert sources.further == {"arc": {"split": "train", "fewshot": 2}, "b": {"field": "body"}}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{task: a, items: b}", r"fitness\.tasks\.q has `items` and `task`, two words for one thing"),
        ("{task: 3}", r"fitness\.tasks\.q\.task is 3; write a path"),
        ("{task: a, fewshots: 3}", r"'fewshots'\. Did you mean 'fewshot'\?"),
        ("{fewshot: 3}", r"fitness\.tasks\.q has no items"),
    ],
)
def test_such_settings_that_cannot_be_understood(task, message):
    with pytest.raises(ConfigError, match=message):
        found("model.base=x", "model.experts=[a,b]", f"fitness.tasks={{q: {task}}}")


def test_class_names_of_the_experts_config_need_not_be_typed_again(own_classifiers: Path, tmp_path: Path) -> None:
    expert = tmp_path / "mood"
    shutil.copytree(own_classifiers / "mood", expert)
    config = json.loads((expert / "config.json").read_text())
    config |= {"id2label": {"0": "sad", "1": "glad"}, "label2id": {"sad": 0, "glad": 1}}
    (expert / "config.json").write_text(json.dumps(config))
    rows = [{"text": f"text {i}", "label": ("sad", "glad")[i % 2]} for i in range(40)]
    (tmp_path / "mood.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = {"suite": None, "name": "x", "base": str(own_classifiers / "base"), "experts": {"mood": str(expert)}}
    sources = find_sources(model, {"mood": {"items": str(tmp_path / "mood.jsonl")}})
    items = read_split(sources.tasks, "search")["mood"]
    assert {(item.text, item.label) for item in items} <= {(row["text"], i % 2) for i, row in enumerate(rows)}
    model["experts"] = {"mood": str(own_classifiers / "mood")}  # whose classes are LABEL_0 and LABEL_1
    with pytest.raises(SuiteError, match="label 'sad' is no class"):
        read_split(find_sources(model, {"mood": {"items": str(tmp_path / "mood.jsonl")}}).tasks, "search")
