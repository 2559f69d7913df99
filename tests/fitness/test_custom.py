"""A user's own function as a fitness: what it sees, what it may answer, how it is found. See test_fitness.py too."""

from __future__ import annotations

import json
import linecache
import shutil
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.cli.inspect import main as inspect
from evomerge.cli.progress import Reporter
from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.fitness.base import Outcome
from evomerge.fitness.custom import Custom, load_function
from evomerge.fitness.items import Item
from evomerge.runs.config import build
from evomerge.runs.run import run_search
from tests.kit.helpers import compose

ITEMS = {task: [Item(f"{task}{i}", i * "word ", i) for i in range(8)] for task in ("animals", "trees")}
IDS = {task: [item.id for item in items] for task, items in ITEMS.items()}
MODEL = torch.nn.Sequential(torch.nn.Linear(1, 1)).eval()
TOKENIZER = "tokenizer"


def scored(tmp_path, body: str, ids=IDS) -> Outcome:
    """What comes out of a function with this body."""
    (tmp_path / "mine.py").write_text(f"def score(model, tokenizer, items):\n    {body}\n")
    fitness = Custom(f"{tmp_path}/mine.py:score")
    return fitness(MODEL, fitness.prepare(TOKENIZER, ITEMS), ids)


def test_a_function_sees_model_tokenizer_and_items_in_order(tmp_path):
    body = "return {t: [len(i.text) + i.label + len(tokenizer) + len(model) for i in c] for t, c in items.items()}"
    outcome = scored(tmp_path, body, {"trees": IDS["trees"][::-1]})
    assert outcome.results["trees"]["score"].tolist() == [6 * i + 10 for i in reversed(range(8))]
    assert list(outcome.results) == ["trees"]
    assert outcome.forward_seconds is None


@pytest.mark.parametrize("end", ["return {t: [0] * len(c) for t, c in items.items()}", "raise OSError"])
def test_a_function_that_leaves_the_model_in_training_mode(tmp_path, end):
    with suppress(OSError):
        scored(tmp_path, f"model.train(); {end}")
    assert not any(module.training for module in MODEL.modules())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return {t: [0.5] for t in items}", r"the task animals it got 8 items and returned an array of shape \(1,\)"),
        ("return {'trees': [0] * 8}", "animals it got 8 items and returned no numbers for it"),
        ("return {t: 0.5 for t in items}", r"an array of shape \(\)"),
        ("return {t: ['good'] * 8 for t in items}", "returned no numbers for it, but {'animals'"),
        ("return None", "returned no numbers for it, but None"),
        ("return 0.5", "returned no numbers for it, but 0.5"),
    ],
)
def test_answers_of_another_form_are_refused(tmp_path, body, message):
    with pytest.raises(ConfigError, match=message) as error:
        scored(tmp_path, body)
    assert str(error.value).endswith("Return {task: [one float for each item, in order]}.")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("score", "'score' names no function: write module:function or path/to/file.py:function"),
        ("mine.py:", "names no function"),
        (":score", "names no function"),
        ("{path}/mine.py:scores", r"mine\.py has no function scores; it has NUMBER, score"),
        ("{path}/mine.py:NUMBER", r"mine\.py has no function NUMBER"),
        ("{path}/none.py:score", r"none\.py' cannot be imported \(FileNotFoundError"),
        ("{path}/typo.py:score", r"typo\.py' cannot be imported \(SyntaxError: .*Give a file that runs by itself"),
        ("{path}/fails.py:score", r"fails\.py' cannot be imported \(ZeroDivisionError in fails\.py, line 1: "),
        (
            "{path}/exits.py:score",
            r"exits\.py' cannot be imported \(Exited in exits\.py, line 3: SystemExit was raised",
        ),
        ("{path}/deep.py:score", r"deep\.py' cannot be imported \(ModuleNotFoundError in deep\.py, line 4: No module"),
        ("{path}/other.py:score", r"\(SyntaxError in other\.py, line 2: .*\(broken_helper\.py, line 1\)"),
        ("broken_module:score", r"'broken_module' cannot be imported \(KeyError in broken_module\.py, line 2: "),
        ("no.such.module:score", r"'no\.such\.module' cannot be imported \(ModuleNotFoundError"),
    ],
)
def test_functions_that_cannot_be_found(tmp_path, monkeypatch, name, message):
    """The message names the line of the user's file at which its import failed."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "deep.py").write_text("def needs():\n    import no_such_library\n\nneeds()\n")
    (tmp_path / "other.py").write_text("import json\nimport broken_helper\n")
    (tmp_path / "broken_helper.py").write_text("def score(:\n")
    (tmp_path / "broken_module.py").write_text("import json\n{}['score']\n")
    (tmp_path / "mine.py").write_text("NUMBER = 3\ndef score(model, tokenizer, items): ...\n")
    (tmp_path / "typo.py").write_text("def score(:\n")
    (tmp_path / "fails.py").write_text("1 / 0\n")
    (tmp_path / "exits.py").write_text("import sys\nif True:\n    sys.exit(0)\n")
    with pytest.raises(ConfigError, match=message):
        Custom(name.format(path=tmp_path))


def no_base(*args, **kwargs):
    raise AssertionError("the base is loaded before the user's file was imported")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fitness.function={path}/fails.py:score", r"ZeroDivisionError in fails\.py, line 3"),
        ("fitness.function={path}/fails.py", "names no function"),
        ("fitness.metric=accuracy", "fitness.metric is 'accuracy'; this fitness gives score"),
    ],
)
@pytest.mark.parametrize("verb", ["search", "inspect"])
def test_what_is_wrong_with_a_file_is_found_before_the_base_is_loaded(
    untokenized, tmp_path, monkeypatch, verb, override, message
):
    (tmp_path / "mine.py").write_text("def score(model, tokenizer, items): ...\n")
    (tmp_path / "fails.py").write_text("def score(model, tokenizer, items): ...\n\n1 / 0\n")
    monkeypatch.setattr("evomerge.runs.families.load_live", no_base)
    monkeypatch.setattr("evomerge.inspection.sources.load_skeleton", no_base)
    monkeypatch.setattr(sys, "path", list(sys.path))
    given = [*untokenized, override.format(path=tmp_path)]
    with pytest.raises(ConfigError, match=message):
        run_search(compose(*given), tmp_path / "run", Reporter()) if verb == "search" else inspect(given)


def test_the_line_of_a_class_that_cannot_be_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_searcher.py").write_text("import json\n\nraise OSError('no licence')\n")
    message = r"names no class that can be used: OSError in own_searcher\.py, line 3: no licence"
    with pytest.raises(ConfigError, match=message):
        build({"_target_": "own_searcher.Searcher"}, "searcher")


@pytest.mark.parametrize(
    "numbers", ["torch.ones(len(c), dtype=torch.bfloat16)", "[torch.ones(()).bfloat16() for _ in c]"]
)
def test_tensors_of_any_dtype_are_numbers(tmp_path, numbers):
    outcome = scored(tmp_path, f"import torch; return {{t: {numbers} for t, c in items.items()}}")
    assert outcome.results["trees"]["score"].tolist() == [1.0] * 8


def test_an_array_that_the_function_uses_again(tmp_path):
    """What it writes into it later is another model's."""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nheld = np.zeros(8)\n"
        "def score(model, tokenizer, items):\n    held[:] += 1\n    return {t: held for t in items}\n"
    )
    fitness = Custom(f"{tmp_path}/mine.py:score")
    outcomes = [fitness(MODEL, fitness.prepare(TOKENIZER, ITEMS), IDS) for _ in range(2)]
    assert [outcome.results["trees"]["score"][0] for outcome in outcomes] == [1, 2]


def test_a_module_by_its_name():
    assert load_function("json:dumps") is json.dumps


def test_a_file_hides_no_module(tmp_path):
    (tmp_path / "json.py").write_text("def dumps(model, tokenizer, items): ...\n")
    assert load_function(f"{tmp_path}/json.py:dumps") is not json.dumps
    assert load_function("json:dumps") is json.dumps


@pytest.fixture
def untokenized(own_classifiers: Path, tmp_path: Path) -> list[str]:
    """Settings of a search with a user's function, on a base without a tokenizer."""
    shutil.copytree(own_classifiers / "base", tmp_path / "base", ignore=shutil.ignore_patterns("*token*"))
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"word {i}", "label": i % 2}) + "\n" for i in range(40))
    )
    return [
        f"model.base={tmp_path / 'base'}",
        f"model.experts=[{own_classifiers / 'mood'}]",
        f"model.cache={tmp_path / 'cache'}",
        "fitness=custom",
        f"fitness.function={tmp_path / 'mine.py'}:score",
        f"fitness.tasks={{texts: {tmp_path / 'texts.jsonl'}}}",
        "fitness.items=4",
        "searcher=random",
        "budget=2",
    ]


def test_a_function_that_uses_no_tokenizer_needs_none(untokenized, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def score(model, tokenizer, items):\n"
        "    return {t: [-float(next(model.parameters()).std())] * len(c) for t, c in items.items()}\n"
    )
    assert run_search(compose(*untokenized), tmp_path / "run", Reporter()) is not None


@pytest.mark.parametrize("use", ["tokenizer('a')", "tokenizer.pad_token_id"])
def test_a_function_that_uses_a_missing_tokenizer_is_told_what_is_missing(untokenized, tmp_path, use):
    (tmp_path / "mine.py").write_text(f"def score(model, tokenizer, items):\n    {use}\n")
    with pytest.raises(CheckpointError, match="has no tokenizer that transformers can load"):
        run_search(compose(*untokenized), tmp_path / "run", Reporter())


def test_another_fitness_needs_a_tokenizer(untokenized, tmp_path):
    given = [setting for setting in untokenized if not setting.startswith("fitness")]
    given.append(f"fitness.tasks={{mood: {tmp_path / 'texts.jsonl'}}}")
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        run_search(compose(*given), tmp_path / "run", Reporter())


def lengths(model, items):
    return [len(item.text) for item in items]


class ByPart:
    """A callable object."""

    def __call__(self, model, items):
        return lengths(model, items)


def with_more(model, items, factor=1.0, *, shift=0.0):
    return [factor * len(item.text) + shift for item in items]


def whole(model, tokenizer, items):
    return {task: lengths(model, chosen) for task, chosen in items.items()}


@pytest.mark.parametrize(
    "function",
    [
        lengths,
        ByPart(),
        with_more,
        whole,
        partial(with_more, factor=1.0),
        lambda model, items: [5 * i for i in range(len(items))],
    ],
)
def test_a_function_itself_is_a_fitness_in_either_form(function):
    fitness = Custom(function)
    outcome = fitness(MODEL, fitness.prepare(TOKENIZER, ITEMS), IDS)
    assert {task: rows["score"].tolist() for task, rows in outcome.results.items()} == {
        task: [5.0 * i for i in range(8)] for task in ITEMS
    }


def test_a_short_function_is_called_for_one_task_after_the_other():
    seen = []
    fitness = Custom(lambda model, items: seen.append([item.id for item in items]) or [0.0] * len(items))
    fitness(MODEL, fitness.prepare(TOKENIZER, ITEMS), IDS)
    assert seen == [IDS["animals"], IDS["trees"]]


def test_a_short_function_that_answers_otherwise_is_told_what_to_return():
    fitness = Custom(lambda model, items: 0.5)
    with pytest.raises(ConfigError, match=r"an array of shape \(\)\. Return \[one float for each item, in order\]\.$"):
        fitness(MODEL, fitness.prepare(TOKENIZER, ITEMS), IDS)


@pytest.mark.parametrize(
    "function",
    [lambda: [], lambda model: [], lambda a, b, c, d: [], lambda *args: [], lambda model, items, *, seed: [], print],
)
def test_functions_of_other_parameters_are_refused_and_both_forms_shown(function):
    both = r"def score\(model, items\): return .* or def score\(model, tokenizer, items\): return \{task: "
    with pytest.raises(ConfigError, match=both):
        Custom(function)


def test_a_name_may_be_of_a_short_function(tmp_path):
    (tmp_path / "mine.py").write_text("def score(model, items): return [float(item.label) for item in items]\n")
    fitness = Custom(f"{tmp_path}/mine.py:score")
    assert fitness(MODEL, fitness.prepare(None, ITEMS), IDS).results["trees"]["score"].tolist() == list(range(8))


def test_the_digest_of_a_function_is_that_of_its_own_lines(tmp_path):
    """A script may change around it, and its search goes on."""

    def digests(around: str, factor: int) -> list[str]:
        (tmp_path / "mine.py").write_text(f"{around}\ndef score(model, items):\n    return [{factor}] * len(items)\n")
        linecache.checkcache()
        name = f"{tmp_path}/mine.py:score"
        return [Custom(name).identity()["code"], Custom(load_function(name)).identity()["code"]]

    first, other_lines, other_function = digests("", 1), digests("x = 1", 1), digests("", 2)
    assert first[1] == other_lines[1] != other_function[1]
    assert len({first[0], other_lines[0], other_function[0]}) == 3


def scaled(model: Any, items: Any, factor: float = 1.0) -> list[float]:
    return [factor for _ in items]


def held(factor: float) -> Any:
    def inner(model: Any, items: Any) -> list[float]:
        return [factor for _ in items]

    return inner


def test_values_that_a_function_carries_are_part_of_its_identity() -> None:
    codes = [Custom(partial(scaled, factor=factor)).identity()["code"] for factor in (1.0, -1.0, 1.0)]
    closures = [Custom(held(factor)).identity()["code"] for factor in (1.0, -1.0, 1.0)]
    for one, other, again in (codes, closures):
        assert one == again != other


def test_a_function_may_give_several_metrics_and_says_their_names(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def score(model, items):\n    return {'score': [1] * len(items), 'length': [len(i.text) for i in items]}\n"
        "score.metrics = ('score', 'length')\n"
    )
    fitness = Custom(f"{tmp_path}/mine.py:score")
    assert fitness.metrics == ("score", "length")
    prepared = fitness.prepare(TOKENIZER, ITEMS)
    outcome = fitness(MODEL, prepared, IDS)
    assert outcome.results["trees"]["length"].tolist() == [5 * i for i in range(8)]
    assert outcome.results["trees"]["score"].tolist() == [1] * 8

    def alone(model: Any, items: Any) -> list[float]:
        return [0.0] * len(items)

    before = Custom(alone).identity()
    vars(alone)["metrics"] = ["score", "length"]
    assert Custom(alone).identity() != before
    with pytest.raises(ConfigError, match=r"one number for each item as score: .* in a dictionary by score, length"):
        Custom(alone)(MODEL, prepared, IDS)
    vars(alone)["metrics"] = ["score", "score"]
    with pytest.raises(ConfigError, match=r"alone\.metrics is .*: write different names"):
        Custom(alone)
