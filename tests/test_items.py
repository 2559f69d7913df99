import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import SuiteError
from evomerge.items import SPLITS, UNLABELED, check_disjoint, item_id, make_item, read_items, write_items


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_an_id_names_the_content():
    assert item_id("a text", 3) == "2571668bba4236f8"  # fixed for ever: logs and suites hold ids
    assert item_id("a text", 3) != item_id("a text", 4)
    assert item_id("a \udc80", 0) != item_id("a \udc81", 0)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="utf-8")), st.integers(0, 5)), min_size=1, unique_by=lambda row: row[0]
    )
)
def test_items_come_back_as_written(tmp_path_factory, rows):
    directory = tmp_path_factory.mktemp("task")
    items = [make_item(text, label) for text, label in rows]
    write_items(directory / "search.jsonl", items)
    assert read_items(directory, "search") == items


def test_unlabeled_items_have_no_label_on_disk(tmp_path):
    write_items(tmp_path / "unlabeled.jsonl", [make_item("some text")])
    assert json.loads((tmp_path / "unlabeled.jsonl").read_text())["label"] is None
    assert read_items(tmp_path, "unlabeled")[0].label == UNLABELED
    write_items(tmp_path / "search.jsonl", [make_item("some text")])
    with pytest.raises(SuiteError, match="label None is no class"):
        read_items(tmp_path, "search")


def test_one_file_is_split_by_content(tmp_path):
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(1000)]
    splits = {split: read_items(lines(tmp_path / "all.jsonl", *rows), split) for split in SPLITS}
    assert sum(map(len, splits.values())) == 1000
    assert [round(len(items), -2) for items in splits.values()] == [400, 300, 300]
    shuffled = lines(tmp_path / "more.jsonl", *reversed(rows), {"text": "a new line", "label": 1})
    for split, items in splits.items():
        assert {item.id for item in items} <= {item.id for item in read_items(shuffled, split)}


def test_a_label_does_not_move_a_text_to_another_split(tmp_path):
    for label in range(5):
        path = lines(tmp_path / f"{label}.jsonl", *({"text": f"text {i}", "label": label} for i in range(50)))
        texts = {split: [item.text for item in read_items(path, split)] for split in SPLITS}
        assert texts == {split: [item.text for item in read_items(tmp_path / "0.jsonl", split)] for split in SPLITS}


def test_labels_may_be_class_names(tmp_path):
    lines(tmp_path / "search.jsonl", {"text": "one", "label": "dog"}, {"text": "two", "label": 0})
    items = read_items(tmp_path, "search", classes=("cat", "dog"))
    assert items == [make_item("one", 1), make_item("two", 0)]


def test_an_id_in_a_file_is_ignored_so_that_relabelling_changes_the_items(tmp_path):
    lines(tmp_path / "search.jsonl", *({"id": "x", "text": text, "label": 0} for text in ("one", "two")))
    before = read_items(tmp_path, "search")
    assert before == [make_item("one", 0), make_item("two", 0)]
    written = (tmp_path / "search.jsonl").read_text()
    (tmp_path / "search.jsonl").write_text(written.replace('"label": 0', '"label": 1'))
    assert not {item.id for item in before} & {item.id for item in read_items(tmp_path, "search")}


def items(*texts):
    return [make_item(text, 0) for text in texts]


def test_disjoint_splits_pass_also_where_tasks_share_texts_within_a_split():
    check_disjoint({"search": {"a": items("1", "2"), "b": items("2")}, "select": {"a": items("3")}, "report": {}})


def test_a_text_in_two_splits_is_refused_within_a_task_and_across():
    long = "x" * 100
    within = {
        "search": {"a": items("1")},
        "select": {"a": items("2")},
        "report": {"a": [make_item("2", 1), *items(long)]},
    }
    with pytest.raises(
        SuiteError, match=r"select items of task 'a' and report items of task 'a' share 1 texts, like '2'"
    ):
        check_disjoint(within)
    across = {"search": {"a": items("1", long), "b": items("2")}, "report": {"a": items("2"), "b": items("1", long)}}
    with pytest.raises(SuiteError) as error:
        check_disjoint(across)
    said = str(error.value)
    assert "search items of task 'b' and report items of task 'a' share 1 texts, like '2'; other pairs" in said
    assert "share 2 more" in said
    assert "x" * 61 not in said
    with pytest.raises(SuiteError, match="share 2 texts, like '1'") as error:
        check_disjoint({"search": across["search"], "report": {"b": items(long, "1")}})
    assert "more" not in str(error.value)
    with pytest.raises(SuiteError, match=r"like 'x{60}'. What .* leave each text in one split"):
        check_disjoint({"search": {"a": items(long)}, "select": {"b": items(long)}})


def test_repeated_texts_are_dropped_and_said(tmp_path, caplog):
    path = lines(tmp_path / "search.jsonl", *({"text": text, "label": 0} for text in ("one", "two", "one")))
    with caplog.at_level(logging.WARNING):
        assert [item.text for item in read_items(tmp_path, "search")] == ["one", "two"]
    assert f"{path}: 1 lines repeat a text" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "gives no items for the split 'search'"),
        ("{oops\n", r"line 1: no JSON object"),
        ('{"text": "a", "label": 0}\n["b"]\n', r"line 2: an item needs a string `text`"),
        ('{"text": 3, "label": 0}\n', "an item needs a string `text`"),
        ('{"text": "a"}\n', "label None is no class"),
        ('{"text": "a", "label": true}\n', "label True is no class"),
        ('{"text": "a", "label": -1}\n', "label -1 is no class"),
        ('{"text": "a", "label": "fish"}\n', "label 'fish' is no class; the classes are cat, dog"),
        ('{"text": "a", "label": 2}\n', "label 2 is no class; there are 2"),
    ],
)
def test_a_bad_file_is_refused_with_the_line(tmp_path, content, message):
    (tmp_path / "search.jsonl").write_text(content)
    with pytest.raises(SuiteError, match=message):
        read_items(tmp_path, "search", classes=("cat", "dog"))


def test_missing_files_and_splits_are_named(tmp_path):
    with pytest.raises(SuiteError, match=r"search\.jsonl does not exist"):
        read_items(tmp_path, "search")
    with pytest.raises(SuiteError, match="has no split 'train'"):
        read_items(lines(tmp_path / "mine.jsonl", {"text": "a", "label": 0}), "train")
    (tmp_path / "select.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(SuiteError, match="must be a text file in UTF-8"):
        read_items(tmp_path, "select")
