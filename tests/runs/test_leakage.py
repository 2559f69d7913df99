"""What experts were trained on and are scored on is found by names on their cards and by words of their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from evomerge.cli.inspect import main as inspect
from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError, SuiteError
from evomerge.fitness.items import Item, Task, make_document_item, make_image_item, make_item
from evomerge.fitness.perplexity import Perplexity
from evomerge.problem import Sources
from evomerge.report import write_report
from evomerge.runs.config import run_name
from evomerge.runs.leakage import leakage_notes, training_files
from evomerge.runs.run import run_search
from tests.kit import language
from tests.kit.helpers import compose
from tests.kit.pages import read

NOTHING: dict[str, dict[str, list[Item]]] = {}


def sources(path: Path, card: str = "", tasks: tuple[str, ...] = ("maths",)) -> Sources:
    """A base and an expert, the latter with a card of this header."""
    for name in ("base", "expert"):
        (path / name).mkdir(exist_ok=True)
    (path / "expert" / "README.md").write_text(f"---\n{card}\n---\n# A model\n")
    found = {name: Task(name, path / f"{name}.jsonl", None, None, ()) for name in tasks}
    return Sources(path / "base", {"solver": path / "expert"}, found)


def notes(path: Path, card: str = "", data_sets: dict[str, list[str]] | None = None) -> list[str]:
    return leakage_notes(sources(path, card), NOTHING, data_sets or {}, {})


@pytest.mark.parametrize(
    ("card", "data_sets"),
    [
        ("datasets:\n- openai/gsm8k", ["openai/gsm8k", "main"]),
        ("datasets: gsm8k", ["GSM8K"]),
        ("datasets: [other/GSM_8K, x/y]", ["openai/gsm8k"]),
        ("datasets: [allenai/ai2_arc]", ["arc_challenge", "ai2_arc", "ARC-Challenge"]),
        ("datasets: [arc-challenge]", ["arc_challenge", "allenai/ai2_arc", "ARC-Challenge"]),
        ("datasets: [/home/me/data/gsm8k/]", ["openai/gsm8k"]),
        ("datasets: [someone/maths]", []),  # the task's own name
        ("model-index: [{name: m, results: [{dataset: {type: openai/gsm8k, name: GSM}}]}]", ["gsm8k"]),
        ("model-index: [{results: [{dataset: {type: nyu-mll/glue, name: GLUE, config: sst2}}]}]", ["stanfordnlp/sst2"]),
    ],
)
def test_data_sets_that_a_card_names_and_a_task_uses(card: str, data_sets: list[str], tmp_path: Path) -> None:
    (note,) = notes(tmp_path, card, {"maths": data_sets})
    assert note.startswith("the model card of expert solver names the data set of tasks, ")
    assert "(task maths)" in note


@pytest.mark.parametrize(
    "card",
    [
        "",
        "datasets: [openai/gsm8k_hard]",
        "datasets: [json, generator, None, main]",  # what trainers write of local files
        "datasets: [null, 7, {a: b}]",
        "datasets: 7",
        "model-index: [7, {results: 3}, {results: [{dataset: x}, 4]}]",
        "model-index: {results: []}",
        "datasets: [unclosed",
        "- a list",
    ],
)
def test_other_data_sets_and_odd_cards_are_no_note(card: str, tmp_path: Path) -> None:
    assert notes(tmp_path, card, {"maths": ["openai/gsm8k", "main", "json"]}) == []


def test_a_base_has_a_card_too_and_one_without_any_has_no_note(tmp_path: Path) -> None:
    found = sources(tmp_path)
    (tmp_path / "expert" / "README.md").unlink()
    assert leakage_notes(found, NOTHING, {"maths": ["gsm8k"]}, {}) == []
    (tmp_path / "base" / "README.md").write_text("---\ndatasets: [gsm8k]\n---\n")
    (note,) = leakage_notes(found, NOTHING, {"maths": ["gsm8k"]}, {})
    assert note.startswith("the model card of the base names")


def splits(**texts: list[str]) -> dict[str, dict[str, list[Item]]]:
    return {split: {"maths": [make_item(text, 0) for text in chosen]} for split, chosen in texts.items()}


def said(path: Path, items: dict[str, dict[str, list[Item]]], *files: Path) -> list[str]:
    return leakage_notes(sources(path), items, {}, {"solver": list(files)})


def test_items_that_stand_in_a_training_file_are_counted_by_split(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"text": " two and two ", "label": 1},
        {"prompt": "ask me", "completion": "a report item\n"},
        {"messages": [{"role": "user", "content": "deeply seated"}]},
        ["in a list"],
    ]
    file, more = tmp_path / "train.jsonl", tmp_path / "more.txt"
    file.write_text("\ufeff" + "\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    more.write_text("one line\nand another\n\n a block\nof two lines \n\n\nlast", encoding="utf-8")
    items = splits(
        search=["two and two", "two and three", "in a list", "one line"],
        select=["Two and two", "two  and two"],  # word for word
        report=["a report item", "deeply seated", "\n a block\nof two lines", "last", "one line\nand another"],
    )
    (note,) = said(tmp_path, items, file, more)
    first = {split: tasks["maths"][0].id for split, tasks in items.items()}
    assert note == (
        f"expert solver was trained on 3 of 4 search items (such as {first['search']}), 5 of 5 report items (such as "
        f"{first['report']}), word for word (model.trained_on): its scores on these say what it remembers"
    )
    assert said(tmp_path, splits(search=["another"], select=["b"], report=["c"]), file, more) == []


def test_documents_of_lm_eval_are_found_by_their_longest_text(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps({"q": "What is two and two, né?", "a": "four"}))
    document = {"question": "What is two and two, né?", "choices": ["four", "five"], "id": 3}
    there, elsewhere = (
        make_document_item(document, "t"),
        make_document_item(document | {"question": "And now what?"}, "t"),
    )
    (note,) = said(tmp_path, {"report": {"maths": [elsewhere, there]}}, file)
    assert f"1 of 2 report items (such as {there.id})" in note


def test_images_are_said_not_to_be_compared(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"text": ""}')
    items = {"search": {"maths": [make_image_item(b"1"), make_image_item(b"2")]}}
    assert said(tmp_path, items, file) == [
        "model.trained_on compares texts, so the 2 images of the tasks were not looked for"
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"text": \n', r"a\.jsonl, line 2 is no JSON"),
        ("a.txt", b"\xff\xfe\x00", r"a\.txt cannot be read.*text files in UTF-8"),
    ],
)
def test_a_training_file_that_cannot_be_read_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SuiteError, match=message):
        said(tmp_path, splits(search=["x"]), tmp_path / name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("train.jsonl", r"model\.trained_on is train\.jsonl; write .*'model\.trained_on=\{expert: train\.jsonl\}'"),
        ({"solvr": "{}/a.txt"}, r"model\.trained_on\.solvr: Unknown expert 'solvr': did you mean 'solver'\?"),
        ({"solver": "{}/none.jsonl"}, r"model\.trained_on\.solver names .*none\.jsonl, which is no file"),
        ({"solver": ["{}/a.txt", "{}/a.csv"]}, r"names .*a\.csv; write a \.jsonl or a \.txt file"),
        ({"solver": 3}, r"model\.trained_on\.solver is 3; write a path or a list of paths"),
        ({"solver": [3]}, r"model\.trained_on\.solver is \[3\]; write a path"),
    ],
)
def test_training_files_that_are_not_there_are_refused(given: Any, message: str, tmp_path: Path) -> None:
    for name in ("a.txt", "a.csv"):
        (tmp_path / name).write_text("x")
    here = json.loads(json.dumps(given).replace("{}", str(tmp_path)))
    with pytest.raises(ConfigError, match=message):
        training_files(here, ["solver", "other"])


def test_files_are_one_or_several_or_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    file = str(tmp_path / "a.txt")
    assert training_files({"a": file, "b": [file, file]}, ["a", "b", "c"]) == {"a": [Path(file)], "b": [Path(file)] * 2}
    assert training_files(None, ["a"]) == {}


def test_a_search_says_it_and_is_the_same_search(pico_suite: Any, tmp_path: Path, capfd: Any) -> None:
    """In preflight, in the summary and on the page; and `inspect` says it too."""
    training = pico_suite.tasks["trees"].items
    file = tmp_path / "seen.jsonl"
    file.write_text((training / "report.jsonl").read_text() + (training / "search.jsonl").read_text())
    sizes = ["fitness.items=6", "fitness.select_items=6", "fitness.report_items=6", "budget=2", "searcher=random"]
    base = ["model=pico", f"model.suite={pico_suite.path}", f"model.cache={tmp_path}/cache", "model.device=cpu", *sizes]
    leak = f"model.trained_on={{metals: {file}}}"
    run = tmp_path / "run"
    assert run_search(compose(*base), run, Reporter()) is not None
    log = (run / "trials.jsonl").read_bytes()
    (run / "summary.json").unlink()
    summary = run_search(compose(*base, leak), run, Reporter())
    assert summary is not None
    assert (run / "trials.jsonl").read_bytes() == log
    note = next(text for text in summary.warnings if "word for word" in text)
    assert note.startswith("expert metals was trained on 120 of 360 search items (such as ")
    assert " 200 of 600 report items (such as" in note
    assert note in " ".join("".join(capfd.readouterr()).split())
    assert note in read(write_report(run)).text
    inspect([*base[:4], leak, "--json"])
    assert note in json.loads(capfd.readouterr().out)["warnings"]


def test_training_files_do_not_name_another_run() -> None:
    choices = {"model": "text", "searcher": "cmaes"}
    names = {run_name(choices, given) for given in ([], ["model.trained_on={a: b.txt}"], ["model.trained_on.a=b.txt"])}
    assert len(names) == 1


def test_fitnesses_that_read_their_items_know_whose_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitness, _ = language.read({"choice": language.write_task(tmp_path, "choice")})
    assert fitness.data_sets == {"choice": ["json", "pico_choice"]}
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, subset, split: {"text": [f"text {i}" for i in range(40)]}
    )
    perplexity = Perplexity()
    perplexity.read({"wiki": Task("wiki", Path("Salesforce/wikitext"), None, None, ())}, {"wiki": {"split": "train"}})
    assert perplexity.data_sets == {"wiki": ["Salesforce/wikitext"]}
    (note,) = notes(tmp_path, "datasets: [wikitext]", {"maths": perplexity.data_sets["wiki"]})
    assert "wikitext (task maths)" in note
