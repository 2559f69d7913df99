from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import evomerge
from evomerge.common.errors import ConfigError
from evomerge.recipes.recipe import Recipe, Source
from evomerge.space.coefficients import make_space
from evomerge.space.groups import make_groups
from evomerge.space.variable import Variable

GOLDEN = Path(__file__).parents[1] / "data" / "recipe.yaml"
SHAPES = {"emb.weight": (5, 2), "h.0.w": (3, 2), "h.1.w": (3, 2), "h.2.w": (4, 2), "ln_f.weight": (2,)}


def recipe_on(granularity, values=None, experts=("a", "b"), **settings):
    """A recipe with these values, (G, K), or with different ones everywhere."""
    groups = make_groups(granularity, SHAPES)
    values = np.arange(len(groups) * len(experts)).reshape(len(groups), -1) / 7 if values is None else values
    rows = {group.name: dict(zip(experts, row, strict=True)) for group, row in zip(groups, values, strict=True)}
    sources = {name: Source(f"experts/{name}", "cd" * 32) for name in experts}
    base = Source("base", "ab" * 32)
    return Recipe(base, sources, {"name": "linear"}, granularity, {"weight": rows}, **settings)


def golden():
    return Recipe(
        base=Source("suite/base", "ab" * 32),
        experts={"r8": Source("suite/experts/r8", "cd" * 32), "ng": Source("suite/experts/ng", "ef" * 32)},
        method={"name": "ties", "normalize": False},
        granularity="layer",
        coefficients={
            "weight": {
                "embeddings": {"r8": 0.0, "ng": 0.1 + 0.2},
                "encoder.layer.0": {"r8": 1e-05, "ng": 1.5},
                "head": {"r8": 1 / 3, "ng": -0.25},
            },
            "density": {
                "embeddings": {"r8": 0.5, "ng": 0.5},
                "encoder.layer.0": {"r8": 0.2, "ng": 1.0},
                "head": {"r8": 0.9, "ng": 0.1},
            },
        },
        scores={"select": {"mean": 0.8125, "tasks": {"r8": 0.9, "ng": 0.725}}, "items": 64},
        heads={"r8": "heads/r8.safetensors"},
        version="0.1.0",
    )


def test_golden_file():
    assert golden().to_yaml() == GOLDEN.read_text()
    assert Recipe.from_yaml(GOLDEN.read_text()) == golden()
    earlier = GOLDEN.read_text().replace("auto_class: AutoModel\n", "")  # the first recipes did not say it
    assert Recipe.from_yaml(earlier) == golden()


names = st.text(min_size=1, max_size=8)
floats = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.lists(names, min_size=1, max_size=4, unique=True),
    st.lists(names, min_size=1, max_size=3, unique=True),
    st.data(),
)
@settings(max_examples=30, deadline=None)
def test_yaml_gives_back_exactly_what_was_written(groups, experts, data):
    recipe = Recipe(
        base=Source(data.draw(names), data.draw(names)),
        experts={expert: Source(data.draw(names), "") for expert in experts},
        method={"name": data.draw(names), "seed": data.draw(st.integers())},
        granularity="tensor",
        coefficients={"weight": {group: {expert: data.draw(floats) for expert in experts} for group in groups}},
        scores={"mean": data.draw(floats), "note": data.draw(names)},
    )
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe
    assert repr(again) == repr(recipe)  # also the sign of a zero, and the order


def test_numpy_numbers_are_written_as_numbers():
    recipe = recipe_on("layer", np.full((5, 2), np.float64(0.1)), scores={"mean": np.float32(0.5), "n": np.int64(3)})
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again.coefficients["weight"]["h.0"] == {"a": 0.1, "b": 0.1}
    assert again.scores == {"mean": 0.5, "n": 3}
    assert again.version == evomerge.__version__
    with pytest.raises(ConfigError, match=r"scores\.when cannot be written"):
        recipe_on("layer", scores={"when": object()}).to_yaml()


def changed(*path, to=None, remove=False, rename=None):
    data = yaml.safe_load(golden().to_yaml())
    place = data
    for key in path[:-1]:
        place = place[key]
    if remove or rename:
        value = place.pop(path[-1])
        if rename:
            place[rename] = value
    else:
        place[path[-1]] = to
    return yaml.safe_dump(data, sort_keys=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed("granularity", rename="granularty"), "'granularty': did you mean 'granularity'"),
        (changed("heads", remove=True), "'heads' is missing"),
        (changed("base", "sha256", rename="sha265"), "recipe in base: .*'sha265': did you mean 'sha256'"),
        (changed("experts", "r8", "path", remove=True), "recipe in experts.r8: the key 'path' is missing"),
        (changed("method", "name", remove=True), "method needs a name"),
        (changed("method", to="linear"), "method must be of type dict, not 'linear'"),
        (
            changed("coefficients", "weight", "head", "r8", rename="r9"),
            "coefficients.weight.head: .*'r9'.* There are r8, ng",
        ),
        (changed("coefficients", "density", "head", remove=True), "coefficients.density: the group 'head' is missing"),
        (changed("coefficients", "weight", "head", "r8", to="much"), "coefficients.weight.head.r8 must be a finite"),
        (changed("coefficients", "weight", "head", "r8", to=True), "must be a finite number, not True"),
        (changed("coefficients", "weight", "head", "r8", to=float("nan")), "must be a finite number, not nan"),
        (changed("coefficients", "weight", "head", to=0.3), "coefficients.weight must map groups"),
        (changed("heads", "r8", to=3), "heads.r8 must be of type str, not 3"),
        (changed("format", to=2), "this is format 2, and evomerge .* reads format 1"),
        (golden().to_yaml().replace("r8: 1.0e-05", "r8: 1e-5"), "YAML reads it as a word, write 1.0e-05"),
        (golden().to_yaml() + "granularity: model\n", "'granularity' stands 2 times"),
        ("- a list", "the file must be a mapping"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_wrong_file_names_the_key(text, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.from_yaml(text)


def test_whole_numbers_are_read_as_floats():
    again = Recipe.from_yaml(changed("coefficients", "weight", "head", "r8", to=1))
    assert repr(again.coefficients["weight"]["head"]["r8"]) == "1.0"


def test_a_recipe_in_code_is_checked_too():
    with pytest.raises(ConfigError, match="at least one expert"):
        Recipe(Source("base", ""), {}, {"name": "linear"}, "model", {})
    with pytest.raises(ConfigError, match=r"must be a finite number, not .*inf"):
        recipe_on("model", np.array([[1.0, np.inf]]))


@pytest.mark.parametrize("granularity", ["model", "blocks:2", "layer", "module", "tensor", "chunk:3", "line"])
def test_a_search_can_start_where_an_earlier_recipe_ended(granularity):
    """The space of the recipe's own granularity gets its coefficients back, bit for bit."""
    recipe = recipe_on(granularity)
    groups = make_groups(granularity, SHAPES)
    same = recipe.on_groups(groups, ("b", "a"), SHAPES)["weight"]
    np.testing.assert_array_equal(
        same[:, ::-1], list(map(list, map(dict.values, recipe.coefficients["weight"].values())))
    )


def test_other_granularities_take_the_mean_over_elements():
    fine = recipe_on("layer", np.array([[1.0], [2.0], [3.0], [4.0], [5.0]]), experts=("a",))
    whole = fine.on_groups(make_groups("model", SHAPES), ("a",), SHAPES)["weight"]
    assert whole.item() == pytest.approx((10 * 1 + 6 * 2 + 6 * 3 + 8 * 4 + 2 * 5) / 32)
    halves = fine.on_groups(make_groups("chunk:2", SHAPES), ("a",), SHAPES)["weight"]
    np.testing.assert_array_equal(halves[:, 0], np.repeat([1.0, 2.0, 3.0, 4.0, 5.0], 2))
    space = make_space("blocks:2", SHAPES, ("a",), [Variable("weight", 0.0, 10.0, 0.0)])
    np.testing.assert_allclose(space.start(fine.on_groups(space.groups, ("a",), SHAPES)), [1, 2.5, 4, 5])


def test_per_parameter_weighs_the_spans_by_their_elements():
    thirds = recipe_on("chunk:3", experts=("a",))
    values = thirds.per_parameter({**SHAPES})["weight"]["a"]
    assert list(values) == list(SHAPES)
    assert values["h.0.w"] == pytest.approx(np.mean([3, 4, 5]) / 7)
    assert values["emb.weight"] == pytest.approx((4 * 0 + 3 * 1 + 3 * 2) / 10 / 7)  # sizes 4, 3, 3
    assert recipe_on("layer").per_parameter(SHAPES)["weight"]["b"]["h.2.w"] == 7 / 7


def test_another_model_or_expert_is_refused():
    with pytest.raises(ConfigError, match=r"coefficients\.weight: .*'h\.2'"):
        recipe_on("layer").groups({name: shape for name, shape in SHAPES.items() if name != "h.2.w"})
    with pytest.raises(ConfigError, match="Unknown expert 'c'"):
        recipe_on("layer").on_groups(make_groups("layer", SHAPES), ("a", "c"), SHAPES)
