"""`evomerge merge` as people use it, from the run of a search to a directory that transformers loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from evomerge.cli.main import main
from evomerge.cli.progress import Reporter
from evomerge.recipes.recipe import Recipe
from evomerge.runs.run import run_search
from tests.kit.helpers import compose
from tests.kit.merging import live_merge, loaded, names, same


@pytest.fixture(scope="module")
def finished(pico_suite, tmp_path_factory) -> Path:
    """The run of a small search."""
    path = tmp_path_factory.mktemp("run")
    settings = ["model=pico", f"model.suite={pico_suite.path}", f"model.cache={path / 'cache'}", "model.device=cpu"]
    settings += ["searcher=random", "space=layer", "budget=3", "start=0.4", "fitness.items=20"]
    assert run_search(compose(*settings), path / "run", Reporter()) is not None
    return path / "run"


def failing(capsys, *arguments: object) -> str:
    """What the command says when it fails."""
    with pytest.raises(SystemExit) as ending:
        main(["merge", *map(str, arguments)])
    assert ending.value.code == 2
    return capsys.readouterr().err


def test_from_a_run_to_a_model(finished, pico_suite, tmp_path, capsys):
    out = tmp_path / "merged"
    main(["merge", str(finished / "recipe.yaml"), str(out)])
    said = capsys.readouterr().out
    assert said == f'merged model: {out}\nload it with: transformers.AutoModel.from_pretrained("{out}")\n'
    recipe = Recipe.from_yaml((finished / "recipe.yaml").read_text())
    expected = live_merge(recipe, pico_suite.base, pico_suite.experts, tmp_path / "cache")
    assert same(loaded(out)[0], expected)
    assert {name for name in names(out) if name.startswith("heads/")} == set(recipe.heads.values())
    for path in recipe.heads.values():
        assert load_file(out / path).keys() == load_file(finished / path).keys()
    text = (out / "README.md").read_text()
    assert all(f"| {row} |" in text for row in ("base", "experts", "best constant", "winner"))
    main(
        ["merge", str(out / "recipe.yaml"), str(tmp_path / "again")]
    )  # what was handed over is enough, with the sources
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    main(["merge", str(finished / "recipe.yaml"), str(out)])
    assert "this very merge already" in capsys.readouterr().err


def test_sources_elsewhere(finished, pico_suite, tmp_path, capsys):
    moved = shutil.copytree(finished, tmp_path / "run")
    text = (moved / "recipe.yaml").read_text().replace(str(pico_suite.path), "suites/gone")
    (moved / "recipe.yaml").write_text(text)
    said = failing(capsys, moved / "recipe.yaml", tmp_path / "out")
    assert "the expert trees is not at suites/gone/experts/trees or" in said
    assert said.count("--expert ") == 3
    given = [f"--expert={name}={path}" for name, path in pico_suite.experts.items()]
    main(["merge", str(moved / "recipe.yaml"), str(tmp_path / "out"), f"--base={pico_suite.base}", *given])
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("flag", ["trees", "=x", "trees="])
def test_experts_without_a_place(tmp_path, capsys, flag):
    said = failing(capsys, "recipe.yaml", tmp_path / "out", f"--expert={flag}")
    assert said == f"evomerge: --expert {flag} does not say which expert is where: write --expert NAME=DIR.\n"


def test_recipes_that_are_none(finished, tmp_path, capsys):
    out = tmp_path / "out"
    said = failing(capsys, finished, out)
    assert f"There is no recipe {finished}: write {finished / 'recipe.yaml'}." in said
    assert "a search writes one at its end, runs/<name>/recipe.yaml" in failing(capsys, tmp_path / "none", out)
    (tmp_path / "bad.yaml").write_text("format: 1\nbase: here\n")
    assert f"{tmp_path / 'bad.yaml'} cannot be read: recipe: the key" in failing(capsys, tmp_path / "bad.yaml", out)
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe")
    assert f"{tmp_path / 'bad.yaml'} cannot be read" in failing(capsys, tmp_path / "bad.yaml", out)
    assert "invalid choice: 'int8'" in failing(capsys, tmp_path / "bad.yaml", out, "--dtype=int8")


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["merge", "--help"])
    assert not end.value.code
    assert "evomerge merge runs/<name>/recipe.yaml merged/" in capsys.readouterr().out
