import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.common.errors import SpaceError
from evomerge.space.coefficients import make_space
from evomerge.space.variable import Variable

SHAPES = {
    "emb.weight": (5, 2),
    **{f"h.{i}.{part}.weight": (3, 2) for i in range(4) for part in ("attn", "ln_1", "mlp")},
    "ln_f.weight": (2,),
}
EXPERTS = ("r8", "ng", "tweets")
WEIGHT = Variable("weight", 0.0, 1.5, 0.4)
DENSITY = Variable("density", 0.1, 1.0, 0.5)
KINDS = ("model", "blocks:3", "layer", "module", "tensor", "chunk:4", "line")


def space_of(granularity="layer", variables=(WEIGHT,), experts=EXPERTS, **settings):
    return make_space(granularity, SHAPES, experts, variables, **settings)


def point(space, seed):
    return space.low + (space.high - space.low) * np.random.default_rng(seed).random(space.dim)


@st.composite
def spaces(draw):
    """Any granularity with any zero task vectors, sharing, one frozen and one tied pattern."""
    granularity, sharing = draw(st.sampled_from(KINDS)), draw(st.sampled_from(["separate", "shared"]))
    pairs = [(expert, name) for expert in EXPERTS for name in SHAPES]
    zero = frozenset(draw(st.lists(st.sampled_from(pairs), max_size=30)))
    if draw(st.booleans()):
        zero |= {("r8", name) for name in SHAPES if name.startswith(("emb", "h.1"))}
    entries = space_of(granularity, (WEIGHT, DENSITY), sharing=sharing).names
    held, tied = draw(st.sampled_from(entries)), draw(st.sampled_from(entries))
    value = 0.75 if draw(st.booleans()) else 0.5
    group = tied.split("/")[1]
    return space_of(
        granularity,
        (WEIGHT, DENSITY),
        sharing=sharing,
        zero=zero,
        frozen={held: value} if draw(st.booleans()) else None,
        tied=[f"weight/{group.rsplit('.', 1)[0].replace('[', '[[]')}*"] if draw(st.booleans()) else None,
    )


laws = settings(max_examples=60, deadline=None)


@given(spaces(), st.integers(0, 10))
@laws
def test_the_nearest_point_of_decoded_coefficients_decodes_to_them(space, seed):
    decoded = space.decode(point(space, seed))
    again = space.decode(space.start(decoded))
    for name, values in decoded.items():
        np.testing.assert_allclose(again[name], values, rtol=0, atol=1e-12)


@given(spaces(), st.integers(0, 10))
@laws
def test_pullback_is_the_adjoint_of_decode(space, seed):
    rng = np.random.default_rng(seed)
    x, offset = rng.standard_normal(space.dim), space.decode(np.zeros(space.dim))
    gradients = {name: rng.standard_normal(values.shape) for name, values in offset.items()}
    moved = sum(np.sum((values - offset[name]) * gradients[name]) for name, values in space.decode(x).items())
    assert moved == pytest.approx(x @ space.pullback(gradients, x), abs=1e-9)


@given(spaces(), st.integers(0, 10))
@laws
def test_coefficients_keep_the_bounds_and_frozen_entries_their_values(space, seed):
    decoded = space.decode(point(space, seed))
    for variable in space.variables:
        for g, group in enumerate(space.groups):
            for k, expert in enumerate(space.rows):
                value = decoded[variable.name][g, k]
                names = (f"{variable.name}/{group.name}/{expert}", f"{variable.name}/{group.name}/*")
                held = [space.frozen[name] for name in names if name in space.frozen]
                if held:
                    assert value == held[0]
                else:
                    assert variable.low - 1e-12 <= value <= variable.high + 1e-12


@given(spaces())
@laws
def test_every_coordinate_moves_something_and_names_are_unique(space):
    assert len(set(space.names)) == space.dim == len(space.low) == len(space.high)
    assert (space.low < space.high).all()
    base = space.decode(space.low)
    for i in range(space.dim):
        x = space.low.copy()
        x[i] = space.high[i]
        assert any((values != base[name]).any() for name, values in space.decode(x).items())
    assert not set(space.names) & set(space.frozen)


def test_names_and_order():
    space = space_of("layer", (WEIGHT, DENSITY), experts=("a", "b"))
    assert space.names[:4] == ("weight/embeddings/a", "weight/embeddings/b", "weight/h.0/a", "weight/h.0/b")
    assert space.dim == 2 * 6 * 2
    x = np.arange(space.dim, dtype=float)
    np.testing.assert_array_equal(space.decode(x)["weight"], np.arange(12.0).reshape(6, 2))
    np.testing.assert_array_equal(space.decode(x)["density"], np.arange(12.0, 24.0).reshape(6, 2))
    np.testing.assert_array_equal(space.low, [0.0] * 12 + [0.1] * 12)
    shared = space_of("layer", sharing="shared")
    assert shared.names[:2] == ("weight/embeddings/*", "weight/h.0/*")
    np.testing.assert_array_equal(shared.decode(np.arange(6.0))["weight"], np.repeat(np.arange(6.0), 3).reshape(6, 3))


def test_start_takes_constants_arrays_and_the_variables_own_start():
    space = space_of("layer", (WEIGHT, DENSITY))
    decoded = space.decode(space.start({"weight": 0.3}))
    assert (decoded["weight"] == 0.3).all()
    assert (decoded["density"] == 0.5).all()
    assert (space.decode(space.nearest({"weight": 9.0}))["weight"] == 1.5).all()
    wanted = np.random.default_rng(0).random((6, 3))
    np.testing.assert_array_equal(space.decode(space.start({"weight": wanted}))["weight"], wanted)


def test_start_is_the_least_squares_point():
    wanted = np.random.default_rng(0).random((6, 3))
    shared = space_of("layer", sharing="shared")
    np.testing.assert_allclose(shared.start({"weight": wanted}), wanted.mean(axis=1))
    tied = space_of("layer", tied=["weight/h.*/r8"])
    assert tied.start({"weight": wanted})[tied.names.index("weight/h.*/r8")] == pytest.approx(wanted[1:5, 0].mean())
    line = space_of("line", experts=("a",))
    steep = np.array([[0.0], [0.0], [0.5], [1.0], [1.5], [0.0]])
    np.testing.assert_allclose(line.decode(line.start({"weight": steep}))["weight"], steep, atol=1e-12)
    beyond = line.nearest({"weight": 3 * steep})  # the best line leaves the box, the best line inside it does not
    assert (beyond >= line.low).all()
    assert (beyond <= line.high).all()


def test_line_is_lines_with_alpha_at_the_shallow_end():
    """LiNeS (Wang et al. 2025): alpha .2, beta .8, four blocks; what lies outside the blocks takes alpha."""
    line = space_of("line", experts=("a",))
    assert line.names == ("weight/shallow/a", "weight/deep/a")
    decoded = line.decode(np.array([0.2, 1.0]))["weight"]
    np.testing.assert_allclose(decoded[:, 0], [0.2, 0.2, 0.466667, 0.733333, 1.0, 0.2], atol=1e-6)
    assert space_of("line", sharing="shared").names == ("weight/shallow/*", "weight/deep/*")


def test_line_without_depth_has_no_deep_end():
    only = make_space("line", {"h.0.w": (2,), "norm": (2,)}, ("a", "b"), (WEIGHT,))
    assert only.names == ("weight/shallow/a", "weight/shallow/b")
    outside = frozenset(("a", name) for name in SHAPES if name.startswith("h."))
    space = space_of("line", experts=("a", "b"), zero=outside)
    assert space.names == ("weight/shallow/a", "weight/shallow/b", "weight/deep/b")
    assert set(space.frozen) == {f"weight/h.{i}/a" for i in range(4)}


def test_zero_task_vectors_are_frozen_and_said():
    zero = frozenset({("r8", "emb.weight"), ("ng", "h.0.attn.weight")})  # all of embeddings, a part of h.0
    space = space_of("layer", (WEIGHT, DENSITY), zero=zero)
    assert space.frozen == {"weight/embeddings/r8": 0.0, "density/embeddings/r8": 0.5}
    assert space.dim == 2 * (6 * 3 - 1)
    decoded = space.decode(space.high)
    assert decoded["weight"][0].tolist() == [0.0, 1.5, 1.5]
    assert decoded["density"][0].tolist() == [0.5, 1.0, 1.0]
    assert space_of("layer", zero=zero, sharing="shared").frozen == {}
    everyone = frozenset((expert, "emb.weight") for expert in EXPERTS)
    assert space_of("layer", zero=everyone, sharing="shared").frozen == {"weight/embeddings/*": 0.0}


def test_frozen_and_tied_patterns():
    space = space_of("layer", (WEIGHT, DENSITY), frozen={"weight/embeddings/*": 0.25}, tied=["weight/h.*/r8"])
    assert space.frozen == {f"weight/embeddings/{expert}": 0.25 for expert in EXPERTS}
    assert space.names.count("weight/h.*/r8") == 1
    assert space.dim == 2 * 6 * 3 - 3 - 3
    x = space.low.copy()
    x[space.names.index("weight/h.*/r8")] = 1.25
    weight = space.decode(x)["weight"]
    assert weight[1:5, 0].tolist() == [1.25] * 4
    assert weight[0].tolist() == [0.25] * 3
    gradient = space.pullback({"weight": np.ones((6, 3))}, np.zeros(space.dim))
    assert gradient[space.names.index("weight/h.*/r8")] == 4


def test_patterns_name_chunks_with_their_brackets_and_ends_of_a_line():
    chunk = space_of("chunk:2", frozen={"weight/emb.weight[0:5]/r8": 0.5})
    assert chunk.frozen == {"weight/emb.weight[0:5]/r8": 0.5}
    line = space_of("line", frozen={"weight/deep/*": 0.5}, tied=["weight/shallow/*"])
    assert line.names == ("weight/shallow/*",)
    np.testing.assert_allclose(line.decode(np.array([0.5]))["weight"], 0.5)
    flat = space_of("line", experts=("a",), tied=["weight/*/a"])  # a line with equal ends is a constant
    np.testing.assert_allclose(flat.decode(np.array([0.3]))["weight"], 0.3)


def test_bounds_replace_those_of_the_variable():
    space = space_of("layer", (WEIGHT, DENSITY), bounds={"weight": (0.5, 2.0)})
    assert space.variables == (Variable("weight", 0.5, 2.0, 0.5), DENSITY)
    assert (space.low[:18] == 0.5).all()
    assert (space.high[:18] == 2.0).all()
    assert (space.high[18:] == 1.0).all()
    assert (space.decode(space.start({}))["weight"] == 0.5).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frozen": {"weight/embedings/*": 0.0}}, "frozen: 'weight/embedings/.' matches no entry.*weight/embeddings/"),
        ({"tied": ["weights/h.0/r8"]}, "tied: 'weights/h.0/r8' matches no entry.*weight/h.0/r8"),
        ({"frozen": {"weight/h.0/r8": 1.6}}, r"outside its bounds \[0.0, 1.5\]"),
        ({"frozen": {"weight/h.0/r8": float("nan")}}, "outside its bounds"),
        ({"frozen": {"*/h.0/r8": 0.5, "weight/*/r8": 0.4}}, "patterns hold weight/h.0/r8 at 0.5 and at 0.4"),
        ({"tied": ["*/h.0/*"]}, "would give weight and density one coordinate"),
        ({"tied": ["weight/h.0/*", "weight/*/r8"]}, "weight/h.0/r8 is in"),
        ({"bounds": {"wieght": (0, 1)}}, "did you mean 'weight'"),
        ({"bounds": {"weight": (1, 1)}}, "write a lower and a higher"),
        ({"bounds": {"weight": (0, float("inf"))}}, "finite"),
        ({"sharing": "share"}, "did you mean 'shared'"),
        ({"experts": ("a", "b", "a")}, "a occurs more than once"),
        ({"experts": ()}, "at least one row"),
        ({"frozen": {"*": 0.5}}, "Nothing is left to search"),
        ({"zero": frozenset((e, n) for e in EXPERTS for n in SHAPES)}, "copies of the base"),
    ],
)
def test_errors_say_what_to_write(settings, message):
    with pytest.raises(SpaceError, match=message):
        space_of("layer", (WEIGHT, DENSITY), **settings)


def test_values_of_the_wrong_kind_are_refused():
    space = space_of()
    with pytest.raises(SpaceError, match=r"shape \(18,\), not \(3,\)"):
        space.decode(np.zeros(3))
    with pytest.raises(SpaceError, match="did you mean 'weight'"):
        space.start({"weigth": 0.3})
    with pytest.raises(SpaceError, match=r"shape \(6, 3\), not \(3, 6\)"):
        space.start({"weight": np.zeros((3, 6))})
    with pytest.raises(SpaceError, match="not finite"):
        space.start({"weight": float("nan")})


@pytest.mark.parametrize(
    ("granularity", "values", "message"),
    [
        (
            "layer",
            {"weight": 2.0},
            r"start at 2 for weight/embeddings/r8, .*\[0, 1\.5\].*'space.bounds={weight: \[0.0, 2.0\]}'",
        ),
        ("line", {"weight": -0.5}, r"start at -0\.5 for weight/embeddings/r8.*'space.bounds={weight: \[-0.5, 1.5\]}'"),
        ("layer", {"density": 1.01}, r"start at 1\.01 for density/embeddings/r8.*density: \[0.1, 1.01\]"),
        ("layer", {"weight": np.where(np.eye(6, 3), 1.75, 0.5)}, r"start at 1\.75 for weight/embeddings/r8"),
    ],
)
def test_a_start_outside_the_bounds_is_refused_and_the_advice_helps(granularity, values, message):
    space = space_of(granularity, (WEIGHT, DENSITY))
    with pytest.raises(SpaceError, match=message) as error:
        space.start(values)
    [(variable, pair)] = re.findall(r"space.bounds={(\w+): \[(.*)\]}", str(error.value))
    wider = space_of(granularity, (WEIGHT, DENSITY), bounds={variable: tuple(map(float, pair.split(",")))})
    np.testing.assert_allclose(
        wider.decode(wider.start(values))[variable][1:5], np.broadcast_to(values[variable], (6, 3))[1:5]
    )


def test_a_start_may_lie_outside_where_the_search_cannot_move():
    space = space_of("layer", frozen={"weight/embeddings/*": 0.25})
    values = np.full((6, 3), 0.4)
    values[0] = 9.0
    assert (space.decode(space.start({"weight": values}))["weight"][0] == 0.25).all()
    assert (space.start({"weight": 1.5 + 1e-12}) == 1.5).all()  # a rounding is no other start
