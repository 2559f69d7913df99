"""mergekit's merge YAML, read: the number of each tensor, what becomes of it, and what is refused, with its line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.cli.main import main
from evomerge.common.errors import ConfigError
from evomerge.common.progress import Silent
from evomerge.models.live import load_skeleton
from evomerge.models.weight_files import weight_files
from evomerge.models.weights import read_tensors
from evomerge.recipes.catalog import METHODS, TRANSFORMS
from evomerge.recipes.mergekit.evaluate import evaluate, number
from evomerge.recipes.mergekit.methods import PEERS, peer_named, peer_of
from evomerge.recipes.mergekit.nodes import read_nodes
from evomerge.recipes.mergekit.read import Told, read_mergekit
from evomerge.recipes.mergekit.write import to_mergekit
from tests.kit.merging import save_family

HEAD = "merge_method: task_arithmetic\nbase_model: base\ndtype: float32\n"
EMBED, NORM, LM_HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
QUERY, UP = "model.layers.{}.self_attn.q_proj.weight", "model.layers.{}.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and the experts red, green and blue, of three layers."""
    path = tmp_path_factory.mktemp("family")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                **{"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2},
                **{"num_key_value_heads": 2, "vocab_size": 19, "max_position_embeddings": 16, "initializer_range": 0.5},
            )
        )
    save_family(path, model, frozen="nothing")
    return path


def read(text: str, family: Path) -> Told:
    return read_mergekit(text, family, Silent())


def weights(text: str, family: Path, variable: str = "weight") -> dict[str, dict[str, float]]:
    """Parameter -> expert -> number."""
    recipe = read(text, family).recipe
    found = recipe.per_parameter(load_skeleton(family / "base", recipe.auto_class).parameters)[variable]
    return {name: {expert: found[expert][name] for expert in found} for name in next(iter(found.values()))}


def merged(text: str, family: Path, out: Path) -> dict[str, Tensor]:
    (family / "their.yml").write_text(text)
    main(["merge", str(family / "their.yml"), str(out)])
    return dict(read_tensors(weight_files(out)))


def tensors(family: Path, name: str) -> dict[str, Tensor]:
    return dict(read_tensors(weight_files(family / name)))


def test_a_gradient_gives_head_and_norm_the_number_of_the_first_layer(family: Path, tmp_path: Path) -> None:
    text = HEAD + "models:\n- {model: red, parameters: {weight: [0.2, 0.6, 1.0]}}\n"
    ours, base, red = merged(text, family, tmp_path / "out"), tensors(family, "base"), tensors(family, "red")
    wanted = {EMBED: 0.2, NORM: 0.2, LM_HEAD: 0.2, QUERY.format(0): 0.2, UP.format(1): 0.6, QUERY.format(2): 1.0}
    for name, weight in wanted.items():
        torch.testing.assert_close(ours[name], base[name] + weight * (red[name] - base[name]))


def test_slices_give_embeddings_the_first_number_and_the_head_the_last(family: Path) -> None:
    slices = "".join(
        f"- sources: [{{model: red, layer_range: [{i}, {i + 1}], parameters: {{weight: {value}}}}}]\n"
        for i, value in enumerate((0.1, 0.5, 0.9))
    )
    found = weights(f"{HEAD}slices:\n{slices}", family)
    wanted = {EMBED: 0.1, QUERY.format(0): 0.1, UP.format(1): 0.5, QUERY.format(2): 0.9, NORM: 0.9, LM_HEAD: 0.9}
    assert {name: found[name]["red"] for name in wanted} == wanted


def test_the_last_slice_gives_the_head_the_beginning_of_its_gradient(family: Path) -> None:
    """A slice of one layer takes the end of a gradient for it."""
    text = f"""{HEAD}slices:
- sources: [{{model: red, layer_range: [0, 2], parameters: {{weight: [0.1, 0.2]}}}}]
- sources: [{{model: red, layer_range: [2, 3], parameters: {{weight: [0.3, 0.5]}}}}]
"""
    found = weights(text, family)
    assert [found[name]["red"] for name in (EMBED, QUERY.format(1), QUERY.format(2), LM_HEAD)] == [0.1, 0.2, 0.5, 0.3]


def test_the_nearest_setting_counts_and_a_list_without_a_match_falls_through(family: Path) -> None:
    text = f"""{HEAD}parameters: {{weight: 0.7}}
models:
- {{model: red, parameters: {{weight: [{{filter: layers.1., value: 0.3}}]}}}}
- {{model: green}}
- {{model: blue, parameters: {{weight: {{filter: self_attn, value: 1e-1}}}}}}
"""
    found = weights(text, family)
    assert found[UP.format(1)] == {"red": 0.3, "green": 0.7, "blue": 0.7}
    assert found[QUERY.format(0)] == {"red": 0.7, "green": 0.7, "blue": 0.1}


def test_a_slice_without_a_model_gives_it_no_weight(family: Path) -> None:
    text = f"""{HEAD}slices:
- sources: [{{model: red, layer_range: [0, 2]}}]
- sources: [{{model: red, layer_range: [2, 3]}}, {{model: green, layer_range: [2, 3]}}]
parameters: {{weight: 0.4}}
"""
    found = weights(text, family)
    assert found[QUERY.format(1)] == {"red": 0.4, "green": 0.0}
    assert found[LM_HEAD] == {"red": 0.4, "green": 0.4}


def test_linear_averages_the_models_themselves(family: Path, tmp_path: Path) -> None:
    text = "merge_method: linear\nmodels:\n" + "".join(
        f"- {{model: {name}, parameters: {{weight: {value}}}}}\n" for name, value in (("red", 1), ("green", 3))
    )
    ours = merged(text, family, tmp_path / "out")
    red, green = tensors(family, "red"), tensors(family, "green")
    for name in ours:
        torch.testing.assert_close(ours[name], (red[name] + 3 * green[name]) / 4)
    assert read(text, family).recipe.base.path == str(family / "red")


@pytest.mark.parametrize(("method", "step"), [("model_stock", {}), ("sce", {"density": 0.4})])
def test_methods_that_are_transforms_here(method: str, step: dict, family: Path) -> None:
    text = f"merge_method: {method}\nbase_model: base\nmodels: [{{model: red}}, {{model: green}}]\n"
    text += "parameters: {select_topk: 0.4}\n" * (method == "sce")
    told = read(text, family)
    recipe = told.recipe
    assert any("beyond the base" in note for note in told.notes) == (method == "model_stock")
    assert recipe.transform == [{"name": method, **step}]
    assert recipe.coefficients == {"weight": {"model": {"red": 1.0, "green": 1.0}}}


def test_an_adapter_of_the_base_is_an_expert(family: Path, tmp_path: Path) -> None:
    """`base+adapter` is the adapter as an expert of that base."""
    (tmp_path / "adapter").mkdir()
    layer = "base_model.model.model.layers.1.self_attn.q_proj"
    left, right = torch.full((8, 1), 0.5), torch.arange(8.0)[None]
    save_file(
        {f"{layer}.lora_A.weight": right, f"{layer}.lora_B.weight": left},
        tmp_path / "adapter" / "adapter_model.safetensors",
    )
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps(
            {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"], "layers_to_transform": [1]}
        )
    )
    text = HEAD + f"models:\n- {{model: base+{tmp_path}/adapter, parameters: {{weight: 0.5}}}}\n"
    ours, base = merged(text, family, tmp_path / "out"), tensors(family, "base")
    torch.testing.assert_close(ours[QUERY.format(1)], base[QUERY.format(1)] + 0.5 * 2 * left @ right)
    assert torch.equal(ours[QUERY.format(0)], base[QUERY.format(0)])


def test_lambda_and_normalize_scale_a_sum(family: Path) -> None:
    text = HEAD + "parameters: {weight: 0.5, lambda: 2, normalize: true}\nmodels: [{model: red}, {model: green}]\n"
    assert weights(text, family)[QUERY.format(0)] == {"red": 1.0, "green": 1.0}


def test_the_merge_of_a_yaml_is_written_in_its_dtype(family: Path, tmp_path: Path) -> None:
    text = HEAD + "out_dtype: bfloat16\nmodels: [{model: red, parameters: {weight: 0.5}}]\n"
    assert {tensor.dtype for tensor in merged(text, family, tmp_path / "out").values()} == {torch.bfloat16}


@pytest.mark.parametrize("method", ["ties", "dare_linear", "breadcrumbs"])
def test_lambda_multiplies_what_was_divided(method: str, family: Path, tmp_path: Path) -> None:
    """One expert is divided by its own weight, so lambda alone is left of it; it is written again as it was read."""
    text = f"merge_method: {method}\nbase_model: base\nparameters: {{lambda: 0.5, normalize: true}}\n{WHOLE}"
    ours, base, red = merged(text, family, tmp_path / "out"), tensors(family, "base"), tensors(family, "red")
    assert torch.equal(ours[UP.format(1)], base[UP.format(1)] + 0.5 * (red[UP.format(1)] - base[UP.format(1)]))
    recipe = read(text, family).recipe
    live = load_skeleton(family / "base", recipe.auto_class)
    written = to_mergekit(recipe, {name: name for name in live.parameters}, live.parameters, "float32")
    assert yaml.safe_load(written)["parameters"]["lambda"] == 0.5
    assert read(written, family).recipe.method == recipe.method


def test_a_lambda_of_each_layer_goes_into_the_weights_of_a_sum(family: Path) -> None:
    text = f"merge_method: dare_linear\nbase_model: base\nparameters: {{lambda: [1, 2, 3]}}\n{WHOLE}"
    assert [weights(text, family)[QUERY.format(i)]["red"] for i in range(3)] == [0.5, 1.0, 1.5]
    assert read(text, family).recipe.method["name"] == "dare"


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_what_is_written_is_read_as_the_same_recipe(peer, family: Path) -> None:
    """Each method of the table, with numbers for each tensor."""
    experts = {"slerp": ["red"], "nuslerp": ["red", "green"]}.get(peer.name, ["red", "green", "blue"])
    each = "".join(
        f"- {{model: {name}, parameters: {{weight: [{low}, {low + 0.1}, 0.5], density: 0.5, gamma: 0.1}}}}\n"
        for low, name in zip((0.3, 0.4, 0.6), experts, strict=False)
    )
    text = f"merge_method: {peer.name}\n" + "base_model: base\n" * (peer.base != "listed") + f"models:\n{each}"
    text += {"slerp": "parameters: {t: [0.2, 0.4, 0.6]}\n", "sce": "parameters: {select_topk: 0.4}\n"}.get(
        peer.name, ""
    )
    recipe = read(text, family).recipe
    live = load_skeleton(family / "base", recipe.auto_class)
    absolute = replace(recipe, base=replace(recipe.base, path=str(family / "base")))
    written = to_mergekit(absolute, {name: name for name in live.parameters}, live.parameters, "float32")
    assert yaml.safe_load(written)["merge_method"] == peer.name
    again = read(written, family).recipe
    for variable, rows in recipe.per_parameter(live.parameters).items():
        other = again.per_parameter(live.parameters)[variable]
        assert {name: pytest.approx(row) for name, row in rows.items()} == other
    assert {**again.method, "rescale": None} == {**recipe.method, "rescale": None}
    assert again.transform == recipe.transform


def test_every_method_is_in_the_table_and_says_so_itself() -> None:
    for name, kind in METHODS.items():
        assert kind.mergekit in {peer.name for peer in PEERS if peer.method == name}
    for peer in PEERS:
        assert peer_named(peer.name) is peer
        assert peer.transform is None or TRANSFORMS[peer.transform].mergekit == peer.name
        assert peer.transform or peer_of({"name": peer.method, **peer.own}) is peer
    assert peer_of({"name": "ties", "elect": "count"}) is None


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=6), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_a_gradient_as_long_as_the_layers_gives_each_its_own(values: list[float], layers: int) -> None:
    node = read_nodes(str(values))
    found = [evaluate(node, "x", i / (layers - 1) if layers > 1 else 1.0, number) for i in range(layers)]
    assert found[-1] == values[-1]
    assert min(values) - 1e-12 <= min(found) <= max(found) <= max(values) + 1e-12
    if len(values) == layers:
        assert found == pytest.approx(values, abs=1e-12)


def test_what_is_not_read_is_named_with_its_line(family: Path) -> None:
    text = f"""{HEAD}out_dtpe: bfloat16
models:
- model: red
  layer_range: [0, 3]
  parameters:
    weight: 0.5
    density: 0.3
- model: base
  parameters: {{weight: 2}}
"""
    assert read(text, family).notes == [
        "line 4: out_dtpe is no key of a merge, and is not read; is out_dtype meant?",
        "line 7: layer_range is no key of a model in `models`, and is not read",
        "line 10: density is no key of the method task_arithmetic, and is not read",
        "line 12: settings of the base have no effect",
    ]


def test_random_draws_are_said_to_be_others(family: Path) -> None:
    text = "merge_method: dare_ties\nbase_model: base\nmodels: [{model: red, parameters: {weight: 1, density: %s}}]\n"
    assert "evomerge draws other ones" in read(text % "0.5", family).notes[0]
    assert read(text % "1", family).notes == []


WHOLE = "models: [{model: red, parameters: {weight: 0.5}}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "merge_method: nearswap\nbase_model: base\n" + WHOLE,
            r"line 1: evomerge has no method nearswap, which moves",
        ),
        (
            "merge_method: model_stock\nbase_model: base\nparameters: {filter_wise: true}\n" + WHOLE,
            r"line 3: evomerge takes the angles of whole tensors",
        ),
        (
            "merge_method: tis\nbase_model: base\n" + WHOLE,
            r"line 1: mergekit 0\.1\.5 has no method tis; is ties meant\?",
        ),
        ("merge_method: ties\n" + WHOLE, r"line 1: ties needs a base_model"),
        (HEAD + "models: [{model: red}]\n", r"line 4: red has no weight for the tensor model\.embed_tokens\.weight"),
        (HEAD + "models: [{model: red}, {model: red}]\n", r"line 4: red is named twice"),
        (HEAD + "models:\n- model: red+lora\n", r"line 5: red\+lora is an adapter on another model than the base"),
        (HEAD + "models: [{model: red@v1}]\n", r"line 4: red is a directory, which has no revision v1"),
        (HEAD, r"line 1: there must be one of models, slices and modules"),
        (HEAD + "models: [{model: 2024-13-45}]\n", r"this is not valid YAML: month must be in"),
        (HEAD + "models: &a [*a]\n", r"this is not valid YAML: maximum recursion"),
        (HEAD + "models:\n- parameters: {weight: 1}\n", r"line 5: there is no model"),
        (HEAD.replace("float32", "floot32") + WHOLE, r"line 3: Unknown dtype 'floot32': did you mean 'float32'"),
        (HEAD + "tokenizer:\n  pad_to_multiple_of: 8\n" + WHOLE, r"line 5: there would be 0 rows for 0 tokens"),
        (HEAD + "models: [{model: red, parameters: {weight: much}}]\n", r"line 4: there must be a number, not 'much'"),
        (
            HEAD + "models: [{model: red, parameters: {weight: [{filtre: x, value: 1}]}}]\n",
            r"line 4: filtre stands where",
        ),
        (
            HEAD + "modules: {a: {models: [{model: red}]}, b: {models: [{model: red}]}}\n",
            r"line 4: modules names a, b, each with models of its own",
        ),
        (
            "merge_method: linear\nbase_model: base\n" + WHOLE,
            r"line 2: mergekit's linear counts base_model as one of the models, and it has no weight",
        ),
        (
            "merge_method: linear\nparameters: {normalize: false}\n" + WHOLE,
            r"line 2: without normalize, the weights of model\.embed_tokens\.weight sum to 0\.5",
        ),
        (
            "merge_method: slerp\nbase_model: base\nmodels: [{model: red}, {model: green}]\n",
            r"line 1: slerp merges the base and one other model, and there are 2 besides the base \(red, green\)",
        ),
        (
            "merge_method: ties\nbase_model: base\nparameters: {rescale: true, density: 0.5}\n" + WHOLE,
            r"line 3: mergekit scales what ties keeps",
        ),
        (
            "merge_method: ties\nbase_model: base\nparameters: {lambda: [1.5, 1]}\n" + WHOLE,
            r"line 3: ties divides by the weights of the experts that agree",
        ),
        (
            "merge_method: della\nbase_model: base\nparameters: {epsilon: [0.1, 0.2]}\n" + WHOLE,
            r"line 3: evomerge has one epsilon for all models and tensors",
        ),
        (
            "merge_method: multislerp\nparameters: {normalize_weights: false, weight: 1}\n" + WHOLE,
            r"line 2: evomerge takes shares of the sum of all weights: write normalize_weights: true",
        ),
        (
            "merge_method: multislerp\nparameters: {eps: 1e-4}\n" + WHOLE,
            r"line 2: evomerge has an eps of 1e-08: leave it out",
        ),
        (
            "merge_method: karcher\nbase_model: base\n" + WHOLE,
            r"line 2: mergekit's karcher counts base_model as one of the models: list it in `models`, or leave",
        ),
        (
            "merge_method: nuslerp\nparameters: {nuslerp_row_wise: true, weight: 1}\n"
            "models: [{model: red}, {model: green}]\n",
            r"line 2: evomerge goes along the great circle of whole tensors",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_line(text: str, message: str, family: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read(text, family)


def sliced(*ranges: tuple[tuple[int, int], ...]) -> str:
    lines = [
        "- sources: ["
        + ", ".join(
            f"{{model: {name}, layer_range: {list(ends)}}}" for name, ends in zip(("red", "green"), part, strict=False)
        )
        + "]\n"
        for part in ranges
    ]
    return HEAD + "parameters: {weight: 1}\nslices:\n" + "".join(lines)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (
            [((1, 2),), ((0, 1),), ((2, 3),)],
            r"line 6: this slice has layers red \[1, 2\], and the next layer .* is 0 of 3",
        ),
        ([((0, 2),), ((1, 3),)], r"line 7: this slice has layers red \[1, 3\], and the next layer .* is 2 of 3"),
        ([((0, 2),)], r"line 6: the slices end with layer 1, and the models have 3 layers"),
        ([((0, 2), (1, 3)), ((2, 3),)], r"line 6: this slice has layers red \[0, 2\], green \[1, 3\]"),
    ],
)
def test_layers_are_not_stacked(ranges, message: str, family: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read(sliced(*ranges), family)
