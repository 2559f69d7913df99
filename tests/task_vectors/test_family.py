import pytest
import torch

from evomerge.common.errors import CheckpointError
from evomerge.models.checkpoint import open_checkpoint
from evomerge.models.matching import Layout
from evomerge.task_vectors.store import unlike, weight_cosine
from tests.kit.models import SHAPES, Family, drawn, saved, tuned


def test_family_of_one_base_gives_no_warning(tmp_path):
    assert Family(tmp_path, a={}, b=tuned(drawn(0), 2)).check() == []


def test_unrelated_base(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"expert b .*was not tuned from base .*cosine of their weights is -?0\.\d"
    ):
        Family(tmp_path, a={}, b=drawn(7)).check()


def test_another_architecture(tmp_path):
    with pytest.raises(CheckpointError, match=r"expert a .*its tensors are x\. Its architecture is not the base's"):
        Family(tmp_path, a=dict.fromkeys(SHAPES) | {"x": torch.ones(2)}).check()


def test_base_without_a_parameter(tmp_path):
    family = Family(tmp_path, a={})
    saved(tmp_path / "base", {name: tensor for name, tensor in family.base.items() if name != "norm.weight"})
    with pytest.raises(CheckpointError, match=r"no file holds norm\.weight"):
        family.check()


def test_missing_and_extra_tensors(tmp_path):
    family = Family(
        tmp_path,
        a={"layers.0.bias": None, "head.weight": torch.ones(2, 8), "position_ids": torch.arange(4)},
    )
    with pytest.raises(
        CheckpointError, match=r"expert a .* lacks layers\.0\.bias, which the base has; it holds head\."
    ):
        family.check()
    assert family.check(allowed=["layers.*.bias"]) == [
        "expert a lacks layers.0.bias: the task vector is zero there",
        "expert a has head.weight beyond the base: kept aside, not merged",
    ]
    assert family.vectors().zero == {("a", "layers.0.bias")}


def test_float_buffers_that_differ(tmp_path):
    family = Family(tmp_path, a={"norm.running_mean": torch.ones(8), "inv_freq": torch.ones(4)})
    saved(tmp_path / "base", family.base | {"norm.running_mean": torch.zeros(8), "inv_freq": torch.ones(4)})
    (warning,) = family.check(allowed=["norm.running_mean"])
    assert (
        warning
        == "expert a differs from the base in norm.running_mean, no parameters of the live model: the base's stay"
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lossy_dtypes(tmp_path, dtype):
    (warning,) = Family(tmp_path, a={name: t.to(dtype) for name, t in tuned(drawn(0), 1).items()}).check()
    named = "embed.weight, layers.0.weight, layers.0.bias and 1 more"
    assert warning.startswith(f"expert a has {named} in {dtype} where the base has float32".replace("torch.", ""))


@pytest.mark.parametrize("rows", [3, 40, 5000])
def test_cosine_of_a_sample_is_near_that_of_all(tmp_path, rows):
    shapes = {"a": (rows, 200), "b": (7,), "c": (3, 2, 2)}
    weights, noise = drawn(0, shapes=shapes), drawn(1, shapes=shapes)
    mixed = {name: tensor + noise[name] for name, tensor in weights.items()}
    one, two = (open_checkpoint(saved(tmp_path / n, t), shapes) for n, t in (("1", weights), ("2", mixed)))
    vectors = [torch.cat([t[name].flatten().double() for name in ("a", "c")]) for t in (weights, mixed)]
    exact = torch.nn.functional.cosine_similarity(vectors[0], vectors[1], dim=0).item()
    assert weight_cosine(one, two, list(shapes)) == pytest.approx(exact, abs=1e-12 if rows < 1000 else 5e-3)
    assert weight_cosine(one, two, ["b"]) == 1


def test_tensors_of_the_base_in_place_of_an_experts_own(tmp_path):
    """Buffers that differ or are lacking, lacking parameters, and what is left out; a pooler does not count."""
    base = drawn(0) | {"pooler.weight": torch.ones(2)}
    shapes = SHAPES | {"pooler.weight": (2,)}
    layout = Layout(buffers=["norm.running_mean", "norm.running_var"])

    def opened(name, tensors):
        return open_checkpoint(saved(tmp_path / name, tensors), shapes, layout)

    ours = opened("base", base | {"norm.running_mean": torch.zeros(8), "norm.running_var": torch.ones(8)})
    kept = {"norm.running_mean": torch.zeros(8), "norm.running_var": torch.ones(8)}
    assert unlike(ours, opened("same", tuned(drawn(0), 1) | kept)) == ""
    other = tuned(drawn(0), 1) | {"norm.running_mean": torch.ones(8), "layers.7.weight": torch.ones(3)}
    del other["layers.0.bias"]
    assert unlike(ours, opened("other", other)) == (
        "the base's layers.0.bias, norm.running_mean, norm.running_var in place of its own and without its "
        "layers.7.weight"
    )
