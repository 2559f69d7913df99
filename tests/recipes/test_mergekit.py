from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.common.errors import ConfigError
from evomerge.recipes.mergekit.write import caveat, to_mergekit
from evomerge.recipes.recipe import Recipe, Source
from evomerge.space.groups import make_groups

GOLDEN = Path(__file__).parents[1] / "data" / "mergekit.yaml"
BLOCK = (
    *(f"attention.self.{part}.weight" for part in ("query", "key", "value")),
    "attention.output.dense.weight",
    "attention.output.LayerNorm.weight",
    "intermediate.dense.weight",
    "output.dense.weight",
    "output.LayerNorm.weight",
)
BERT = {
    "embeddings.word_embeddings.weight": (9, 4),
    "embeddings.LayerNorm.weight": (4,),
    **{f"encoder.layer.{i}.{part}": (4, 4) for i in range(12) for part in BLOCK},
    "pooler.dense.weight": (4, 4),
}
PREFIXED = {name: f"bert.{name}" for name in BERT}
SAME = {name: name for name in BERT}
ALONE = ("linear", "slerp", "nuslerp", "multislerp", "karcher")
"""Methods with weights alone."""


def recipe_on(granularity, parameters, method="linear", seed=0, paths=("base", "experts/a", "experts/b"), **options):
    rng = np.random.default_rng(seed)
    experts = dict(zip("ab", (Source(path, "cd" * 32) for path in paths[1:]), strict=False))
    coefficients = {
        variable: {
            group.name: {expert: float(rng.integers(1, 100) / 100) for expert in experts}
            for group in make_groups(granularity, parameters)
        }
        for variable in (("weight",) if method in ALONE else ("weight", "density"))
    }
    return Recipe(Source(paths[0], "ab" * 32), experts, {"name": method, **options}, granularity, coefficients)


def resolver(text, variable="weight"):
    """name -> what mergekit takes for it, per model: the first filter that is a part of the name (its config.py)."""
    settings = [model["parameters"][variable] for model in yaml.safe_load(text)["models"]]
    return lambda name: [next(entry["value"] for entry in s if entry.get("filter", "") in name) for s in settings]


def test_golden_file():
    shapes = {name: shape for name, shape in BERT.items() if ".layer." not in name or ".layer.1" in name}
    recipe = replace(recipe_on("layer", shapes), version="0.1.0")
    text = to_mergekit(recipe, {name: f"bert.{name}" for name in shapes}, shapes, "bfloat16")
    assert text == GOLDEN.read_text()


@pytest.mark.parametrize("granularity", ["model", "blocks:5", "layer", "module", "tensor", "line"])
@pytest.mark.parametrize(
    "keys", [SAME, PREFIXED, {name: name.replace("LayerNorm.weight", "LayerNorm.gamma") for name in BERT}]
)
def test_every_tensor_resolves_to_our_coefficient_under_both_of_its_names(granularity, keys):
    recipe = recipe_on(granularity, BERT)
    text = to_mergekit(recipe, keys, BERT, "float32", extra=("cls.weight",))
    values, resolve = recipe.per_parameter(BERT)["weight"], resolver(text)
    for name, key in keys.items():
        assert resolve(name) == resolve(key) == [values["a"][name], values["b"][name]]
    assert resolve("cls.weight") == resolve("something.else") == [0.0, 0.0]


def test_filters_are_as_short_as_they_can_be():
    text = to_mergekit(recipe_on("layer", BERT), PREFIXED, BERT, "float32")
    filters = [entry.get("filter") for entry in yaml.safe_load(text)["models"][0]["parameters"]["weight"]]
    assert set(filters) == {"embeddings.", "pooler.dense.weight", *(f"encoder.layer.{i}." for i in range(12)), None}
    assert filters[-1] is None


@given(
    st.dictionaries(
        st.lists(st.sampled_from(["a", "b", "ab", "a1", "1", "h.1", "h.11"]), min_size=1, max_size=4).map(".".join),
        st.integers(1, 3),
        min_size=1,
        max_size=12,
    ),
    st.sets(st.sampled_from(["a.b", "b", "ab.1", "a.a.a", "h.1.x"])),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_names_the_writer_never_lies(sizes, extra):
    """Names that are parts of each other: the text resolves to our values, or there is no text."""
    shapes = {name: (size,) for name, size in sizes.items()}
    extra -= set(shapes)
    recipe = recipe_on("tensor", shapes)
    text = to_mergekit(recipe, {name: name for name in shapes}, shapes, "float32", extra=extra)
    resolve = resolver(text)
    for name in shapes:
        assert resolve(name) == list(recipe.coefficients["weight"][name].values())
    for name in extra:
        assert resolve(name) == [0.0, 0.0]


def test_names_that_cannot_be_told_apart_are_refused():
    """The file has w2's tensor under the live name of w1: one name, two values."""
    shapes = {"w1": (2,), "w2": (2,)}
    with pytest.raises(ConfigError, match="stands for two tensors"):
        to_mergekit(recipe_on("tensor", shapes), {"w1": "x", "w2": "w1"}, shapes, "float32")


def test_tied_names_follow_their_source_and_missing_parameters_are_left_out():
    shapes = {
        "model.embed_tokens.weight": (8, 2),
        "model.layers.0.w": (2, 2),
        "model.norm.weight": (2,),
        "pooler.w": (2,),
    }
    recipe = recipe_on("layer", shapes)
    keys = {name: name for name in shapes if name != "pooler.w"}
    tied = {"lm_head.weight": "model.embed_tokens.weight"}
    text = to_mergekit(recipe, keys, shapes, "float32", tied=tied)
    assert resolver(text)("lm_head.weight") == list(recipe.coefficients["weight"]["embeddings"].values())
    assert resolver(text)("pooler.w") == [0.0, 0.0]


def test_document():
    document = yaml.safe_load(to_mergekit(recipe_on("layer", BERT), SAME, BERT, "torch.bfloat16"))
    assert list(document) == ["merge_method", "base_model", "dtype", "out_dtype", "parameters", "models"]
    assert document["merge_method"] == "task_arithmetic"
    assert (document["base_model"], document["dtype"], document["out_dtype"]) == ("base", "float32", "bfloat16")
    assert document["parameters"] == {"normalize": False, "lambda": 1.0, "int8_mask": False}
    assert [model["model"] for model in document["models"]] == ["experts/a", "experts/b"]


def test_paths_with_signs_of_mergekit_are_not_taken_for_adapters_or_revisions():
    recipe = recipe_on("model", BERT, paths=("base@1", "a+b", "c"))
    document = yaml.safe_load(to_mergekit(recipe, SAME, BERT, "float32"))
    assert document["base_model"] == {"model": {"path": "base@1"}}
    assert [model["model"] for model in document["models"]] == [{"model": {"path": "a+b"}}, "c"]


def test_ties_keeps_as_many_elements_as_ours():
    """mergekit keeps max(1, int(density * n)) elements (its sparsify.py), evomerge floor(density * n + 1e-9)."""
    shapes = {"h.0.w": (100,), "h.1.w": (8,), "h.1.v": (50, 50), "ln_f.weight": (3,)}
    recipe = recipe_on("layer", shapes, method="ties", normalize=True)
    for group, density in {"h.0": 0.29, "h.1": 0.1, "head": 0.57}.items():
        recipe.coefficients["density"][group]["a"] = density
    text = to_mergekit(recipe, {name: name for name in shapes}, shapes, "float32")
    document = yaml.safe_load(text)
    assert document["merge_method"] == "ties"
    assert document["parameters"]["normalize"] is True
    kept = {}
    for name, shape in shapes.items():
        density, n = resolver(text, "density")(name)[0], int(np.prod(shape))
        kept[name] = 0 if density <= 0 else max(1, int(density * n))
    assert kept == {"h.0.w": 29, "h.1.w": 0, "h.1.v": 250, "ln_f.weight": 1}
    assert resolver(text, "density")("h.1.v")[0] == 0.1


def test_dare_ties_says_that_the_masks_differ():
    text = to_mergekit(recipe_on("layer", BERT, method="dare_ties", seed=3), SAME, BERT, "float32")
    assert yaml.safe_load(text)["parameters"]["rescale"] is True
    assert "Not bit-equal" in text


@pytest.mark.parametrize(
    ("method", "called", "shared"),
    [
        ({"name": "dare", "seed": 3, "rescale": False}, "dare_linear", {"normalize": False, "rescale": False}),
        ({"name": "dare_ties", "rescale": False, "elect": "sum"}, "dare_ties", {"normalize": False, "rescale": False}),
        ({"name": "della", "normalize": True}, "della", {"normalize": True, "rescale": True}),
        ({"name": "della", "elect": None}, "della_linear", {"normalize": False, "rescale": True}),
        ({"name": "breadcrumbs", "elect": None, "normalize": True}, "breadcrumbs", {"normalize": True}),
        ({"name": "breadcrumbs", "elect": "sum"}, "breadcrumbs_ties", {"normalize": False}),
    ],
    ids=lambda given: given if isinstance(given, str) else None,
)
def test_each_sum_has_its_name_in_mergekit(method, called, shared):
    """All of its settings are written out, since mergekit's defaults are others."""
    name, settings = method["name"], {key: value for key, value in method.items() if key != "name"}
    recipe = recipe_on("layer", BERT, method=name, **settings)
    text = to_mergekit(recipe, SAME, BERT, "float32")
    document = yaml.safe_load(text)
    assert document["merge_method"] == called
    assert document["parameters"] == {"lambda": 1.0, "int8_mask": False, **shared}
    for variable in ("weight", "density"):
        values, resolve = recipe.per_parameter(BERT)[variable], resolver(text, variable)
        assert all(resolve(one) == [values["a"][one], values["b"][one]] for one in BERT)
    assert ("Not bit-equal" in text) == (name not in ("ties", "breadcrumbs"))


def test_breadcrumbs_counts_as_ours_does():
    """mergekit counts int(gamma * n) and int(density * n), evomerge floor(share * n + 1e-9)."""
    shapes = {"h.0.w": (100,), "h.1.w": (50, 50), "ln_f.weight": (3,)}
    recipe = recipe_on("layer", shapes, method="breadcrumbs", gamma=0.29)
    for group in recipe.coefficients["density"]:
        recipe.coefficients["density"][group]["a"] = 0.57
    text = to_mergekit(recipe, {name: name for name in shapes}, shapes, "float32")
    counts = {
        name: [int(resolver(text, setting)(name)[0] * np.prod(shape)) for setting in ("density", "gamma")]
        for name, shape in shapes.items()
    }
    assert counts == {"h.0.w": [57, 29], "h.1.w": [1425, 725], "ln_f.weight": [1, 0]}


def test_the_chances_of_della_stay_inside_what_mergekit_takes():
    """It refuses density - epsilon <= 0 and density + epsilon >= 1, where evomerge takes a smaller epsilon."""
    shapes = {"h.0.w": (4, 4), "h.1.w": (4, 4), "h.2.w": (4, 4)}
    recipe = recipe_on("layer", shapes, method="della", epsilon=0.15)
    for group, density in {"h.0": 0.5, "h.1": 0.1, "h.2": 0.9}.items():
        recipe.coefficients["density"][group]["a"] = density
    text = to_mergekit(recipe, {name: name for name in shapes}, shapes, "float32")
    epsilon = {name: resolver(text, "epsilon")(name)[0] for name in shapes}
    assert epsilon["h.0.w"] == 0.15
    assert 0.0998 < epsilon["h.1.w"] < 0.1
    assert 0.9 + epsilon["h.2.w"] < 1
    shapes["h.2.bias"] = (1,)
    recipe = recipe_on("layer", shapes, method="della")
    with pytest.raises(ConfigError, match=r"h\.2\.bias has rows of one element.*evomerge merge"):
        to_mergekit(recipe, {name: name for name in shapes}, shapes, "float32")


def test_slerp_has_one_number_for_both_models():
    recipe = recipe_on("layer", BERT, method="slerp", paths=("base", "experts/a"))
    document = yaml.safe_load(to_mergekit(recipe, SAME, BERT, "float32", extra=("cls.weight",)))
    assert (document["merge_method"], document["base_model"]) == ("slerp", "base")
    assert document["models"] == [{"model": "experts/a"}]
    filters, values = document["parameters"].pop("t"), recipe.per_parameter(BERT)["weight"]["a"]
    assert document["parameters"] == {}
    for name in (*BERT, "cls.weight"):
        assert next(one["value"] for one in filters if one.get("filter", "") in name) == values.get(name, 0.0)


@pytest.mark.parametrize("deltas", [False, True])
def test_nuslerp_has_a_base_where_it_takes_differences_to_it(deltas):
    recipe = recipe_on("layer", BERT, method="nuslerp", deltas=deltas)
    document = yaml.safe_load(text := to_mergekit(recipe, SAME, BERT, "float32"))
    assert document["merge_method"] == "nuslerp"
    assert ("base_model" in document) == deltas
    assert document["parameters"] == {"nuslerp_flatten": True, "nuslerp_row_wise": False}
    values = recipe.per_parameter(BERT)["weight"]
    resolve = resolver(text)
    assert all(resolve(name) == [values["a"][name], values["b"][name]] for name in BERT)
    with pytest.raises(ConfigError, match=r"mixes every tensor of the two experts, and cls\.weight stays the base's"):
        to_mergekit(recipe, SAME, BERT, "float32", extra=("cls.weight",))


@pytest.mark.parametrize("deltas", [False, True])
def test_multislerp_has_a_base_where_it_takes_differences_to_it(deltas):
    recipe = recipe_on("layer", BERT, method="multislerp", deltas=deltas)
    document = yaml.safe_load(text := to_mergekit(recipe, SAME, BERT, "float32"))
    assert (document["merge_method"], "base_model" in document) == ("multislerp", deltas)
    assert document["parameters"] == {"normalize_weights": True, "eps": 1e-8}
    values = recipe.per_parameter(BERT)["weight"]
    resolve = resolver(text)
    assert all(resolve(name) == [values["a"][name], values["b"][name]] for name in BERT)


def test_karcher_weighs_all_models_alike_or_is_refused():
    recipe = recipe_on("model", BERT, method="karcher", steps=7, tolerance=1e-4)
    with pytest.raises(ConfigError, match="karcher weighs all models alike, and this recipe does not: merge with"):
        to_mergekit(recipe, SAME, BERT, "float32")
    alike = replace(recipe, coefficients={"weight": {"model": {"a": 0.4, "b": 0.4}}})
    document = yaml.safe_load(to_mergekit(alike, SAME, BERT, "float32"))
    assert document["models"] == [{"model": "experts/a"}, {"model": "experts/b"}]
    assert document["parameters"] == {"max_iter": 7, "tol": 1e-4}
    assert "base_model" not in document
    listed = replace(alike, base=replace(alike.base, path="experts/a"))
    assert yaml.safe_load(to_mergekit(listed, SAME, BERT, "float32"))["base_model"] == "experts/a"


def test_ties_says_what_happens_among_equal_magnitudes_only_where_something_is_trimmed():
    recipe = recipe_on("layer", BERT, method="ties")
    assert "any of them" in to_mergekit(recipe, SAME, BERT, "float32")
    assert "any of them" in caveat(recipe)
    whole = {group: dict.fromkeys(row, 1.0) for group, row in recipe.coefficients["density"].items()}
    whole = replace(recipe, coefficients={**recipe.coefficients, "density": whole})
    assert "any of them" not in to_mergekit(whole, SAME, BERT, "float32")
    assert caveat(recipe_on("layer", BERT)) == ""


def test_what_mergekit_cannot_express_is_refused_with_a_way_out():
    def refused(message, recipe, dtype="float32"):
        with pytest.raises(ConfigError, match=message):
            to_mergekit(recipe, SAME, BERT, dtype)

    refused(
        "part of a tensor.*task_arithmetic with weight 1: .evomerge export RUN --materialise DIR",
        recipe_on("chunk:2", BERT),
    )
    refused("Unknown method 'slurp'.*linear, ties", recipe_on("layer", BERT, method="slurp"))
    refused("did you mean 'float16'", recipe_on("layer", BERT), dtype="flaot16")
    refused("same path", recipe_on("layer", BERT, paths=("base", "a", "a")))
    refused("recipe in coefficients.weight", recipe_on("layer", {"h.0.w": (2,)}))
    refused(
        r"transformed before the search \(ties\).*base \+ transformed task vector.*--materialise DIR",
        replace(recipe_on("layer", BERT), transform=[{"name": "ties", "density": 0.2}]),
    )
    for method in ("ties", "dare_ties", "della", "breadcrumbs"):
        refused("elect=count.*method.elect=sum", recipe_on("layer", BERT, method=method, elect="count"))
    for method in ("ties", "breadcrumbs"):
        refused("over=group counts.*method.over=tensor", recipe_on("layer", BERT, method=method, over="group"))
    linear = recipe_on("layer", BERT)
    refused("ties needs a density", Recipe(linear.base, linear.experts, {"name": "ties"}, "layer", linear.coefficients))
