"""A candidate from a file: a merge YAML of mergekit's or a recipe, with the models, method and numbers that it says."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import torch

import evomerge as em
from evomerge.cli.main import main
from evomerge.inspection import candidate as module
from evomerge.models.weight_files import weight_files
from evomerge.models.weights import read_tensors

YAML = """\
merge_method: {method}
base_model: base
dtype: float32
wrong: 1
models:
- {{model: mood, parameters: {{weight: [0.2, 0.6], density: 0.5}}}}
- {{model: topic, parameters: {{weight: 0.3}}}}
parameters: {{lambda: 0.7}}
"""
SCORE = "def score(model, items):\n    return [float(len(item.text) % 3) for item in items]\n"


@pytest.fixture
def place(own_classifiers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's directory."""
    for path in own_classifiers.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "fitness.py").write_text(SCORE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(place: Path, method: str = "task_arithmetic") -> Path:
    (place / "their.yml").write_text(YAML.format(method=method))
    return place / "their.yml"


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "sce"])
def test_the_live_model_is_what_the_command_merges(place: Path, method: str) -> None:
    path = write(place, method)
    candidate = em.Candidate.read(path, device="cpu")
    assert any(note == "line 4: wrong is no key of a merge, and is not read" for note in candidate.family.notes)
    main(["merge", str(path), "out"])
    merged = read_tensors(weight_files(Path("out")))
    live = dict(candidate.model.named_parameters())
    assert all(torch.equal(live[name], merged[name]) for name in live)
    candidate.base()
    assert torch.equal(candidate.set(path).get_parameter("pooler.dense.weight"), merged["pooler.dense.weight"])
    again = em.Candidate.read("out/recipe.yaml", device="cpu")
    assert all(torch.equal(one, live[name]) for name, one in again.model.named_parameters())


def test_the_example_of_the_docstring_runs(place: Path) -> None:
    write(place)
    (test,) = [test for test in doctest.DocTestFinder().find(module.Candidate.read, "read", globs={}) if test.examples]
    assert doctest.DocTestRunner().run(test).failed == 0


def test_a_file_is_no_run(place: Path) -> None:
    with pytest.raises(em.EvomergeError, match=r"is a file, and `load` opens a run directory: write Candidate\.read"):
        em.load(write(place))
