"""Who takes part in a comparison: all there is, or what a person names, and why others cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.common.errors import ConfigError
from evomerge.merging.starts import STARTS
from evomerge.merging.trajectories import SCHEDULES
from evomerge.recipes.catalog import METHODS, TRANSFORMS
from evomerge.runs.closed_forms import SCORED
from evomerge.runs.contestants import Contestant, everybody, find_contestants, read_compared
from evomerge.transforms.base import Transform

EXPERTS = ("a", "b", "c")
ROOT = Path(__file__).parents[2]


def found(*methods: Any, experts: tuple[str, ...] = EXPERTS, seed: int = 1, **more: Any) -> dict[str, Contestant]:
    return find_contestants(read_compared({"methods": list(methods) or None, **more}), experts, seed)[0]


def test_every_method_and_every_transform_takes_part_or_says_why_not() -> None:
    """From the lists: whatever is added there is here as well."""
    takes_part, left_out = find_contestants(read_compared({}), EXPERTS, 1)
    assert next(iter(takes_part)) == "linear"
    names = [one for one in everybody() if isinstance(one, str)]
    assert {*takes_part, *left_out} == {*names, "trim+elect(join=mean)", "della+elect"}
    assert len(names) == len(METHODS) + len(TRANSFORMS) + len(STARTS) + len(SCORED) + 1
    assert not {f"start:{name}" for name in SCHEDULES} & set(names)
    assert {f"start:{name}" for name in SCHEDULES} < {*find_contestants(read_compared({}), EXPERTS, 1, True)[0]}
    assert "it is task arithmetic, and a comparison gives all rows one weight" in left_out["ranks"]
    for name in ("slerp", "nuslerp"):
        assert "and there are 3" in left_out[name]
    assert "slerp" in found(experts=("a",))
    assert "nuslerp" in found(experts=("a", "b"))
    for one in takes_part.values():
        assert one.title
        assert one.paper
    assert takes_part["tsvm"].needs == "the models alone"
    assert found("nuslerp", experts=("a", "b"))["nuslerp"].needs == "2 experts"


def test_all_choose_among_the_same_weights_where_a_weight_means_something() -> None:
    constants = read_compared({}).constants
    assert 1.0 in constants  # the scale of the papers
    own = found()
    assert {one.constants for one in own.values()} <= {constants, (1.0,)}
    for name in ("average", "karcher", "multislerp", "start:1/K", *(f"start:{start}" for start in (*STARTS, *SCORED))):
        assert own[name].constants == (1.0,)  # it divides by the weights, or has its own
    for name in ("linear", "method:ties", "tsvm", "model_stock"):
        assert own[name].constants == constants
    assert found("slerp", experts=("a",))["slerp"].constants == tuple(one for one in constants if one <= 1)
    assert found("linear", constants=[1, 0.5])["linear"].constants == (0.5, 1.0)


def test_weights_go_as_far_as_papers_do() -> None:
    """Bounds of 1.5 are those of a search; a place between two models ends at 1 whoever asks."""
    larger = {"constants": [0.5, 1.0, 3.0, 10.0]}
    for name in ("linear", "method:ties", "tsvm", "model_stock"):
        assert found(**larger)[name].constants == (0.5, 1.0, 3.0, 10.0)
    assert found("slerp", experts=("a",), **larger)["slerp"].constants == (0.5, 1.0)


def test_lambda_of_cart_leaves_the_average_alone_as_in_the_paper() -> None:
    """θ₀ + average + λ · what each has beside it (Choi et al. 2024); no other transform has such a row."""
    own = found()
    assert {name: one.unscaled for name, one in own.items() if one.unscaled} == {"cart": ("average",)}
    assert own["cart"].about()["unscaled"] == ("average",)
    assert "unscaled" not in own["iso_cts"].about()
    assert found(["cart", "trim"])["cart+trim"].unscaled == ("average",)


def test_a_name_that_both_lists_have_stands_for_both() -> None:
    assert list(found("ties")) == ["linear", "method:ties", "transform:ties"]
    assert list(found("method:ties", "tsvm")) == ["linear", "method:ties", "tsvm"]
    assert list(found("transform:ties", "linear")) == ["linear", "transform:ties"]
    own = found("ties")
    assert own["method:ties"].others == {"density": 0.2}  # that of the transform of its name, as published
    assert own["transform:ties"].transform[0]["density"] == 0.2
    assert own["transform:ties"].method == own["linear"].method


def test_chains_and_settings_of_ones_own() -> None:
    dare, nuslerp = {"dare": {"density": 0.3, "seed": 7}}, {"nuslerp": {"deltas": True}}
    own = found(["trim", "elect"], dare, nuslerp, experts=("a", "b"))
    assert list(own) == ["linear", "trim+elect", "dare(density=0.3, seed=7)", "nuslerp(deltas=True)"]
    assert [step["_target_"].rpartition(".")[2] for step in own["trim+elect"].transform] == ["Trim", "Elect"]
    assert own["dare(density=0.3, seed=7)"].transform[0]["seed"] == 7
    assert own["nuslerp(deltas=True)"].method["deltas"] is True


def test_ties_and_della_are_compared_as_published_as_well() -> None:
    own = found()
    ties, della = own["trim+elect(join=mean)"], own["della+elect"]
    assert [step["_target_"].rpartition(".")[2] for step in ties.transform] == ["Trim", "Elect"]
    assert (ties.transform[0]["density"], ties.transform[1]["join"]) == (0.2, "mean")
    assert [step["_target_"].rpartition(".")[2] for step in della.transform] == ["Della", "Elect"]
    assert della.transform[1]["join"] == "sum"
    assert found(seed=3)["della+elect"].transform[0] == found("transform:della", seed=3)["transform:della"].transform[0]


def test_weights_of_checkpoints_are_left_out_where_there_are_none() -> None:
    compared = read_compared({"methods": ["start:ema"]})
    takes_part, left_out = find_contestants(compared, EXPERTS, 1)
    assert list(takes_part) == ["linear"]
    assert "checkpoints of one training run" in left_out["start:ema"]
    assert (
        find_contestants(compared, EXPERTS, 1, True)[0]["start:ema"].title
        == "the running mean of the checkpoints (EMA)"
    )


def test_the_seed_is_that_of_random_masks() -> None:
    own = found("dare", "dare_ties", seed=3)
    assert own["transform:dare"].transform[0]["seed"] == 3
    assert own["method:dare"].method["seed"] == own["dare_ties"].method["seed"] == 3


class Labelled(Transform):
    name, title, paper = "labelled", "needs labels", "nobody 2026"
    needs = "labels"

    def apply(self, name: str, deltas: Any, state: Any) -> Any:
        return deltas


def test_what_needs_more_than_models_is_left_out_with_the_reason() -> None:
    compared = read_compared({"methods": [{"_target_": f"{__name__}.Labelled"}]})
    takes_part, left_out = find_contestants(compared, EXPERTS, 1)
    assert list(takes_part) == ["linear"]
    assert left_out == {"Labelled": "it needs labels, and a comparison gives a transform the task vectors alone"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": ["ties"]}, "Unknown setting 'method': did you mean 'methods'"),
        ({"methods": "ties"}, "'compare.methods=\\[ties,tsvm\\]'"),
        ({"methods": []}, "is no list"),
        ({"methods": ["tiess"]}, "did you mean"),
        ({"methods": ["transform:linear"]}, "transform:linear"),
        ({"methods": ["start:line"]}, "did you mean 'lines'"),
        ({"methods": ["start:0.4"]}, "write compare.constants=\\[0.4\\]"),
        ({"methods": ["nowhere/their.yml"]}, "there is no file nowhere/their.yml"),
        ({"methods": [f"{ROOT}/conf/compare.yaml"]}, "has no merge_method"),
        ({"methods": [{"dare": {"densty": 0.3}}]}, "densty"),
        ({"methods": [{"dare": {"density": 7}}]}, "density=7"),
        ({"methods": [{"nuslerp": {"delta": True}}]}, "deltas"),
        ({"constants": [20.0]}, "are numbers from 0 to 10. Write a list of some"),
        ({"constants": [-0.5]}, "from 0 to 10"),
        ({"constants": [float("nan")]}, "from 0 to 10"),
        ({"constants": ["much"]}, "Write a list of some"),
        ({"constants": 0.4}, "Write a list of some"),
    ],
)
def test_what_is_written_wrongly_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_contestants(read_compared(given), EXPERTS, 1)
