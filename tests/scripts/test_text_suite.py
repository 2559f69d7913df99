# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from suite_builder import splits
from suite_builder import text_readers as readers
from suite_builder.text import Texts
from suite_builder.text_tasks import FULL, SMALL

SIZES = {"report": 20, "search": 20, "select": 20, "unlabeled": 10, "train": 40}


# Readers


def test_orange_tables_are_read_after_three_header_rows(tmp_path):
    file = tmp_path / "a.tab"
    file.write_text("Category\tText\nd\tstring\nclass\t\n\nearn\tprofits  rose again\nacq\tone firm bought another \n")
    rows = readers.read_table(file, label=0, text=1)
    assert rows == [("profits rose again", "earn"), ("one firm bought another", "acq")]


def test_tweets_lose_their_addresses_and_keep_quotes_and_line_breaks_apart(tmp_path):
    file = tmp_path / "tweets.tab"
    row = 'False\tAnna\t"She said ""yes"",\nthen left https://t.co/x1 today"\r\n'
    file.write_bytes(b"Retweet\tAuthor\tContent\r\nd\td\tstring\r\n\tclass\tmeta\r\n" + row.encode())
    assert readers.read_table(file, label=1, text=2) == [('She said "yes", then left today', "Anna")]


def test_wordnet_glosses_come_with_their_lexicographer_class(tmp_path):
    file = tmp_path / "data.noun"
    file.write_text(
        "  1 This software and database is being provided | to you\n"
        "00001740 03 n 01 entity 0 000 | that which is perceived  \n"
        '02084071 05 n 01 dog 0 001 @ 02083346 n 0000 | a domestic animal; "the dog barked"  \n'
        "02121620 05 n 01 cat 0 000 | feline mammal  \n"
        "12102133 20 n 01 grass 0 000 | narrow-leaved green herbage  \n"
    )
    rows = readers.read_wordnet(file, {"05", "20"})
    assert [label for _, label in rows] == ["05", "05", "20"]
    assert rows[0].content == 'a domestic animal; "the dog barked"'


def test_long_texts_are_cut_after_a_whole_word():
    cut = readers.clean("word " * 1000)
    assert len(cut) <= readers.MAX_CHARACTERS
    assert cut.endswith(" word")
    assert len(readers.clean("x" * 5000)) == readers.MAX_CHARACTERS


# Splits


def make_splits(*arguments):
    return splits.make_splits(*arguments, make=Texts().item, key=Texts().key)


def rows_of(label, count, start=0):
    return [splits.Row(f"{label} text number {i}", label) for i in range(start, start + count)]


def test_no_text_is_in_two_splits_whatever_its_case_file_class_or_task():
    shared = rows_of("a", 30)
    shouted = [splits.Row(text.upper(), "b") for text, _ in shared]
    seen: set[str] = set()
    classes = {"a": "first", "b": "second"}
    one = make_splits("one", shared + shouted + rows_of("b", 200), shared, classes, SIZES, seen, 0)
    two = make_splits("two", shared + rows_of("a", 200, 500), None, classes, SIZES, seen, 0)
    texts = [item.text.lower() for task in (one, two) for items in task.values() for item in items]
    assert len(texts) == len(set(texts)) > 200
    assert {item.text for item in one["report"]} <= {text for text, _ in shared}  # the source's own test file


def test_splits_are_fixed_by_the_seed_and_shrink_with_the_data():
    def draw(count, seed):
        return make_splits("t", rows_of("a", count), None, {"a": "first"}, SIZES, set(), seed)

    assert draw(300, 0) == draw(300, 0) != draw(300, 1)
    assert {split: len(items) for split, items in draw(300, 0).items()} == SIZES
    small = {split: len(items) for split, items in draw(70, 0).items()}
    assert small == {"report": 10, "search": 10, "select": 10, "unlabeled": 5, "train": 35}
    assert {item.label for item in draw(300, 0)["unlabeled"]} == {-1}
    assert {item.label for item in draw(300, 0)["train"]} == {0}


def test_rows_of_other_classes_and_empty_texts_are_left_out():
    rows = [*rows_of("a", 30), *rows_of("c", 30), splits.Row("two words", "a"), splits.Row("", "a")]
    drawn = make_splits("t", rows, None, {"a": "first"}, SIZES, set(), 0)
    texts = [item.text for items in drawn.values() for item in items]
    assert len(texts) == 30
    assert all(text.startswith("a text") for text in texts)


@pytest.mark.parametrize("plan", [FULL, SMALL])
def test_classes_have_readable_and_distinct_names_and_training_is_unequal(plan):
    for task in plan.tasks:
        names = list(task.classes.values())
        assert len(set(names)) == len(names) >= 2
        assert not any("." in name or "-fx" in name or name.isdigit() for name in names)
    assert len({(task.steps, task.lr) for task in plan.tasks}) > 1
    assert max(task.steps for task in plan.tasks) > 2 * min(task.steps for task in plan.tasks)
