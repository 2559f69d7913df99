"""The picture of coefficients by depth: what stands in it, for every kind of group names."""

# pyright: reportMissingImports=false

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.recipes.recipe import Recipe, Source
from evomerge.space.groups import GRANULARITIES, make_groups

pytest.importorskip("matplotlib")
SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import plot_coefficients as plot  # noqa: E402

BLOCKS = ("attention.weight", "mlp.weight", "norm.bias")
PARAMETERS = {
    "embed.weight": (8, 4),
    **{f"encoder.layers.{i}.{part}": (4, 2) for i in range(3) for part in BLOCKS},
    "norm.weight": (4,),
}
SPACES = [name.replace(":n", ":2") for name in GRANULARITIES]


def recipe_of(granularity: str, parameters: dict[str, tuple[int, ...]], outside: float = 0.1) -> Recipe:
    """Expert a has its depth in each group, expert b has 1; both have `outside` where there is no depth."""
    rows = {
        group.name: {"a": group.depth, "b": 1.0} if group.depth is not None else {"a": outside, "b": outside}
        for group in make_groups(granularity, parameters)
    }
    source = Source("somewhere", "0")
    return Recipe(source, {"a": source, "b": source}, {"name": "linear"}, granularity, {"weight": rows})


def lines_of(figure) -> dict[str, list[list[float]]]:
    """The heights of the lines in the first panel, by expert."""
    found: dict[str, list[list[float]]] = {}
    for line in figure.axes[0].get_lines():
        found.setdefault(line.get_label(), []).append([float(y) for y in line.get_ydata()])
    return found


def labels(ticks) -> list[str]:
    return [tick.get_text() for tick in ticks]


def shape_of_heat(figure) -> tuple[int, ...]:
    return figure.axes[1].get_images()[0].get_array().shape


@pytest.mark.parametrize("granularity", ["layer", "module", "tensor", "chunk:2", "line"])
def test_a_line_over_the_blocks_and_a_point_for_what_lies_outside(granularity: str) -> None:
    figure = plot.draw({"run": recipe_of(granularity, PARAMETERS)})
    lines = lines_of(figure)
    assert lines["a"] == [[0.1], [0.0, 0.5, 1.0], [0.1]]
    assert lines["b"] == [[0.1], [1.0, 1.0, 1.0], [0.1]]
    assert labels(figure.axes[0].get_xticklabels()) == ["emb", "0", "1", "2", "head"]
    assert shape_of_heat(figure) == (len(make_groups(granularity, PARAMETERS)), 2)
    assert labels(figure.axes[1].get_yticklabels()) == ["emb", "0", "1", "2", "head"]


def test_the_heat_map_goes_upwards() -> None:
    heat = plot.draw({"run": recipe_of("layer", PARAMETERS)}).axes[1]
    low, high = heat.get_ylim()
    assert low < high
    assert heat.get_images()[0].get_array()[:, 0].tolist() == [0.1, 0.0, 0.5, 1.0, 0.1]


def test_a_group_of_several_blocks_is_in_each_of_them() -> None:
    figure = plot.draw({"run": recipe_of("blocks:2", PARAMETERS)})
    assert lines_of(figure)["a"] == [[0.1], [0.25, 0.25, 1.0], [0.1]]
    assert shape_of_heat(figure) == (4, 2)
    assert labels(figure.axes[1].get_yticklabels()) == ["embeddings", "0-1", "2", "head"]


def test_two_towers_are_two_lines() -> None:
    parameters = {f"{tower}.layers.{i}.mlp.weight": (4, 2) for tower in ("encoder", "decoder") for i in range(2)}
    assert lines_of(plot.draw({"run": recipe_of("tensor", parameters)}))["a"] == [[0.0, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize("granularity", ["model", "tensor"])
def test_groups_without_depth_stand_side_by_side(granularity: str) -> None:
    parameters = PARAMETERS if granularity == "model" else {"first.weight": (2, 2), "second.weight": (2, 2)}
    recipe = recipe_of(granularity, parameters)
    figure = plot.draw({"run": recipe})
    groups = list(recipe.coefficients["weight"])
    assert labels(figure.axes[0].get_xticklabels()) == [group.replace(".", " ") for group in groups]
    assert shape_of_heat(figure) == (len(groups), 2)


def test_what_nobody_tuned_is_left_out() -> None:
    figure = plot.draw({"run": recipe_of("tensor", PARAMETERS, outside=0.0)})
    assert labels(figure.axes[0].get_xticklabels()) == ["0", "1", "2"]
    assert shape_of_heat(figure) == (9, 2)


def test_many_runs_have_a_panel_each_on_one_scale() -> None:
    recipes = {f"run {i}": recipe_of(space, PARAMETERS) for i, space in enumerate(SPACES)}
    figure = plot.draw(recipes)
    drawn = [axes for axes in figure.axes if axes.get_images()]
    assert len(drawn) == len(recipes)
    assert len({axes.get_images()[0].get_clim() for axes in drawn}) == 1
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert sorted(titles) == sorted(recipes)


def run_script(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The script as a user runs it, where every warning is an error."""
    command = [sys.executable, "-W", "error", str(SCRIPTS / "plot_coefficients.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


def test_the_command_writes_a_picture(tmp_path: Path) -> None:
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "recipe.yaml").write_text(recipe_of("layer", PARAMETERS).to_yaml())
    done = run_script("one", "two", "--out", "picture.png", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    image = (tmp_path / "picture.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert int.from_bytes(image[16:20], "big") == 1000  # its width


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "search that has ended"),
        (["run", "--variable", "weigth"], "weight"),
        (["torn"], "torn/recipe.yaml"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run, text in (("run", recipe_of("layer", PARAMETERS).to_yaml()), ("torn", "format: 1\nbase: {path: so")):
        (tmp_path / run).mkdir()
        (tmp_path / run / "recipe.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plot_coefficients.py", *arguments])
    with pytest.raises(SystemExit, match=said):
        plot.main()
    assert not (tmp_path / "coefficients.png").exists()


def test_no_global_state_is_left() -> None:
    import matplotlib

    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)
    plot.draw({"run": recipe_of("tensor", PARAMETERS)})
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend(auto_select=False) == backend
