"""`start=their.yml`: a search that begins with what a merge YAML of mergekit's says, or the reason why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.common.errors import EvomergeError
from evomerge.merging.methods import Linear, Ties
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
