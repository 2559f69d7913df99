"""What would end the program is an ordinary error, wherever code of a user's is called."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from evomerge.common.errors import ConfigError, SuiteError
from evomerge.common.exits import Exited, contained
from evomerge.common.limits import Overdue
from evomerge.problem import Problem
from evomerge.runs.config import build, check, plain
from evomerge.search.evaluators.scoring import prepare
from tests.kit.helpers import compose
from tests.kit.language import read, write_task

EXIT = "import sys\n\ndef leave(*arguments, **settings):\n    sys.exit(0)\n"

LATER = """
import sys
seen = []

def leave(doc):
    if seen and seen[0] != doc:  # lm-eval itself renders the first one when it loads a task
        sys.exit(0)
    seen.append(doc)
    return doc["question"]
"""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SystemExit(0), "^SystemExit was raised with status 0; raise an Exception"),
        (SystemExit(), "^SystemExit was raised with status None; "),
        (SystemExit("bad data"), "^SystemExit was raised with status 'bad data'; "),
        (GeneratorExit(), "^GeneratorExit was raised; "),
        (asyncio.CancelledError("late"), "^CancelledError was raised: late; "),
        (pytest.skip.Exception("no"), "^Skipped was raised: no; "),
    ],
)
def test_what_ends_a_program_becomes_an_error(error: BaseException, message: str) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(Exited, match=message) as caught:
        contained(fail)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), Overdue()])
def test_errors_ctrl_c_and_time_limits_pass(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        contained(fail)
    assert caught.value is error
    assert contained(lambda: 3) == 3


def test_a_class_whose_module_exits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "exits_on_import.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "exits_when_made.py").write_text(EXIT)
    settings: dict[str, Any] = plain(compose("model=pico"))
    settings["fitness"] |= {"_target_": "exits_on_import.Mine"}
    with pytest.raises(
        ConfigError,
        match=r"exits_on_import\.Mine names no class .* Exited in exits_on_import\.py, line 2: SystemExit was raised",
    ):
        check(settings)
    with pytest.raises(ConfigError, match=r"cannot be made from exits_when_made\.leave: SystemExit was raised"):
        build({"_target_": "exits_when_made.leave"}, "fitness")


@pytest.mark.parametrize(
    ("error", "message"), [(SystemExit(0), "Exited: SystemExit was raised with status 0"), (KeyError("x"), "KeyError")]
)
def test_a_fitness_that_fails_while_it_prepares(problem: Problem, error: BaseException, message: str) -> None:
    class Mine:
        def prepare(self, processor: Any, items: Any) -> None:
            raise error

    mine: Any = Mine()
    with pytest.raises(ConfigError, match=f"The fitness cannot prepare its items: {message}"):
        prepare(mine, None, {})


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("process_docs", r"lm-eval cannot load .*Exited: SystemExit was raised with status 0"),
        ("custom_dataset", r"lm-eval cannot load .*Exited: SystemExit was raised with status 0"),
    ],
)
def test_a_function_of_a_task_of_lm_eval(place: str, message: str, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    path = write_task(tmp_path, "choice")
    (tmp_path / "mine.py").write_text(EXIT)
    path.write_text(path.read_text() + f"{place}: !function mine.leave\n")
    with pytest.raises(SuiteError, match=message):
        read({"choice": path})


def test_a_template_of_a_task_of_lm_eval(language_family: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = write_task(tmp_path, "choice", doc_to_text=None)
    (tmp_path / "mine.py").write_text(LATER)
    path.write_text(path.read_text() + "doc_to_text: !function mine.leave\n")
    model = AutoModelForCausalLM.from_pretrained(language_family / "base").eval()
    fitness, splits = read({"choice": path})
    tokenizer = AutoTokenizer.from_pretrained(language_family / "base")
    prepared = fitness.prepare(tokenizer, splits["search"])
    with pytest.raises(SuiteError, match=r"cannot be asked: Exited: SystemExit was raised with status 0"):
        fitness(model, prepared, {"choice": [item.id for item in splits["search"]["choice"]]})
