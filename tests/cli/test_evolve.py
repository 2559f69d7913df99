"""`evomerge search --evolve`: what a configuration of mergekit-evolve becomes, what is told of it, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from evomerge.cli import search
from evomerge.cli.evolve import evolved
from evomerge.common.errors import ConfigError
from tests.kit.language import save_language_family, write_task

HEAD = """\
genome:
  models: [left, right]
  merge_method: {method}
  base_model: {base}
"""
TASKS = """\
tasks:
- {name: pico_choice, weight: 2.0}
- {name: pico_answer, metric: "acc,none"}
limit: 4
"""
DARE = HEAD.format(method="dare_ties", base="base") + "  layer_granularity: 1\n  tokenizer_source: base\n" + TASKS
AVERAGE = HEAD.format(method="linear", base="null") + "tasks: [pico_choice]\nnum_fewshot: 0\n"
MODULES = (
    HEAD.format(method="task_arithmetic", base="base")
    + "  filters: [self_attn, mlp]\n  allow_negative_weights: true\n  smooth: true\n  layer_granularity: 2\n"
    + TASKS.replace("limit: 4", "limit: 2\napply_chat_template: false")
)
OPTIONS = ("--max-fevals", "4", "--task-search-path", "tasks", "--sigma0=0.3")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_language_family(tmp_path_factory.mktemp("evolve"))
    for name in ("choice", "answer"):
        write_task(path / "tasks", name)
    return path


@pytest.fixture
def here(family: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(family)
    return family


def settings_of(text: str, *more: str) -> dict[str, str]:
    Path("their.yml").write_text(text)
    return dict(one.split("=", 1) for one in evolved(["--evolve", "their.yml", *OPTIONS, *more]))


@pytest.mark.parametrize("given", [["--evolve"], ["--evolve="], ["--evolve", "their.yml", "--max-fevals="]])
def test_an_option_without_its_value_is_refused(given: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--(evolve|max-fevals) needs a value, such as --evolve their\.yml"):
        evolved(given)


def test_the_arguments_of_other_searches_are_left_alone() -> None:
    assert evolved(["model=pico", "--help"]) == ["model=pico", "--help"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            DARE,
            {
                **{"model.base": "base", "model.experts": "{left: left, right: right}", "method": "dare_ties"},
                **{"method.normalize": "true", "space": "blocks", "space.n": "2", "model.vocabulary": "shared"},
                **{"objective.weights": "{pico_choice: 2.0, pico_answer: 1.0}", "fitness.items": "8"},
                **{"space.bounds": "{weight: [0.0, 1.5]}", "searcher.sigma": "0.2", "budget": "4", "seed": "0"},
                "fitness.chat_template": "true",
            },
        ),
        (
            AVERAGE,
            {
                **{"model.base": "left", "method": "average", "space": "model", "fitness.fewshot": "0"},
                **{"space.bounds": "{weight: [0.0, 1.0]}", "fitness.items": "null"},
                "fitness.tasks": "{pico_choice: {task: tasks/choice.yaml, metric: acc}}",
            },
        ),
        (
            MODULES,
            {
                **{"method": "linear", "space": "modules", "space.n": "1", "fitness.chat_template": "false"},
                **{"space.bounds": "{weight: [-1.5, 1.5]}", "searcher.sigma": "0.1"},
            },
        ),
    ],
    ids=["dare_ties", "linear", "task_arithmetic"],
)
def test_a_configuration_becomes_settings(text: str, wanted: dict[str, str], here: Path) -> None:
    found = settings_of(text)
    assert {name: found.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("text", [DARE, AVERAGE, MODULES], ids=["dare_ties", "linear", "task_arithmetic"])
def test_it_is_told_of_and_searched(text: str, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (here / "their.yml").write_text(text)
    search.main(
        ["--evolve=their.yml", *OPTIONS, "model.device=cpu", "model.cache=cache", f"hydra.run.dir={tmp_path}/run"]
    )
    printed = capsys.readouterr().out
    assert "their.yml as a search" in printed
    assert "the same as: evomerge search model.base=" in printed
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert sorted(recipe["experts"]) == ["left", "right"]


def test_smooth_with_two_numbers_is_a_line(here: Path) -> None:
    text = DARE.replace("layer_granularity: 1", "layer_granularity: 1\n  smooth: true")
    assert settings_of(text)["space"] == "line"


def test_settings_beside_the_file_win(here: Path) -> None:
    found = settings_of(DARE, "space=layer", "budget=7", "method.normalize=false")
    assert (found["space"], found["budget"], found["method.normalize"]) == ("layer", "7", "false")
    assert settings_of(DARE.replace("source: base", "source: union"))["model.vocabulary"] == "union"
    assert "space.n" not in found


def test_all_that_is_otherwise_is_told(here: Path, capsys: pytest.CaptureFixture) -> None:
    settings_of(DARE + "shuffel: true\nshuffle: true\n", "--vllm", "--strategy", "pool", "--no-reshard")
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in (
        "shuffel is no key",
        "is shuffle meant?",
        "--vllm",
        "--strategy pool",
        "--reshard off",
        "densities begin at 0.5, not at 1",
        "a published test split is refused",
        "embeddings and head have coefficients of their own",
        "mergekit-evolve does not seed",
    ):
        assert text in printed, text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DARE.replace("dare_ties", "della"), r"line 3: mergekit-evolve has no merge_method della"),
        (DARE.replace("base_model: base", "base_model: null"), r"line 1: dare_ties needs a base_model"),
        (
            DARE.replace("granularity: 1", "granularity: 3"),
            r"line 5: the model has 2 layers, and layer_granularity must",
        ),
        (DARE.replace("[left, right]", "[left+lora]"), r"line 2: left\+lora is an adapter on another model"),
        (DARE.replace("tokenizer_source: base", "filters: [q_proj]"), r"line 6: the filter q_proj picks tensors"),
        (DARE.replace("name: pico_answer", "name: pico_choice"), r"line 9: pico_choice is named twice"),
        (
            HEAD.format(method="slerp", base="base").replace("right", "right, base") + TASKS,
            r"line 2: slerp goes between two models, and mergekit-evolve chooses two of 3",
        ),
        (DARE.replace("weight: 2.0", "weight: -1"), r"pico_choice has the weight -1, so less acc would be better"),
        ("models: []\n", r"line 1: there must be genome and tasks"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_its_line(text: str, message: str, here: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_of(text)
