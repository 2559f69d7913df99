"""The model card: what the hub reads of it, and what people do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from evomerge.recipes.card import ROWS, model_card, parent_names
from evomerge.recipes.recipe import Recipe, Source
from evomerge.space.groups import make_groups

PARAMETERS = {
    "embed.weight": (4, 2),
    **{f"layers.{i}.{name}.weight": (2, 2) for i in range(3) for name in ("attn", "mlp")},
    "norm.weight": (2,),
}
SCORES = {
    "metric": "accuracy",
    "split": "report",
    "items": 600,
    "trials": 40,
    "winner": {"mean": 0.81234, "se": 0.0123, "tasks": {"mood": 0.9, "topic": 0.7}},
    "base": {"mean": 0.5, "se": None, "tasks": {"mood": 0.6, "topic": 0.4}},
    "best_constant": {"mean": 0.8, "se": 0.02, "tasks": {"mood": 0.8, "topic": 0.8}},
    "winner_vs_best_constant": {"diff": 0.01234, "se": 0.0056},
}


def recipe(granularity: str = "layer", parameters=PARAMETERS, **more: Any) -> Recipe:
    rows = {
        group.name: {"mood": 0.25 * i, "topic": 0.5} for i, group in enumerate(make_groups(granularity, parameters))
    }
    return Recipe(
        Source("base", "b" * 64),
        {"mood": Source("mood", "1" * 64), "topic": Source("topic", "2" * 64)},
        {"name": "linear"},
        granularity,
        {"weight": rows},
        **more,
    )


def directory(path: Path, card: str | None = None, **config: Any) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    if card is not None:
        (path / "README.md").write_text(card)
    return path


@pytest.fixture
def places(tmp_path) -> dict[str, Path]:
    return {name: directory(tmp_path / name) for name in ("base", "mood", "topic")}


def made(recipe: Recipe, places: dict[str, Path], parameters=PARAMETERS, dtype: str | None = None) -> ModelCard:
    experts = {name: place for name, place in places.items() if name != "base"}
    return ModelCard(model_card(recipe, places["base"], experts, parameters, dtype))


def rows_of(card: ModelCard, title: str) -> list[list[str]]:
    section = card.text.split(f"## {title}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]


def test_the_metadata(places):
    data = made(recipe(), places).data.to_dict()
    assert data == {
        "base_model": ["base", "mood", "topic"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "evomerge", "task-arithmetic"],
    }


# what the hub calls the parents


def test_an_id_is_that_of_the_directory_of_its_name_and_of_no_other(tmp_path):
    """A config mentions what a model was made from: the base, or that of the base."""
    base = directory(tmp_path / "TinyLM-1B", _name_or_path="lab/older")
    mood = directory(tmp_path / "mood", "---\nbase_model: lab/tinylm-1b\n---\n", _name_or_path="lab/TinyLM-1B")
    topic = directory(tmp_path / "topic", "---\nbase_model: [lab/TinyLM-1B]\n---\n", _name_or_path="/home/a/topic")
    found = parent_names([base, mood, topic])
    assert {path.name: name for path, name in found.items()} == {
        "TinyLM-1B": "lab/TinyLM-1B",
        "mood": "mood",
        "topic": "topic",
    }


def test_the_cache_of_the_hub_says_it(tmp_path):
    path = directory(tmp_path / "models--lab--TinyLM" / "snapshots" / "0123", _name_or_path="lab/older")
    assert parent_names([path]) == {path: "lab/TinyLM"}


def test_two_experts_of_one_name_are_named_once(tmp_path):
    places = {"base": directory(tmp_path / "base")}
    places |= {name: directory(tmp_path / name / "final") for name in ("mood", "topic")}
    assert made(recipe(), places).data.base_model == ["base", "final"]


# the licence


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        (["license: mit"] * 3, {"license": "mit"}),
        (["license: mit", "license: mit", "license: apache-2.0"], {}),
        (["license: mit", "license: mit", "tags: [a]"], {}),
        (["license: mit", "license: mit", None], {}),
        (["license: mit", "license: mit", "license: [unclosed"], {}),
        ([None] * 3, {}),
        (
            ["license: other\nlicense_name: own\nlicense_link: LICENSE"] * 3,
            {"license": "other", "license_name": "own", "license_link": "LICENSE"},
        ),
        (["license: other\nlicense_name: own"] * 2 + ["license: other\nlicense_name: another"], {}),
    ],
)
def test_the_licence_is_that_of_all_parents_or_none(tmp_path, cards, expected):
    texts = [None if card is None else f"---\n{card}\n---\n# A model\n" for card in cards]
    places = {
        name: directory(tmp_path / name, text) for name, text in zip(("base", "mood", "topic"), texts, strict=True)
    }
    data = made(recipe(), places).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == expected


# what people read


def test_scores_with_their_errors(places):
    card = made(recipe(scores={**SCORES, "kernels": "compiled"}), places)
    assert rows_of(card, "Scores") == [
        ["", "mean ± standard error", "mood", "topic"],
        ["---", "---:", "---:", "---:"],
        ["base", "0.5000", "0.600", "0.400"],
        ["best constant", "0.8000 ± 0.0200", "0.800", "0.800"],
        ["winner", "0.8123 ± 0.0123", "0.900", "0.700"],
    ]
    assert "metric: accuracy; split: report; items: 600; trials: 40; kernels: compiled; higher is better." in card.text
    assert "winner − best constant: +0.0123 ± 0.0056 (paired)" in card.text


def test_a_difference_that_is_not_known_has_no_line(places):
    unknown = {"winner_vs_experts": {"diff": None, "se": None, "tasks": {"mood": 0.1}}}
    text = made(recipe(scores={**SCORES, **unknown}), places).text
    assert "winner − best constant: +0.0123" in text
    assert "winner − experts" not in text


def test_how_surely_limits_had_to_hold(places):
    limits = {"wanted": {"news": ">= base"}, "select": {"news": 0.1}, "report": {"news": 0.0}}
    said = "On the select items it had to hold news >= base by 2 standard errors."
    assert said in made(recipe(scores={**SCORES, "limits": {**limits, "sure": 2.0}}), places).text
    assert "had to hold" not in made(recipe(scores={**SCORES, "limits": {**limits, "sure": 0.0}}), places).text
    front = {"point": "point_1", "of": 2, "winner": "point_1", "rule": "the knee", "values": {}}
    front |= {"constraints": limits["wanted"], "sure": 2.0, "unsure": ["news"]}
    text = made(recipe(scores={**SCORES, "front": front | {"violations": {"select": {"news": -0.1}}}}), places).text
    assert f"{said} There it holds news >= base, but not by so many." in text
    assert "It violates" not in text


@pytest.mark.parametrize("scores", [{}, {"metric": "accuracy"}, {"winner": "mean", "split": None}])
def test_no_scores(places, scores):
    assert "## Scores" not in made(recipe(scores=scores), places).text


def test_scores_that_are_unknown(places):
    scores = {"winner": {"mean": None, "se": None}, "base": {"mean": 0.5, "se": 0.1, "tasks": {"mood": None}}}
    rows = rows_of(made(recipe(scores=scores), places), "Scores")
    assert rows[2:] == [["base", "0.5000 ± 0.1000", ""], ["winner", "", ""]]


def test_coefficients_of_few_groups(places):
    rows = rows_of(made(recipe(), places), "Coefficients")
    assert rows[0] == ["weight", "mood", "topic"]
    assert rows[2:4] == [["embeddings", "0.000", "0.500"], ["layers.0", "0.250", "0.500"]]
    assert len(rows) == 2 + 5


def test_coefficients_of_many_groups_are_drawn_up(places):
    parameters = {f"layers.{i}.{name}.weight": (2, 2) for i in range(25) for name in ("attn", "mlp")}
    card = made(recipe("tensor", parameters), places, parameters)
    rows = rows_of(card, "Coefficients")
    assert len(rows) == 2 + 25
    assert rows[2] == ["layers.0", "0.125", "0.500"]  # the mean of 0 and .25
    assert "Means over `layer`; `recipe.yaml` has all 50 groups." in card.text
    parameters = {f"layers.{i}.weight": (2, 2) for i in range(60)}
    card = made(recipe("tensor", parameters), places, parameters)
    assert len(rows_of(card, "Coefficients")) == 2 + 12
    parameters = {f"part{i}.weight": (2, 2) for i in range(ROWS + 1)}
    card = made(recipe("tensor", parameters), places, parameters)
    assert rows_of(card, "Coefficients")[2] == ["model", "5.000", "0.500"]
    assert "Means over the whole model" in card.text


def test_variables_have_a_table_each_and_transforms_are_named(places):
    rows = recipe().coefficients["weight"]
    ties = replace(
        recipe(), method={"name": "ties", "normalize": False}, coefficients={"weight": rows, "density": rows}
    )
    card = made(ties, places)
    assert [row[0] for row in rows_of(card, "Coefficients") if row[1] == "mood"] == ["weight", "density"]
    assert card.data.tags == ["merge", "evomerge", "ties"]
    frozen = replace(recipe(), transform=[{"name": "ties", "density": 0.3}])
    assert (
        "(task arithmetic) (Ilharco et al. 2023, arXiv 2212.04089), after TIES: differences to the base trimmed by "
        "magnitude and signs elected, once (over the whole model; density 0.3; Yadav et al. 2023, arXiv 2306.01708)"
    ) in made(frozen, places).text
    chain = replace(
        frozen, transform=[*frozen.transform, {"name": "tests.kit.transforms.Scale", "by": 2, "only": ["h*"]}]
    )
    text = made(chain, places).text
    assert "arXiv 2306.01708) and then differences to the base scaled (of h*; by 2; nobody, never); one" in text


def test_rows_that_are_no_experts_have_columns_of_their_own(places):
    own = recipe()
    rows = {group: {"all": 0.25} for group in own.coefficients["weight"]}
    merged = replace(own, transform=[{"name": "tests.kit.transforms.Sum"}], rows=["all"], coefficients={"weight": rows})
    card = made(merged, places)
    assert "one coefficient for each row and each group" in card.text
    assert "| weight | all |" in card.text


def test_how_to_use_it_and_to_build_it_again(places):
    (places["base"] / "tokenizer.json").write_text("{}")
    heads = {"mood": "heads/mood.safetensors"}
    card = made(recipe(heads=heads, auto_class="AutoModelForCausalLM"), places, dtype="bfloat16")
    assert "from transformers import AutoModelForCausalLM, AutoTokenizer\n" in card.text
    assert "`heads/mood.safetensors`" in card.text
    assert "evomerge merge recipe.yaml merged/ \\\n    --dtype bfloat16 \\\n    --base path/to/base" in card.text
    assert "--expert topic=path/to/topic" in card.text
    assert "2" * 12 in card.text
    (places["base"] / "tokenizer.json").unlink()
    (places["base"] / "preprocessor_config.json").write_text("{}")
    assert "import AutoModel, AutoImageProcessor\n" in made(recipe(), places).text


def test_names_that_would_break_a_table(places):
    odd = {"base": places["base"], "a|b": places["mood"], "topic": places["topic"]}
    rows = {group: {"a|b": 0.1, "topic": 0.2} for group in recipe().coefficients["weight"]}
    made_of = {"a|b": Source("mood", "1" * 64), "topic": Source("topic", "2" * 64)}
    card = made(replace(recipe(), experts=made_of, coefficients={"weight": rows}), odd)
    assert "| weight | a\\|b | topic |" in card.text
