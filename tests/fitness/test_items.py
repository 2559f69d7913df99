import json
import logging
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.common.errors import ConfigError, SuiteError
from evomerge.fitness.images import data_uri
from evomerge.fitness.items import (
    SPLITS,
    UNLABELED,
    check_disjoint,
    item_id,
    make_document_item,
    make_image_item,
    make_item,
    read_items,
    split_of,
    write_items,
)
from tests.kit.vision import png


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
    with pytest.raises(SuiteError, match="there is no label, and this fitness needs one"):
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


def test_one_file_of_all_splits_says_its_repeated_texts_once(tmp_path, caplog):
    path = lines(tmp_path / "a.jsonl", *({"text": f"text {i % 60}", "label": i % 60} for i in range(70)))
    with caplog.at_level(logging.WARNING):
        read = [read_items(path, split) for split in ("search", "select", "report")]
    assert sum(map(len, read)) == 60
    assert caplog.messages == [f"{path}: 10 lines repeat a text; the first of each is kept"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "gives no items for the split 'search'"),
        ("{oops\n", r"line 1: no JSON object"),
        ('{"text": "a", "label": 0}\n["b"]\n', r"line 2: an item needs a string `text`"),
        ('{"text": 3, "label": 0}\n', "an item needs a string `text`"),
        ('{"text": "a"}\n', "there is no label"),
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


# images


def test_the_id_of_an_image_names_its_bytes_and_its_label():
    assert make_image_item(b"bytes", 3).id == "9183334d83165620"  # fixed for ever: logs and suites hold ids
    assert len({make_image_item(*content).id for content in ((b"a", 0), (b"a", 1), (b"b", 0))}) == 3


def test_texts_are_written_as_ever(tmp_path):
    write_items(tmp_path / "search.jsonl", [make_item("ä", 1), make_item("b")])
    assert (tmp_path / "search.jsonl").read_text(encoding="utf-8") == (
        '{"id": "' + item_id("ä", 1) + '", "text": "ä", "label": 1}\n'
        '{"id": "' + item_id("b", UNLABELED) + '", "text": "b", "label": null}\n'
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_images_come_back_as_written(tmp_path, kind):
    items = [make_image_item(png(i, kind=kind), i) for i in range(3)]
    write_items(tmp_path / "search.jsonl", items)
    assert f'"image": "data:image/{kind.lower()};base64,' in (tmp_path / "search.jsonl").read_text()
    assert read_items(tmp_path, "search") == items


def test_a_path_and_a_data_uri_are_the_same_item(tmp_path):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "ä.png").write_bytes(png(1))
    lines(tmp_path / "search.jsonl", {"image": "some/ä.png", "label": 2})
    lines(tmp_path / "select.jsonl", {"image": str(tmp_path / "some" / "ä.png"), "label": "c"})
    write_items(tmp_path / "report.jsonl", [make_image_item(png(1), 2)])
    assert {read_items(tmp_path, split, classes="abc")[0] for split in SPLITS} == {make_image_item(png(1), 2)}


def test_images_are_split_by_content(tmp_path):
    images = [png(i, (2, 2)) for i in range(300)]
    for i, image in enumerate(images):
        (tmp_path / f"{i}.png").write_bytes(image)
    path = lines(tmp_path / "all.jsonl", *({"image": f"{i}.png", "label": i % 2} for i in range(300)))
    splits = {split: read_items(path, split) for split in SPLITS}
    assert sum(map(len, splits.values())) == 300
    assert all(60 < len(items) < 150 for items in splits.values())
    write_items(tmp_path / "other.jsonl", [make_image_item(image, 7) for image in images])  # other labels, no paths
    for split, items in splits.items():
        assert [item.image for item in read_items(tmp_path / "other.jsonl", split)] == [item.image for item in items]


def test_repeated_images_are_dropped_and_said(tmp_path, caplog):
    for name, seed in (("one", 1), ("two", 2), ("copy", 1)):
        (tmp_path / f"{name}.png").write_bytes(png(seed))
    lines(tmp_path / "search.jsonl", *({"image": f"{name}.png", "label": 0} for name in ("one", "two", "copy")))
    with caplog.at_level(logging.WARNING):
        assert [item.image for item in read_items(tmp_path, "search")] == [png(1), png(2)]
    assert "1 lines repeat an image" in caplog.text


def test_an_image_in_two_splits_is_refused():
    one, other = make_image_item(png(1), 0), make_image_item(png(1), 1)
    with pytest.raises(SuiteError, match=r"select items of task 'a' .* share 1 images, like 'image:[0-9a-f]{54}'"):
        check_disjoint({"select": {"a": [one, make_image_item(png(2), 0)]}, "report": {"a": [other]}})
    check_disjoint({"select": {"a": [one]}, "report": {"a": [make_image_item(png(2), 0)]}})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 0}, r"needs a string `text`, or an `image` \(a path or a data URI\); write .*file\.png"),
        ({"image": 3, "label": 0}, "or an `image`"),
        ({"text": "a", "image": "one.png", "label": 0}, "an item has a `text` or an `image`, not both"),
        ({"image": "none.png", "label": 0}, r"the image .*none\.png does not exist; paths are relative"),
        ({"image": "folder", "label": 0}, "the image 'folder' cannot be read: .*directory"),
        ({"image": "a\0b", "label": 0}, "cannot be read: .*null"),
        ({"image": "empty.png", "label": 0}, r"empty\.png is empty"),
        ({"image": "text.png", "label": 0}, "no image that Pillow can read: cannot identify"),
        ({"image": "cut.png", "label": 0}, "no image that Pillow can read: .*truncated"),
        ({"image": "cut.jpeg", "label": 0}, "no image that Pillow can read: .*truncated"),
        ({"image": "data:image/png;base64,%%%", "label": 0}, "'data:image/png;base64,%%%' is no image; write data:"),
        ({"image": "data:image/png,abc", "label": 0}, "is no image; write data:"),
        ({"image": "data:image/png;base64,", "label": 0}, "is no image; write data:"),
        ({"image": "data:image/png;base64,aaaa", "label": 0}, "no image that Pillow can read"),
        ({"image": "one.png"}, "there is no label"),
    ],
)
def test_a_bad_image_is_refused_with_the_line(tmp_path, row, message):
    (tmp_path / "folder").mkdir()
    for name, data in (
        ("one.png", png(1)),
        ("empty.png", b""),
        ("text.png", b"some text"),
        ("cut.png", png(2)[:-600]),
        ("cut.jpeg", png(2, kind="JPEG")[:-200]),
    ):
        (tmp_path / name).write_bytes(data)
    lines(tmp_path / "search.jsonl", {"image": "one.png", "label": 0}, row)
    with pytest.raises(SuiteError, match=rf"search\.jsonl, line 2: .*{message}"):
        read_items(tmp_path, "search")


def test_images_without_pillow(tmp_path, monkeypatch):
    write_items(tmp_path / "search.jsonl", [make_image_item(png(1), 0)])
    write_items(tmp_path / "select.jsonl", [make_item("text", 0)])
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"images need Pillow, .*: pip install 'evomerge\[vision\]'"):
        read_items(tmp_path, "search")
    assert read_items(tmp_path, "select")


def test_a_document_is_an_item_whose_text_is_its_canonical_json():
    one, same = make_document_item({"b": 1, "a": "x"}, "quiz", 3), make_document_item({"a": "x", "b": 1}, "quiz")
    assert (one.text, one.label, one.id) == ('{"a":"x","b":1}', 3, same.id)
    assert one.content == one.text
    assert make_document_item({"a": "x", "b": 1}, "other").id != one.id  # it may ask another thing of it
    assert make_document_item({"a": "x", "b": 2}, "quiz").id != one.id


def test_plain_text_is_divided_by_blank_lines_where_no_labels_are_needed(tmp_path):
    texts = [f"def f{i}():\n    return {i}" for i in range(40)]
    (path := tmp_path / "code.txt").write_text("\n" + "\n\n\n".join(texts) + "\n  \n")
    items = {split: read_items(path, split, labelled=False) for split in SPLITS}
    assert sorted(item.text for chosen in items.values() for item in chosen) == sorted(texts)
    assert all(split_of(item.text) == split for split, chosen in items.items() for item in chosen)
    assert items["search"][0] == make_item(items["search"][0].text)
    with pytest.raises(SuiteError, match=r"code\.txt is plain text, which has no labels: write a \.jsonl"):
        read_items(path, "search")
    path.write_text("one text")
    with pytest.raises(SuiteError, match=r"gives no items for the split '(select|report)'.*: add more texts"):
        [read_items(path, split, labelled=False) for split in ("report", "select", "search")]


def test_lines_need_no_labels_where_none_are_asked_for(tmp_path):
    (path := tmp_path / "search.jsonl").write_text('{"text": "a"}\n{"text": "b", "label": 1}\n')
    assert [(item.text, item.label) for item in read_items(tmp_path, "search", labelled=False)] == [("a", -1), ("b", 1)]
    with pytest.raises(SuiteError, match="line 1: there is no label"):
        read_items(tmp_path, "search")
    path.write_text("")
    with pytest.raises(SuiteError, match=r'add lines like \{"text": "\.\.\."\}$'):
        read_items(tmp_path, "search", labelled=False)


def test_a_byte_order_mark_is_no_part_of_the_first_text(tmp_path):
    plain = lines(tmp_path / "search.jsonl", *({"text": f"text {i}", "label": i % 2} for i in range(3)))
    items = read_items(tmp_path, "search")
    plain.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert read_items(tmp_path, "search") == items
    (tmp_path / "texts.txt").write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(b"text %d" % i for i in range(20)))
    texts = [item.text for split in SPLITS for item in read_items(tmp_path / "texts.txt", split, labelled=False)]
    assert sorted(texts) == sorted(f"text {i}" for i in range(20))


@pytest.mark.parametrize("image", [False, True])
def test_contradictory_labels_of_one_content_are_named(tmp_path, caplog, image):
    contents = [{"image": data_uri(png(i))} if image else {"text": f"text {i}"} for i in range(2)]
    path = lines(
        tmp_path / "search.jsonl", *({**contents[i % 2], "label": label} for i, label in enumerate([0, 1, 0, 2]))
    )
    with caplog.at_level(logging.WARNING):
        assert [item.label for item in read_items(tmp_path, "search")] == [0, 1]
    said = caplog.messages[-1]
    assert said.startswith(f"{path}: 1 contents have contradictory labels")
    assert "line 2 says 1, line 4 says 2 of the same one" in said


def test_lines_that_only_repeat_are_not_called_contradictory(tmp_path, caplog):
    lines(tmp_path / "search.jsonl", *({"text": "a", "label": 0} for _ in range(3)))
    with caplog.at_level(logging.WARNING):
        read_items(tmp_path, "search")
    assert "2 lines repeat a text" in caplog.text
    assert "contradictory" not in caplog.text


def test_labels_may_be_names_that_somebody_else_knows(tmp_path):
    lines(tmp_path / "search.jsonl", {"text": "a", "label": "glad"}, {"text": "b", "label": 7})
    items = read_items(tmp_path, "search", known=("sad", "glad"))
    assert [item.label for item in items] == [1, 7]  # numbers are held against the head, which may have more classes
    with pytest.raises(SuiteError, match="write one of glad, sad, as the expert's config has them, or the index"):
        read_items(
            lines(tmp_path / "search.jsonl", {"text": "a", "label": "gld"}).parent, "search", known=("glad", "sad")
        )
    with pytest.raises(SuiteError, match=r"fitness\.tasks\.<task>\.classes="):
        read_items(tmp_path, "search")


def test_what_is_advised_for_texts_without_labels_works(tmp_path):
    """Each file where the message puts it."""
    lines(tmp_path / "search.jsonl", {"text": "a"})
    with pytest.raises(SuiteError, match=r"as unlabeled\.jsonl in the directory of the task"):
        read_items(tmp_path, "search")
    (tmp_path / "search.jsonl").rename(tmp_path / "unlabeled.jsonl")
    assert [item.label for item in read_items(tmp_path, "unlabeled")] == [UNLABELED]
