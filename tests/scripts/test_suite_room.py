# pyright: reportMissingImports=false

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

from evomerge.common.errors import SuiteError
from evomerge.runs.suite import load_suite
from evomerge.search.evaluators.gradient import GradientEvaluator
from evomerge.search.evaluators.steps import Steps

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from suite_builder import room

STEPS = 5


@pytest.fixture
def suite(pico_suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the cache of the search is where one is called
    return load_suite(shutil.copytree(pico_suite.path, tmp_path / "pico"))


def find(suite, steps=STEPS):
    """The room, and what was printed into a pipe."""
    stream = io.StringIO()
    return room.find(suite, steps, Console(file=stream, soft_wrap=True)), stream.getvalue()


def test_room_is_experts_and_tensor_wise_search_over_the_best_constant(suite):
    found, said = find(suite)
    scores = found["scores"]
    assert set(scores) == {"base", "experts", "constant", "tensor"}
    means = {model: sum(tasks.values()) / len(tasks) for model, tasks in scores.items()}
    for model in ("experts", "tensor"):
        assert found[model]["diff"] == pytest.approx(means[model] - means["constant"])
        assert found[model]["se"] > 0
    assert means["experts"] > means["constant"] > means["base"]
    assert found["constant"] in room.CONSTANTS
    assert found["items"] == 3 * 120
    assert "measuring what a supervised tensor-wise search finds" in said


def test_room_is_measured_once(suite):
    first, _ = find(suite)
    log = (suite.path / "room" / "trials.jsonl").read_bytes()
    again, said = find(suite)
    assert again == first
    assert said == ""
    assert (suite.path / "room" / "trials.jsonl").read_bytes() == log
    assert find(suite, steps=STEPS + 1)[0] != first  # another search


@pytest.mark.parametrize("content", ['{"base": {"r8": 0.5}, "constant": 0.8, "items": 200}', '{"base": ', "[]"])
def test_a_room_of_another_format_is_measured_again(suite, content):
    (suite.path / "room.json").write_text(content)
    found, _ = find(suite)
    assert found["format"] == room.FORMAT
    assert json.loads((suite.path / "room.json").read_text()) == found


def test_a_measurement_that_was_cut_off_goes_on(suite, monkeypatch):
    find(suite)
    log = suite.path / "room" / "trials.jsonl"
    undisturbed = log.read_bytes()
    (suite.path / "room.json").unlink()
    log.unlink()
    real, steps = GradientEvaluator.__call__, []

    def counted(self, batch, missing):
        if missing and len(steps) == 3:
            raise KeyboardInterrupt
        steps.extend(missing)
        yield from real(self, batch, missing)

    monkeypatch.setattr(GradientEvaluator, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        find(suite)
    assert undisturbed.startswith(log.read_bytes())
    steps.append(0)  # no more interruptions
    find(suite)
    assert len(steps) == STEPS + 1
    assert log.read_bytes() == undisturbed


def test_other_experts_are_measured_anew(suite):
    first, _ = find(suite)
    manifest = json.loads((suite.path / "suite.json").read_text())
    weights = suite.experts["trees"] / "model.safetensors"
    shutil.copy(suite.experts["animals"] / "model.safetensors", weights)
    (suite.path / "suite.json").write_text(json.dumps(manifest | {"training": "another"}))
    found, _ = find(suite)
    assert found["scores"]["experts"]["trees"] != first["scores"]["experts"]["trees"]


def test_steps_that_all_fail_are_an_error(suite, monkeypatch):
    monkeypatch.setattr(Steps, "__call__", lambda *_: 1 / 0)
    with pytest.raises(SuiteError, match=r"cannot be measured: steps of the gradient failed"):
        find(suite)


def test_too_little_room_is_an_error():
    room.check({"tensor": {"diff": 0.02, "se": 0.005}})
    for diff in (0.019, 0.0, -0.05):
        with pytest.raises(SuiteError, match=r"less than 4 cannot prove"):
            room.check({"tensor": {"diff": diff, "se": 0.005}})
