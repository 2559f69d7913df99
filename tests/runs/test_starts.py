"""`start=their.yml`: a search that begins with what a merge YAML of mergekit's says, or the reason why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.merging.methods import Linear, Ties
from evomerge.problem import Sources
from evomerge.runs.starts import read_start
from evomerge.space.coefficients import CoefficientSpace, make_space

SHAPES = {
    "model.embed_tokens.weight": (9, 4),
    **{f"model.layers.{i}.{part}.weight": (4, 4) for i in range(3) for part in ("self_attn.q_proj", "mlp.up_proj")},
    "model.norm.weight": (4,),
    "lm_head.weight": (9, 4),
}
LINEAR: dict[str, Any] = {"_target_": "evomerge.merging.methods.Linear"}
TIES: dict[str, Any] = {"_target_": "evomerge.merging.methods.Ties", "normalize": True, "elect": "sum"}
GRADIENT = """\
merge_method: task_arithmetic
base_model: base
models:
- {model: experts/red, parameters: {weight: [0.2, 0.5, 0.8]}}
- {model: experts/blue, parameters: {weight: 0.4}}
"""


def space_of(granularity: str = "layer", method: Any = Linear, **more: Any) -> CoefficientSpace:
    return make_space(granularity, SHAPES, ["red", "blue"], method.variables, **more)


def started(text: str, path: Path, space: CoefficientSpace, method: dict[str, Any] = LINEAR) -> dict[str, Any]:
    (path / "their.yml").write_text(text)
    found = read_start(str(path / "their.yml"), method, space, SHAPES)
    return space.decode(space.start(found))


def test_a_gradient_becomes_numbers_of_layers(tmp_path: Path) -> None:
    space = space_of()
    weight = started(GRADIENT, tmp_path, space)["weight"]
    names = [group.name for group in space.groups]
    assert dict(zip(names, weight[:, 0].round(9), strict=True)) == {
        **{"embeddings": 0.2, "model.layers.0": 0.2, "model.layers.1": 0.5, "model.layers.2": 0.8, "head": 0.2}
    }
    assert weight[:, 1] == pytest.approx([0.4] * 5)


def test_an_expert_that_the_yaml_has_not_starts_at_zero(tmp_path: Path) -> None:
    text = GRADIENT.replace("- {model: experts/blue, parameters: {weight: 0.4}}\n", "")
    assert started(text, tmp_path, space_of())["weight"][:, 1] == pytest.approx([0.0] * 5)


def test_densities_start_as_well(tmp_path: Path) -> None:
    text = GRADIENT.replace("task_arithmetic", "ties").replace("weight: 0.4", "weight: 0.4, density: 0.25")
    found = started(text, tmp_path, space_of(method=Ties()), TIES)
    assert found["density"] == pytest.approx(found["density"] * 0 + [1.0, 0.25])


def test_base_and_experts_of_the_yaml_are_those_of_the_search(tmp_path: Path) -> None:
    """A directory that is there counts as it is, and any other by what it is called, or was on the hub."""
    experts = {name: tmp_path / "m" / name for name in ("red", "blue")}
    space, sources = space_of(), Sources(tmp_path / "m" / "base", experts, {}, hub={"red": "me/tuned@c0ffee"})
    for name in ("m/base", "m/red", "m/blue", "other/base"):
        (tmp_path / name).mkdir(parents=True)

    def begun(text: str) -> Any:
        (tmp_path / "their.yml").write_text(text)
        return read_start(str(tmp_path / "their.yml"), LINEAR, space, SHAPES, sources)

    wanted = begun(GRADIENT)["weight"]
    for old, new in {
        "base_model: base": "base_model: m/base",
        "experts/blue": "m/blue",
        "experts/red": "me/tuned",
    }.items():
        assert np.array_equal(begun(GRADIENT.replace(old, new))["weight"], wanted)
    for other in ("other/base", "bert"):
        with pytest.raises(
            ConfigError, match=rf"line 2: its base_model is {other}, and the base of this search is .*/m"
        ):
            begun(GRADIENT.replace("base_model: base", f"base_model: {other}"))
    with pytest.raises(ConfigError, match=r"line 4: other/base is none of the experts of this search \(red, blue\)"):
        begun(GRADIENT.replace("experts/red", "other/base"))


@pytest.mark.parametrize(
    ("text", "space", "method", "message"),
    [
        (GRADIENT, {"granularity": "model"}, LINEAR, r"layers\.1\..* have different numbers there, .*space=tensor"),
        (GRADIENT, {"sharing": "shared"}, LINEAR, r"the nearest that the space has is 0\.6: leave out space\.sharing"),
        (GRADIENT, {"method": Ties()}, TIES, r"it merges by linear and the search by ties: write method=linear"),
        (
            GRADIENT.replace("task_arithmetic", "ties") + "parameters: {normalize: false}\n",
            {"method": Ties()},
            TIES,
            r"it has normalize false, and the search True: write method\.normalize=false",
        ),
        (GRADIENT.replace("/red", "/rot"), {}, LINEAR, r"line 4: experts/rot is none of the experts .*red, blue"),
        (GRADIENT.replace("0.8", "1.8"), {}, LINEAR, r"1\.8"),
    ],
)
def test_what_the_space_cannot_express_is_refused(
    text: str, space: dict[str, Any], method: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(EvomergeError, match=message):
        started(text, tmp_path, space_of(**space), method)
