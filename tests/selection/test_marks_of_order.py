"""Byte order marks, which some editors put before UTF-8: what begins with one is read, or refused in a sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from evomerge.cli import search
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.selection.contenders import read_recipe
from tests.recipes.test_card import recipe

MARK = b"\xef\xbb\xbf"
PACKAGE = "# @package _global_\n"


def experiment(directory: Path, text: str) -> Path:
    (directory / "experiment").mkdir(parents=True)
    (directory / "experiment" / "mine.yaml").write_bytes(MARK + text.encode())
    return directory


@pytest.mark.parametrize("name", ["own", "my settings", "a=b"])
@pytest.mark.parametrize("form", ["--config-dir {}", "--config-dir={}", "-cd {}", "--config-path={}"])
def test_an_experiment_whose_first_line_hydra_would_not_see_is_refused(
    form: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_application", lambda: pytest.fail("the search begins"))
    directory = experiment(tmp_path / name, PACKAGE + "budget: 2\n")
    with pytest.raises(EvomergeError, match=r"mine\.yaml begins with a byte order mark.*save it as UTF-8 without one"):
        search.main([*(part.format(directory) for part in form.split(" ")), "experiment=mine"])


@pytest.mark.parametrize(("mark", "text"), [(MARK, "budget: 2\n"), (b"", PACKAGE + "budget: 2\n")])
def test_an_experiment_that_hydra_reads_is_not(
    mark: bytes, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice is followed in the second."""
    begun: list[bool] = []
    monkeypatch.setattr(search, "_application", lambda: begun.append(True))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    directory = experiment(tmp_path, text)
    (directory / "experiment" / "mine.yaml").write_bytes(mark + text.encode())
    search.main([f"--config-dir={directory}", "experiment=mine"])
    assert begun == [True]


def test_a_recipe_is_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(MARK + recipe().to_yaml().encode())
    assert read_recipe(tmp_path / "recipe.yaml") == recipe()


def test_a_yaml_of_mergekit_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "merge.yaml").write_bytes(MARK + b"merge_method: linear\nmodels: [{model: a}]\n")
    with pytest.raises(ConfigError, match="this is a YAML for mergekit"):
        read_recipe(tmp_path / "merge.yaml")
