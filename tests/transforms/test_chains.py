"""Chains: order, restriction to parameters, rows that are not experts, and what names the files of it all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.common.errors import ConfigError, MergeError
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.averages import ModelStock
from evomerge.transforms.base import Transform
from evomerge.transforms.chain import Stage, Step, row_names, streamed
from evomerge.transforms.optimised import Doge, OptMerge, Wudi
from evomerge.transforms.spectral import Cart, IsoC, IsoCts, Star, TsvM
from evomerge.transforms.store import transformed
from evomerge.transforms.ties import TrimElect
from tests.kit.models import SHAPES, drawn
from tests.kit.transforms import Common, Scale, Sum
from tests.kit.vectors import dense, vectors_of, whole

NORMS = ("*norm*",)


@pytest.fixture
def vectors() -> TaskVectors:
    return vectors_of({"a": drawn(1), "b": drawn(2), "c": drawn(3)})


def test_a_chain_goes_from_left_to_right(vectors: TaskVectors, tmp_path: Path) -> None:
    rows = whole(vectors)
    found = transformed(vectors, (Step(TrimElect(0.3)), Step(Scale(3.0))), tmp_path)
    assert torch.equal(whole(found), 3 * dense(rows, 0.3))
    shifted = transformed(vectors, (Step(Common()), Step(TrimElect(0.3))), tmp_path)
    assert shifted.rows == ("common", "a", "b", "c")
    mean = (rows[0] + rows[1] + rows[2]) / 3
    assert torch.equal(whole(shifted), dense(torch.stack([mean, *(rows - mean)]), 0.3))


def test_no_chain_changes_nothing(vectors: TaskVectors, tmp_path: Path) -> None:
    assert transformed(vectors, (), tmp_path) is vectors
    assert list(tmp_path.iterdir()) == []


def test_a_restricted_transform_sees_and_changes_its_own_parameters(vectors: TaskVectors, tmp_path: Path) -> None:
    """The trim is over the chosen parameters alone; all others pass through."""
    found = transformed(vectors, (Step(TrimElect(0.5), ("layers.0.*", "embed.weight")),), tmp_path)
    chosen = [name for name in SHAPES if name.startswith("layers.0.") or name == "embed.weight"]
    assert 0 < len(chosen) < len(SHAPES)
    alone = vectors_of({row: {name: vectors.dense(row, name) for name in chosen} for row in vectors.rows})
    expected = transformed(alone, (Step(TrimElect(0.5)),), tmp_path)
    for row in vectors.rows:
        for name in SHAPES:
            one = expected.dense(row, name) if name in chosen else vectors.dense(row, name)
            other = found.dense(row, name)
            assert one is other is None or torch.equal(one, other)


def test_one_merged_row(vectors: TaskVectors, tmp_path: Path) -> None:
    found = transformed(vectors, (Step(Sum()),), tmp_path)
    assert found.rows == ("all",)
    assert list(found.experts) == ["a", "b", "c"]
    assert torch.equal(whole(found)[0], whole(vectors)[0] + whole(vectors)[1] + whole(vectors)[2])


def test_rows_of_other_parameters_stand_beside_those_of_a_restricted_transform(
    vectors: TaskVectors, tmp_path: Path
) -> None:
    found = transformed(vectors, (Step(Sum(), NORMS),), tmp_path)
    norms = [name for name in SHAPES if "norm" in name]
    assert found.rows == ("all", "a", "b", "c")
    assert found.zero == {("all", name) for name in SHAPES if name not in norms} | {
        (row, name) for row in "abc" for name in norms
    }
    assert row_names((Step(Sum(), NORMS),), "abc", list(SHAPES)) == found.rows


@pytest.mark.parametrize(
    "transform",
    [Wudi(2), OptMerge(2), TsvM(), IsoC(), IsoCts(), Star(), ModelStock(), Cart(), Doge(steps=2)],
    ids=lambda transform: transform.name,
)
@pytest.mark.parametrize(("rest", "share"), [("keep", 1), ("average", 1 / 3), ("base", 0)])
def test_what_becomes_of_the_rest(
    vectors: TaskVectors, tmp_path: Path, transform: Transform, rest: str, share: float
) -> None:
    """The sum of all rows, with weights of 1, is that of the experts, their mean, or nothing; the row of an average is
    that of the transform. What the step is for is as ever.
    """
    step = Step(transform, ("layers.*",), rest)
    found, usual = (
        transformed(vectors, (step,), tmp_path),
        transformed(vectors, (Step(transform, step.only),), tmp_path),
    )
    assert found.rows == usual.rows if rest == "keep" else found.rows == tuple(transform.rows(vectors.rows))
    assert row_names((step,), vectors.rows, vectors.parameters) == found.rows
    for name, shape in vectors.parameters.items():
        sums = [
            sum((d for row in one.rows if (d := one.dense(row, name)) is not None), torch.zeros(shape))
            for one in (found, usual, vectors)
        ]
        inside = name.startswith("layers.")
        torch.testing.assert_close(sums[0], sums[1] if inside else share * sums[2], rtol=1e-5, atol=1e-6)
    streams = streamed(vectors, Stage(step, vectors))
    assert (streams.rows, streams.zero) == (found.rows, found.zero)
    assert torch.equal(whole(streams), whole(found))


def test_the_average_of_the_rest_is_in_a_row_of_the_transform(vectors: TaskVectors) -> None:
    """One weight for everything, but for those rows that keep a weight of 1, is that of the paper on the rest, too."""
    mean = (
        sum((d for row in vectors.rows if (d := vectors.dense(row, "embed.weight")) is not None), torch.zeros(())) / 3
    )
    for transform, row in ((Wudi(2), "merged"), (Cart(), "average")):
        found = Stage(Step(transform, ("layers.*",), "average"), vectors)("embed.weight")
        assert list(found) == [row]
        torch.testing.assert_close(found[row], mean)
    assert sorted(Stage(Step(TsvM(), ("layers.*",), "average"), vectors)("embed.weight")) == ["a", "b", "c"]


def test_a_chain_without_its_files_is_the_same(vectors: TaskVectors, tmp_path: Path) -> None:
    """As a recipe is rebuilt: stages are prepared on rows that are made anew whenever they are asked for."""
    chain = (Step(Common(), ("layers.*",)), Step(TrimElect(0.4)), Step(Scale(0.5), NORMS))
    expected, found = transformed(vectors, chain, tmp_path), vectors
    for step in chain:
        found = streamed(found, Stage(step, found))
    assert (found.rows, found.zero) == (expected.rows, expected.zero)
    assert torch.equal(whole(found), whole(expected))


def test_chains_share_the_files_of_their_beginning(vectors: TaskVectors, tmp_path: Path) -> None:
    def files(*chain: Step) -> int:
        before = len(list(tmp_path.glob("*.safetensors")))
        transformed(vectors, chain, tmp_path)
        return len(list(tmp_path.glob("*.safetensors"))) - before

    assert files(Step(TrimElect(0.3))) == 3
    assert files(Step(TrimElect(0.3)), Step(Scale(2.0))) == 3
    assert files(Step(TrimElect(0.3)), Step(Scale(2.0))) == 0
    assert files(Step(Scale(2.0)), Step(TrimElect(0.3))) == 6
    assert files(Step(TrimElect(0.3), NORMS)) == 3
    assert files(Step(TrimElect(0.3), ("*norm*", "*no*"))) == 0  # the same parameters
    assert files(Step(TrimElect(0.3), NORMS, "average")) == 3
    assert files(Step(TrimElect(0.3), NORMS, "base")) == 3


def test_what_is_there_is_not_prepared(vectors: TaskVectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = (Step(TrimElect(0.3)), Step(Scale(2.0)))
    expected = whole(transformed(vectors, chain, tmp_path))

    def never(self: Any, store: TaskVectors, statistics: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(TrimElect, "prepare", never)
    monkeypatch.setattr(Scale, "prepare", never)
    assert torch.equal(whole(transformed(vectors, chain, tmp_path)), expected)


def test_the_cache_is_named_by_the_code_of_a_class_that_is_not_ours(
    vectors: TaskVectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformed(vectors, (Step(Scale(2.0)),), tmp_path)
    monkeypatch.setattr("evomerge.transforms.store.code_of", lambda kind: "edited")
    transformed(vectors, (Step(Scale(2.0)),), tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 6


class Twice(Scale):
    """Another class of the same file, with the name and the settings of the first."""

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: Any) -> Mapping[str, Tensor]:
        return {row: 2 * delta for row, delta in super().apply(name, deltas, state).items()}


def test_two_classes_of_one_name_share_no_rows(vectors: TaskVectors, tmp_path: Path) -> None:
    one = whole(transformed(vectors, (Step(Scale(2.0)),), tmp_path))
    assert torch.equal(whole(transformed(vectors, (Step(Twice(2.0)),), tmp_path)), 2 * one)


def test_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(ConfigError, match=r"scale is for the parameters 'layer\.\*', and there are none.*layers\."):
        Step(Scale(), ("layer.*",)).chosen(list(SHAPES))


@pytest.mark.parametrize("rows", [[], ["a", "a"], [""], [3]])
def test_rows_need_names_of_their_own(rows: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sum, "rows", lambda self, experts: rows)
    with pytest.raises(ConfigError, match="each needs a name of its own"):
        row_names((Step(Sum()),), ["a"], list(SHAPES))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"x": torch.zeros(4, 3)}, "of the row x of embed"),
        ({"all": torch.zeros(2)}, r"made torch\.float32 \(2,\) of the row all"),
        ({"all": torch.zeros(SHAPES["embed.weight"], dtype=torch.float64)}, "float64"),
        ({"all": torch.full(SHAPES["embed.weight"], torch.nan)}, "made the row all of embed.weight not finite"),
    ],
)
def test_what_a_transform_makes_is_looked_at(
    vectors: TaskVectors, made: Mapping[str, Tensor], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sum, "apply", lambda self, name, deltas, state: made)
    with pytest.raises(MergeError, match=message):
        Stage(Step(Sum()), vectors)("embed.weight")
