"""The transforms of each family against numbers of their authors' code, or that follow from the paper by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest
import torch

from evomerge.common.errors import ConfigError
from evomerge.task_vectors.draws import keys, uniforms
from evomerge.transforms.averages import ModelStock
from evomerge.transforms.chance import Dare, Della
from evomerge.transforms.magnitude import Breadcrumbs, Trim
from evomerge.transforms.masks import Cabs, Consensus, Sce, Tall
from evomerge.transforms.sequential import Opcm
from evomerge.transforms.signs import Elect, MagMax, Unified
from evomerge.transforms.spectral import Cart, IsoC, IsoCts, Ranks, Star, Truncate, TsvM
from evomerge.transforms.svd import orthogonal
from tests.kit.published import T3, W1, W2, close, made, total
from tests.kit.vectors import vectors_of

TEN = torch.tensor([1.0, -2, 3, -4, 5, -6, 7, -8, 9, -10])


def test_trims_over_the_model_each_tensor_and_each_row() -> None:
    a, b = torch.tensor([10.0, -9, 8, 7]), torch.tensor([0.4, -0.3, 0.2, 0.1])
    assert made(Trim(0.5), [b], other=[a])["e0"].tolist() == [0, 0, 0, 0]
    assert made(Trim(0.5), [a], other=[b])["e0"].tolist() == [10, -9, 8, 7]
    assert made(Trim(0.5, "tensor"), [a], other=[b])["e0"].tolist() == [10, -9, 0, 0]
    matrix = torch.stack([a, b])
    assert made(Trim(0.5, "tensor"), [matrix])["e0"].tolist() == [[10, -9, 8, 7], [0, 0, 0, 0]]
    close(made(Trim(0.5, "row"), [matrix])["e0"], [[10, -9, 0, 0], [0.4, -0.3, 0, 0]])
    assert torch.count_nonzero(made(Trim(0.29, "tensor"), [torch.ones(100)])["e0"]) == 29


def test_elections() -> None:
    assert total(Elect(), T3).tolist() == [5, -3, 2, 5, -7, 3]
    assert total(Elect(join="mean"), T3).tolist() == [2.5, -1.5, 2, 5, -3.5, 1]
    close(made(Elect(join="mean"), T3)["e0"], [1.5, -0.5, 2, 0, -2, 1 / 3])
    assert total(Elect(by="count"), torch.tensor([[5.0], [-1], [-1]])).tolist() == [-2]
    assert total(Elect(), torch.tensor([[5.0], [-1], [-1]])).tolist() == [5]


def test_a_sum_of_zero_goes_with_the_majority_of_all_parameters() -> None:
    """As in the code of TIES: minus where most are minus, and where there is no majority."""
    tie = [torch.tensor([2.0]), torch.tensor([-2.0])]
    for others, expected in ((3.0, 2.0), (-3.0, -2.0)):
        found = made(Elect(zero="majority"), tie, other=[torch.tensor([others])] * 2)
        assert sum(row.item() for row in found.values()) == expected
    assert total(Elect(zero="majority"), tie).item() == -2
    assert total(Elect(), tie).item() == 2


def test_breadcrumbs_of_rows() -> None:
    found = made(Breadcrumbs(0.4, 0.2), [TEN.reshape(2, 5)])["e0"]
    assert found.tolist() == [[0, 0, 3, -4, 0], [0, 0, -8, 9, 0]]
    assert made(Breadcrumbs(0.4, 0.2), [TEN])["e0"].tolist() == [0, 0, 0, 0, 5, -6, 7, -8, 0, 0]
    assert made(Breadcrumbs(0.5, 0.0), [TEN])["e0"].tolist() == [0, 0, 0, 0, 0, -6, 7, -8, 9, -10]


def test_dare_keeps_what_is_drawn_below_the_density() -> None:
    v = torch.tensor([4.0, -1, 2, -3])
    kept = uniforms(keys(7, "e0", "w"), 0, 4) < 0.5
    assert torch.equal(made(Dare(0.5, seed=7), [v])["e0"], torch.where(kept, 2 * v, 0))
    assert torch.equal(made(Dare(0.5, rescale=False, seed=7), [v])["e0"], torch.where(kept, v, 0))
    assert torch.equal(made(Dare(1.0), [v])["e0"], v)


@pytest.mark.parametrize("transform", [Dare, Della])
def test_what_is_drawn_has_the_expectation_of_the_task_vector(transform: type[Dare | Della]) -> None:
    """Within four standard errors of the mean over seeds; the variance of one draw is τ² (1 - p) / p."""
    v, draws = torch.tensor([[1.0, -5, 3, 2]]), 2000
    found = torch.stack([made(transform(density=0.4, seed=seed), [v])["e0"] for seed in range(draws)])
    chance = Della(0.4).chances(v) if transform is Della else torch.full_like(v, 0.4)
    error = (v.square() * (1 - chance) / chance / draws).sqrt()
    assert ((found.mean(0) - v).abs() < 4 * error).all()


def test_chances_of_della_grow_with_the_rank_within_a_row() -> None:
    rows = torch.tensor([[1.0, -5, 3, 2], [0.4, 0.1, -0.2, 0.3]])
    close(Della(0.5, 0.2).chances(rows), [[0.3, 0.7, 0.566667, 0.433333], [0.7, 0.3, 0.433333, 0.566667]])
    close(Della(0.5, 0.2).chances(torch.tensor([[3.0]])), [[0.5]])
    found = made(Della(0.5, 0.2), [rows])["e0"]
    kept = [[3.333333, -7.142857, 5.294118, 4.615385], [0.571429, 0.333333, -0.461538, 0.529412]]
    assert torch.count_nonzero(found) > 0
    torch.testing.assert_close(found, torch.where(found != 0, torch.tensor(kept), 0), rtol=1e-5, atol=1e-5)


def test_magmax_and_the_unified_vector() -> None:
    assert total(MagMax(), T3).tolist() == [3, -2, -2, 5, 4, 1]  # of -4 and 4, the later one
    assert made(Unified(), T3)["unified"].tolist() == [3, -2, -2, 5, -4, 1]


@pytest.mark.parametrize(
    ("threshold", "agree", "expected"),
    [
        (0.4, 1, [4, -2, 0, 4, -3, 3]),
        (0.4, 2, [4, -2, 0, 0, -3, 3]),
        (0.4, 3, [0, 0, 0, 0, -3, 3]),
        (1.0, 1, [4, -2, 0, 4, -3, 0]),
        (1.0, 2, [0, 0, 0, 0, -3, 0]),
        (1.0, 3, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_consensus(threshold: float, agree: int, expected: list[int]) -> None:
    assert total(Consensus(threshold, agree), T3).tolist() == expected


@pytest.mark.parametrize(
    ("threshold", "masks"),
    [
        (0.4, [[1, 1, 1, 0, 1, 1], [0, 1, 1, 1, 1, 1], [1, 0, 0, 0, 1, 1]]),
        (1.0, [[1, 0, 0, 0, 1, 0], [0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0]]),
    ],
)
def test_tall_masks(threshold: float, masks: list[list[int]]) -> None:
    """What consensus counts is what each row here keeps of the sum."""
    found = made(Tall(threshold), T3)
    assert [row.tolist() for row in found.values()] == [(T3.sum(0) * torch.tensor(row)).tolist() for row in masks]


def test_cabs_leaves_what_an_earlier_expert_took() -> None:
    a, b = torch.tensor([5, -1, 2, -4, 0.5, 3, -2, 1]), torch.tensor([4, 3, -2, 1, -6, 0.2, 5, -7])
    found = made(Cabs(2, 4), [a, b])
    assert found["e0"].tolist() == [5, 0, 0, -4, 0, 3, -2, 0]
    assert found["e1"].tolist() == [0, 3, -2, 0, -6, 0, 0, -7]
    assert made(Cabs(1, 4), [torch.arange(1.0, 10)])["e0"].tolist() == [0, 0, 0, 4, 0, 0, 0, 8, 0]


def test_sce() -> None:
    close(total(Sce(), T3), [2.659574, -1.621951, 2, 5, -3.659574, 1])
    close(total(Sce(0.5), T3), [0, 0, 0, 5, -3.615385, 0])


@pytest.mark.parametrize(
    ("energy", "expected"),
    [
        (0.4, [10.0, 0, 0, 0]),
        (0.5, [10.0, 0, 0, 0]),
        (0.51, [6.25, 3.75, 0, 0]),
        (0.8, [6.25, 3.75, 0, 0]),
        (0.9, [5.263158, 3.157895, 1.578947, 0]),
        (1.0, [5, 3, 1.5, 0.5]),
    ],
)
def test_star(energy: float, expected: list[float]) -> None:
    matrix = torch.diag(torch.tensor([5.0, 3, 1.5, 0.5]))
    close(made(Star(energy), [matrix])["e0"], torch.diag(torch.tensor(expected)).tolist())
    close(total(Star(energy), [matrix, matrix]), torch.diag(torch.tensor(expected)).tolist())


def test_truncation_is_the_nearest_matrix_of_a_lower_rank() -> None:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(9, 6, generator=generator)
    found = made(Truncate(0.5), [matrix])["e0"]
    assert torch.linalg.matrix_rank(found) == 3
    lost = torch.linalg.svdvals(matrix)[3:].square().sum().sqrt()
    torch.testing.assert_close(torch.linalg.matrix_norm(matrix - found), lost)
    assert torch.linalg.matrix_rank(made(Truncate(0.01), [matrix])["e0"]) == 1


def test_tsvm() -> None:
    found = made(TsvM(), [W1, W2])
    close(
        found["e0"],
        [
            [3.414214, 0, 0, -1.414214],
            [0, 1.707107, -0.707107, 0],
            [-1.414214, 0, 0, 0.585786],
            [0, -0.707107, 0.292893, 0],
        ],
    )
    close(found["e1"][0], [0.292893, 0.146447, 0.353553, 0.707107])
    close(torch.linalg.svdvals(found["e0"] + found["e1"]), [4, 3, 2, 1])
    assert total(TsvM(), [torch.tensor([1.0, 2, 3, 4]), torch.tensor([3.0, 2, 1, 0])]).tolist() == [2, 2, 2, 2]
    assert total(TsvM(), [torch.tensor([[1.0, 2]]), torch.tensor([[3.0, 2]])]).tolist() == [[2, 2]]  # no rank for each


def test_vectors_that_depend_on_each_other_have_an_orthogonal_form() -> None:
    """The same expert twice: the columns are not independent, and nothing becomes infinite."""
    found = orthogonal(torch.cat([torch.eye(4)[:, :2], torch.eye(4)[:, :2]], dim=1))
    close(torch.linalg.svdvals(found), [1, 1, 0, 0])
    assert torch.isfinite(total(TsvM(), [W1, W1])).all()
    assert torch.isfinite(total(IsoCts(), [W1, W1])).all()


def test_iso_c() -> None:
    found = made(IsoC(), [W1, W2])["merged"]
    close(found[0], [2.776474, 0.029303, -0.234234, 0.247657])
    close(torch.linalg.svdvals(found), [2.797475] * 4)
    diagonal = [torch.diag(torch.tensor(row)) for row in ([3.0, 1], [1.0, -2])]
    close(made(IsoC(), diagonal)["merged"], [[2.5, 0], [0, -2.5]])


def test_iso_cts() -> None:
    found = made(IsoCts(0.5), [W1, W2])
    close(found["e0"][0], [0.092958, 0.203836, -0.270258, 0.047604])
    close(found["e1"][0], [-0.02626, 0.016551, -0.034186, -0.213669])
    close(found["common"][0], [2.720025, -0.3596, 0.584107, -0.455603])
    close(sum(found.values(), torch.zeros(()))[0], [2.786722, -0.139214, 0.279663, -0.621668])


@pytest.mark.parametrize(("zeros", "mean"), [(True, 2.477314), (False, 3.303086)])
def test_the_zeros_of_an_expert_that_left_a_matrix_as_it_was_count_in_the_mean(zeros: bool, mean: float) -> None:
    """The mean of four singular values is that of the authors' code; it has no directions of such an expert here."""
    found = made(IsoCts(0.5, zeros), [W1, torch.zeros(4, 4), W2])
    assert sorted(found) == ["common", "e0", "e2"]
    close(torch.linalg.svdvals(sum(found.values(), torch.zeros(()))), [mean] * 3 + [0])


def test_cart() -> None:
    """The average, and what is left of each expert in its first direction; an expert that is zero counts."""
    threes = list(3 * torch.eye(3)[:, :, None] * torch.eye(3)[:, None])
    found = made(Cart(0.34, 0.5), threes)
    close(found["average"], torch.eye(3).tolist())
    close(found["e1"], torch.diag(torch.tensor([0.0, 1, 0])).tolist())
    close(
        total(Cart(0.34, 0.5), [torch.diag(torch.tensor([3.0, 0, 0])), *[torch.zeros(3, 3)] * 2]),
        torch.diag(torch.tensor([1.0, 0, 0])).tolist(),
    )
    found = made(Cart(0.5, 2.3), [W1, W2, W1.flip(0)])
    close(sum(found.values(), torch.zeros(()))[0], [1.905441, 0.592925, 1.808923, 0.747639])  # of NumPy, in float64
    close(total(Cart(), [W1, W2]), ((W1 + W2) / 2).tolist())


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(0.5, [2.958589, 0.443788, 0.295859, 0.591718]), (0.9, [2.997307, 0, 0.299731, 0.599461])],
)
def test_opcm(alpha: float, expected: list[float]) -> None:
    close(total(Opcm(alpha), [W1, W2])[0], expected)


def opcm_as_published(rows: Sequence[Mapping[str, torch.Tensor]], alpha: float, linear: str) -> dict[str, torch.Tensor]:
    """OPCM step by step in float64, as the authors' code does it: weights of linear layers alone are projected."""
    merged, before, lengths = {name: delta.double() for name, delta in rows[0].items()}, 1.0, [norm(rows[0])]
    for row in rows[1:]:
        lengths.append(norm(row))
        for name, delta in row.items():
            new = delta.double()
            if name == linear:
                u, s, vh = torch.linalg.svd(merged[name])
                rank = int((s.cumsum(0) / s.sum() > alpha).float().argmax())
                new = u.T @ new @ vh.T
                new.diagonal().fill_(0)
                new[:rank, :rank] = 0
                new = u @ new @ vh
            merged[name] = before * merged[name] + new
        before = norm(merged) / (sum(lengths) / len(lengths))
        merged = {name: delta / before for name, delta in merged.items()}
    return merged


def norm(row: Mapping[str, torch.Tensor]) -> float:
    return float(sum((delta.double().square().sum() for delta in row.values()), torch.zeros(()))) ** 0.5


@pytest.mark.parametrize(
    "table",
    [
        *("model.embed_tokens.weight", "transformer.wte.weight", "shared.weight", "encoder.shared.weight"),
        *(
            "gpt_neox.embed_in.weight",
            "bert.embeddings.position_embeddings.weight",
            "lm_head.weight",
            "embed_out.weight",
        ),
    ],
)
def test_opcm_projects_no_embeddings(table: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {table: (20, 6), "layer.weight": (6, 6), "layer.bias": (6,)}
    rows = {f"e{k}": {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()} for k in range(3)}
    vectors, transform = vectors_of(rows), Opcm(0.5)
    state = transform.prepare(vectors, None)
    found = {n: sum(transform.apply(n, {e: r[n] for e, r in rows.items()}, state).values()) for n in shapes}
    expected = opcm_as_published(list(rows.values()), 0.5, "layer.weight")
    same = torch.allclose(torch.as_tensor(found[table]), expected[table].float(), rtol=1e-5, atol=1e-5)
    assert same != (table in ("lm_head.weight", "embed_out.weight"))  # heads are linear layers
    if same:
        for name in shapes:
            torch.testing.assert_close(found[name], expected[name].float(), rtol=1e-4, atol=1e-5)


def test_model_stock_goes_as_far_as_the_angle_says() -> None:
    close(total(ModelStock(), [torch.tensor([2.0, 0]), torch.tensor([1.0, 1])]), [1.242641, 0.414214])
    assert total(ModelStock(), [torch.tensor([2.0, 0])]).tolist() == [2, 0]
    assert total(ModelStock(), [torch.tensor([2.0, 0]), torch.tensor([-2.0, 1])]).tolist() == [0, 0]
    close(total(ModelStock(), [torch.tensor([2.0, 0])] * 3), [2, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Trim(0), "trim has density=0: it is a share, so write a number above 0, up to 1, such as 0.2 for"),
        (lambda: Trim(0.2, "global"), "trim has scope=global: write model or tensor or row"),
        (lambda: Breadcrumbs(0.2, -0.1), "breadcrumbs has gamma=-0.1: it is a share, so write a number from 0"),
        (lambda: Della(0.1, 0.2), r"chances go from -0.1 to 0.3: write an epsilon"),
        (lambda: Dare(seed=-1), "dare has seed=-1: write a whole number from 0 on"),
        (lambda: Consensus(math.nan), "consensus has threshold=nan: write a number from 0 on"),
        (lambda: Tall(-1), "tall has threshold=-1: write a number from 0 on"),
        (lambda: Consensus(agree=0), "consensus has agree=0: write a whole number from 1 on"),
        (lambda: Cabs(5, 4), "cabs keeps 5 of 4"),
        (lambda: Star(2), "star has energy=2"),
        (lambda: Elect(join="max"), "elect has join=max: write sum or mean"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_parts_by_singular_values_double_and_add_up() -> None:
    matrix = torch.diag(torch.arange(10.0, 0, -1))
    found = made(Ranks(3), [matrix, torch.zeros(10, 10)])
    ranks = [int(torch.linalg.matrix_rank(part)) for part in found.values()]
    assert ranks == [2, 3, 5]  # nothing of an expert that is zero
    close(found["e0.1"].diagonal(), [10, 9, *[0] * 8])
    close(sum(found.values()), matrix.tolist())
    assert made(Ranks(3), [TEN])["e0"] is not None
    assert list(made(Ranks(4), [torch.diag(torch.tensor([2.0, 1]))])) == ["e0.1", "e0.2", "e0.3", "e0.4"]
