"""Settings with letters that Hydra's grammar does not have: they work as they are written, or the message says how."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from evomerge.cli.quoting import as_text, quoted, written
from evomerge.cli.settings import check_settings, compose_settings, spelled_out
from evomerge.common.errors import EvomergeError
from evomerge.runs.config import plain


def read(argument: str) -> Any:
    return OverridesParser.create().parse_override(argument).value()


@pytest.mark.parametrize(
    "value",
    [
        "r/a=b",
        "~/models/base",
        "r/modèle",
        "日本/x",
        "r/a(b",
        "it's",
        'a "b" =',
        "a#b",
        "a;b&c",
        "é\\",
        "a\\'=b",
    ],
)
def test_a_value_is_read_as_it_is_written(value: str) -> None:
    changed = quoted(f"model.base={value}")
    assert changed is not None
    assert read(changed) == value
    assert read(f"x={as_text(value)}") == value


LETTERS = st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs"))
VALUES = st.none() | st.booleans() | st.integers(-9, 999) | st.floats(0.001, 1e6) | st.text(LETTERS, min_size=1)


@given(VALUES | st.lists(VALUES) | st.dictionaries(st.sampled_from(["a", "mood", "x_1"]), VALUES))
@example({"a": "1", "mood": "null", "x_1": "true"})
@example(["1_0", "1e5", "-.5", "+inf", "NaN", "False", ".", "a:b", "x,y/t", "a\\", "{a: b}", "'"])
def test_what_is_written_is_read_as_the_same(value: Any) -> None:
    argument = f"model.experts={written(value)}"
    assert quoted(argument) == argument
    if "${" not in argument:
        found = read(argument)
        assert (found, str(found)) == (value, str(value))  # 1 is not True


@pytest.mark.parametrize("value", ["émotion", "m,n/e1", "a:b", "1", "null", "x${y}", "a=b", "a b"])
def test_what_is_written_is_composed_as_the_same(value: str) -> None:
    given = {"model.base": value, "model.experts": {"a": value}, "fitness.tasks": {"a": {"items": value}}}
    settings = plain(compose_settings([f"{name}={written(inner)}" for name, inner in given.items()]))
    assert settings["model"]["base"] == value
    assert settings["model"]["experts"] == {"a": value}
    assert settings["fitness"]["tasks"] == {"a": {"items": value}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[~/a,~/b]", ["~/a", "~/b"]),
        ("[r/x=y, plain]", ["r/x=y", "plain"]),
        ("{a: ~/modèle, b: r/x=y}", {"a": "~/modèle", "b": "r/x=y"}),
        ("{a: {items: é.jsonl, classes: [non, oüi]}}", {"a": {"items": "é.jsonl", "classes": ["non", "oüi"]}}),
        ('{a: "r/x,y", b: é}', {"a": "r/x,y", "b": "é"}),
    ],
)
def test_so_is_what_stands_in_lists_and_mappings(value: str, expected: Any) -> None:
    changed = quoted(f"model.experts={value}")
    assert changed is not None
    assert read(changed) == expected


@pytest.mark.parametrize("argument", ["seed=3", "model.experts=[a,b]", "start=1/K", "model.base='r/a=b'", "~start"])
def test_what_can_be_read_is_left_alone(argument: str) -> None:
    """So that the name of a run stays what it was."""
    assert quoted(argument) == argument


@pytest.mark.parametrize(
    "argument",
    [
        "budget",
        "model.experts={modèle: x}",
        "model.experts=[a,~/b",
        "space.bounds={weight: [0, 1}",
        "fitness.tasks.modèle=x.jsonl",
    ],
)
def test_names_cannot_be_quoted_and_are_sent_to_a_file(argument: str) -> None:
    assert quoted(argument) is None
    with pytest.raises(EvomergeError, match=r"no setting with a value|--config-dir=\. experiment=mine"):
        check_settings(spelled_out(argument))


def test_home_directories_are_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    given = ["model.base=~/b", "model.experts={a: ~/x, c: y}", "fitness.tasks={a: ~/a.jsonl, b: {items: ~/b.jsonl}}"]
    settings = plain(compose_settings([*given, "model.cache=~/c", "start=~/r.yaml"]))
    assert settings["model"]["base"] == "/home/somebody/b"
    assert settings["model"]["experts"] == {"a": "/home/somebody/x", "c": "y"}
    assert settings["model"]["cache"] == "/home/somebody/c"
    assert settings["start"] == "/home/somebody/r.yaml"
    tasks = settings["fitness"]["tasks"]
    assert (tasks["a"], tasks["b"]["items"]) == ("/home/somebody/a.jsonl", "/home/somebody/b.jsonl")
    assert spelled_out("hydra.run.dir=~/runs/x") == ["hydra.run.dir=/home/somebody/runs/x"]


@pytest.mark.parametrize("argument", ["model.base=r/a,b", "model.suite=x,y/z"])
def test_a_comma_is_a_sweep_or_within_quotes(argument: str) -> None:
    """The message writes the quotes, and what it writes works."""
    with pytest.raises(EvomergeError, match="to sweep, add -m") as caught:
        check_settings(spelled_out(argument))
    (advice,) = shlex.split(re.search(r"of the shell: (.*)\.$", str(caught.value))[1])  # pyright: ignore[reportOptionalSubscript]
    name, _, value = argument.partition("=")
    composed = compose_settings([advice])
    assert composed.model[name.removeprefix("model.")] == value


def test_in_a_sweep_a_comma_divides_and_odd_values_want_quotes() -> None:
    with pytest.raises(EvomergeError, match="within the quotes of the shell") as caught:
        check_settings(["-m", *spelled_out("model.base=r/a=b,c", sweep=True)])
    assert "'model.base=\"r/a=b,c\"'" in str(caught.value)
    check_settings(["-m", *spelled_out('model.base="r/a=b",c', sweep=True)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["budget=ten"], "budget=ten is no whole number: write one, such as budget=200"),
        (["budget=1.5"], "budget=1.5 is no whole number"),
        (["objective.normalised=maybe"], "objective.normalised=maybe is no truth value"),
        (["space.n=two"], "space.n=two is no whole number"),
        (["-m", "seed=1,two"], "seed=two is no whole number"),
    ],
)
def test_a_wrong_type_is_said_in_our_words(arguments: list[str], message: str) -> None:
    with pytest.raises(EvomergeError, match=re.escape(message)) as caught:
        check_settings(arguments)
    assert "could not be converted" not in str(caught.value)
    check_settings([re.search(r"such as (\S+)\.$", str(caught.value))[1]])  # pyright: ignore[reportOptionalSubscript]
