# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.lm_packages import lines, write_gguf

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from suite_builder import lm, lm_documents, lm_readers
from suite_builder.lm_documents import encode
from suite_builder.lm_tasks import IN_BRIEF, IN_WORDS, TEXT

# Readers


def test_questions_are_read_with_their_choices_and_without_their_letters(tmp_path):
    rows = [
        {
            "passage": "Two  words.",
            "question": "Which?",
            "options": "A. one \nB. A. two\nC. three",
            "answer": "C. three",
        },
        {"question": "how to", "options": "\nA. first\nB. second", "answer": "B. second"},
        {"question": "no gold", "options": "A. one\nB. two"},
        {"question": "the same twice", "options": "A. one\nB. one", "answer": "A. one"},
        {"question": "too long", "options": f"A. {'x' * 200}\nB. two", "answer": "B. two"},
        {"question": "x" * 300, "options": "A. one\nB. two", "answer": "B. two"},
    ]
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    read = lm_readers.read_questions(tmp_path / "rows.jsonl")
    assert read == [
        (
            "twowords",
            {"passage": "Two words.", "question": "Which?", "choices": ["one", "A. two", "three"], "label": 2},
        ),
        ("howto", {"question": "how to", "choices": ["first", "second"], "label": 1}),
    ]


def test_quotations_are_one_line_without_their_author(tmp_path):
    entries = [
        "Zu kurz.\n\t\t-- Wer",
        "Das Gute - dieser Satz steht fest -\nist stets das Böse, das man lässt.\n\t\t-- Wilhelm Busch (1872)",
        "x" * 300,
    ]
    (tmp_path / "zitate").write_text("\n%\n".join(entries) + "\n%\n")
    ((subject, document),) = lm_readers.read_quotations(tmp_path / "zitate")
    assert document == {"text": "Das Gute - dieser Satz steht fest - ist stets das Böse, das man lässt."}
    assert subject.startswith("dasgutediesersatzstehtfestiststets")


# Documents


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.integers(0, 5)), max_size=40), st.integers(0, 3))
def test_no_subject_is_in_two_splits_and_no_document_comes_twice(pairs, seed):
    documents = [(subject, {"text": f"{subject} {number}"}) for subject, number in pairs]
    sizes, seen = {"report": 6, "search": 4, "select": 4, "train": 5}, {"a"}
    splits = lm_documents.split(documents, sizes, seen, seed)
    assert list(splits) == list(sizes)
    subjects = [{document["text"][0] for document in chosen} for chosen in splits.values()]
    assert sum(map(len, subjects)) == len(set().union(*subjects))
    assert "a" not in set().union(*subjects)
    assert seen == {"a", *(subject for subject, _ in pairs)}
    names = [document["id"] for chosen in splits.values() for document in chosen]
    assert len(names) == len(set(names))
    assert all(len(chosen) <= sizes[split] for split, chosen in splits.items())
    fresh = {pair for pair in pairs if pair[0] != "a"}
    assert sum(len(splits[split]) for split in sizes if split != "train") <= len(fresh) / 2


def test_splits_depend_on_the_seed_and_not_on_what_is_added_behind():
    documents = [(f"s{i}", {"text": f"text {i}"}) for i in range(40)]
    sizes = {"report": 5, "search": 5, "train": 20}
    first, again, other = (lm_documents.split(documents, sizes, set(), seed) for seed in (0, 0, 1))
    assert first == again
    assert first["report"] != other["report"]
    fewer = lm_documents.split(documents[:-1], sizes, set(), 0)
    shared = {d["id"] for d in fewer["report"]} & {d["id"] for d in first["report"]}
    assert len(shared) >= 4


DOCUMENTS = {
    IN_WORDS: {"passage": "It rains.", "question": "Why?", "choices": ["clouds", "a dance"], "label": 1},
    IN_BRIEF: {"question": "Where?", "choices": ["a", "b", "c", "d", "e"], "label": 4},
    TEXT: {"text": "Äpfel und Birnen"},
}


def test_documents_are_asked_in_their_form_or_not_at_all():
    asked = [form.ask(document) for form, document in DOCUMENTS.items()]
    assert asked == [
        ("It rains.\nQuestion: Why?\nAnswer:", ["clouds", "a dance"]),
        ("Q: Where?\nA:", list("abcde")),
        ("", ["Äpfel und Birnen"]),
    ]


def test_tokens_are_cut_between_prompt_and_answer(tmp_path):
    write_gguf(tmp_path / "pico.gguf")
    lm.read_gguf(tmp_path, tmp_path / "base")
    _, tokenizer = lm.load(tmp_path / "base")
    words, brief, text = (encode(tokenizer, form, document) for form, document in DOCUMENTS.items())
    assert tokenizer.decode(words.prompt) == "It rains.\nQuestion: Why?\nAnswer:"
    assert [tokenizer.decode(answer) for answer in words.answers] == [" clouds", " a dance"]
    assert len(words.answers[1]) == len(" a dance") - 1  # one token for " a"
    assert (words.lengths, words.label, brief.lengths, brief.label) == ([6, 7], 1, [1] * 5, 4)
    assert (text.prompt, text.lengths, text.label) == ([tokenizer.bos_token_id], [17], 0)
    assert tokenizer.decode(text.answers[0]) == "Äpfel und Birnen"
