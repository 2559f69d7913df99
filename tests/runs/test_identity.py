"""What searches and outcomes depend on: every file that makes inputs changes it, nothing that people read does."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli.progress import Reporter
from evomerge.common.digests import digest
from evomerge.problem import Problem
from evomerge.runs.identity import search_identity
from evomerge.runs.suite import Suite
from evomerge.selection.evaluation import Model, evaluate
from tests.kit.evaluations import elsewhere, remembered, settings_of, sources_of, under

USUAL = (".json", ".txt", ".model", ".jinja")
"""What an earlier version looked at."""


@pytest.fixture
def base(pico_suite: Suite, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pico_suite.base, tmp_path / "base"))


@pytest.fixture
def known(problem: Problem, pico_suite: Suite, base: Path, tmp_path: Path) -> Callable[[], Any]:
    """Says what an outcome depends on, as far as the base's files go."""
    settings = settings_of(*sources_of(pico_suite, tmp_path / "cache"))
    moved = replace(problem, sources=replace(problem.sources, base=base))
    return lambda: replace(under(problem, settings), sources=moved.sources).contents["files"]


@pytest.mark.parametrize(
    "name",
    [
        *("source.spm", "vocab.bpe", "bpe.codes", "qwen.tiktoken", "additional_chat_templates/tool_use.jinja"),
        *("vocabulary.vocab", "dict.index.txt", "sentencepiece.bpe", "subwords/merges.bin.txt"),
    ],
)
def test_whatever_makes_inputs_belongs_to_it(name: str, base: Path, known: Callable[[], Any]) -> None:
    seen = {known()}
    (base / name).parent.mkdir(exist_ok=True)
    for text in ("a b", "a c"):
        (base / name).write_text(text)
        seen.add(known())
    assert len(seen) == 3


@pytest.mark.parametrize(
    "name", ["README.md", "LICENSE", "NOTICE.md", "figures/loss.png", ".gitattributes", "run.sh", "model.onnx"]
)
def test_what_makes_no_inputs_does_not(name: str, base: Path, known: Callable[[], Any]) -> None:
    before = known()
    (base / name).parent.mkdir(exist_ok=True)
    (base / name).write_text("anything")
    assert known() == before


def test_directories_of_usual_files_are_hashed_as_ever(base: Path, known: Callable[[], Any]) -> None:
    """So runs of an earlier version go on."""
    (base / "trainer_state.json").write_text("{}")
    (base / "model.safetensors.index.json").write_text("{}")
    (base / "modules.json").write_text('[{"path": "1_Pooling", "type": "Pooling"}]')
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text("{}")
    names = sorted(path.name for path in base.iterdir() if path.suffix in USUAL and "index" not in path.name)
    assert known() == digest([[name, hashlib.sha256((base / name).read_bytes()).hexdigest()] for name in names])


def test_an_outcome_is_not_remembered_for_another_vocabulary(
    problem: Problem, pico_suite: Suite, base: Path, tmp_path: Path
) -> None:
    settings = elsewhere(settings_of(*sources_of(pico_suite, tmp_path)), tmp_path)
    moved = replace(problem, sources=replace(problem.sources, base=base))
    for k, text in enumerate(("a b", "a b", "a c")):
        (base / "source.spm").write_text(text)
        evaluate(under(moved, settings), {"base": Model("base")}, "report", Reporter())
        assert len(remembered(settings)) == (1, 1, 2)[k]


def test_an_identity_is_written_as_ever(problem: Problem, pico_suite: Suite, tmp_path: Path) -> None:
    """To the byte, but for hashes of content, so that the runs of an earlier version go on."""
    settings = settings_of(*sources_of(pico_suite, tmp_path))
    told = json.dumps(search_identity(under(problem, settings), settings))
    hashes = re.compile(r'"([0-9a-f]{64}|[0-9a-f]{16})"')
    ends = ("animals", "trees", "metals")
    coordinates = [f"weight/encoder.layer.{i}/{name}" for i in (0, 1) for name in ends]
    assert hashes.sub('"#"', told) == json.dumps(
        {
            "base": "#",
            "experts": [[name, "#"] for name in ends],
            "files": "#",
            "class": "AutoModel",
            "heads": dict.fromkeys(ends, "#"),
            "method": {"_target_": "evomerge.merging.methods.Linear"},
            "fitness": {
                "_target_": "evomerge.fitness.classification.Classification",
                "batch_size": 32,
                "max_length": 48,
                "code": "",
            },
            "items": dict.fromkeys(ends, "#"),
            "space": {
                **{
                    "granularity": "layer",
                    "n": None,
                    "sharing": "separate",
                    "bounds": None,
                    "frozen": None,
                    "tied": None,
                },
                **{"coordinates": coordinates, "box": "#"},
            },
            "searcher": {
                **{"_target_": "evomerge.searchers.cmaes.CmaEs", "sigma": 0.15},
                **{"popsize": None, "diagonal_above": 24, "keep": 4},
            },
            "objective": {"metric": "log_probability", "aggregate": "mean", "normalised": False, "weights": None},
            "sample": [30, False],
            "start": "constants",
            "seed": 1,
        }
    )


def test_a_lag_of_0_counts_where_the_searcher_is_somebody_elses(problem: Problem, pico_suite: Suite) -> None:
    """Ours were without before there was one; with another's class, none may be 3."""
    settings = settings_of(*sources_of(pico_suite, Path("cache")))

    def said(**searcher: Any) -> Any:
        return search_identity(under(problem, settings), {**settings, "searcher": searcher})["searcher"]

    ours = {"_target_": "evomerge.searchers.tpe.Tpe", "_partial_": True, "lag": 0}
    theirs = said(_target_="tests.kit.outside.searcher.Closer", lag=0, inner=ours, options={"lag": 0})
    assert (theirs["lag"], theirs["options"]) == (0, {"lag": 0})
    assert "lag" not in theirs["inner"]
    assert said(**ours).keys() == ours.keys() - {"lag"}
