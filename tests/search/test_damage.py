"""The matrix of damage: whatever a function does to the live model, or returns, with whatever fitness, it costs its own
candidate, with the reason; all others have the values of a search in which nothing happened."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.cli.progress import Reporter
from evomerge.fitness.classification import Classification
from evomerge.fitness.lm_eval.harness import LmEval
from evomerge.fitness.perplexity import Perplexity
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.journal import read_log
from tests.kit.damages import ENDS, HARMLESS, HARMS, WRONG, course
from tests.kit.evaluations import sources_of
from tests.kit.helpers import compose
from tests.kit.language import documents, write_jsonl, write_task

PATCHED: dict[str, Any] = {"classification": Classification, "lm_eval": LmEval, "perplexity": Perplexity}
FITNESSES = ("custom", *PATCHED)
Runs = tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]
"""The trials of an undamaged and of a damaged search, and the summary of the latter."""


def settings_of(fitness: str, suite: Suite, family: Path, tmp_path: Path) -> list[str]:
    few = ["fitness.items=6", "fitness.select_items=6", "fitness.report_items=6", f"budget={course.length}"]
    common = ["space=model", "searcher=random", "start=0.4", "time_limit=2", *few]  # points that no result changes
    if fitness in ("custom", "classification"):
        own = ["fitness=custom", "fitness.function=tests.kit.damages:score"] if fitness == "custom" else []
        return [*sources_of(suite, tmp_path / "cache"), *common, *own]
    experts = f"model.experts=[{family / 'left'},{family / 'right'}]"
    sources = [f"model.base={family / 'base'}", experts, f"model.cache={tmp_path / 'cache'}", "model.device=cpu"]
    if fitness == "perplexity":
        texts = [{"text": row["text"]} for row in documents(40)]
        files = {name: write_jsonl(tmp_path / f"{name}.jsonl", texts[i::3]) for i, name in enumerate("abc")}
        tasks = ", ".join(f"{name}: {path}" for name, path in files.items())
    else:
        kinds = ("choice", "answer", "rolling")
        tasks = ", ".join(f"{kind}: {{task: {write_task(tmp_path / 'tasks', kind)}}}" for kind in kinds)
    return [*sources, *common, f"fitness={fitness}", f"fitness.tasks={{{tasks}}}"]


@pytest.fixture(scope="module")
def patched() -> Iterator[None]:
    """Let every fitness go the course, and the course know which candidate it is at."""
    with pytest.MonkeyPatch.context() as patch:

        def follow(kind: Any) -> None:
            call = kind.__call__
            patch.setattr(kind, "__call__", lambda self, model, *rest: course(model, lambda: call(self, model, *rest)))

        def scored(self: SerialScorer, *arguments: Any) -> Any:
            (unit,) = arguments
            if not isinstance(unit.model, np.ndarray):  # such as the base: no candidate
                return plain(self, unit)
            course.number, course.running = course.number + 1, True
            try:
                return plain(self, *arguments)
            finally:
                course.running = False

        plain = SerialScorer._scored
        patch.setattr(SerialScorer, "_scored", scored)
        for kind in PATCHED.values():
            follow(kind)
        yield


@pytest.fixture(scope="module", params=FITNESSES)
def runs(request: Any, patched: None, pico_suite: Suite, language_family: Path, tmp_path_factory: Any) -> Runs:
    """Two searches with a fitness; the harmful one is killed before its last trial and goes on."""
    path = tmp_path_factory.mktemp(request.param)
    settings = settings_of(request.param, pico_suite, language_family, path)
    summary: Any = None
    for name in ("clean", "damaged"):
        course.harmful, course.number = name == "damaged", -1
        summary = run_search(compose(*settings), path / name, Reporter())
    log = path / "damaged" / "trials.jsonl"
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if b'"kind":"trial"' in line)
    log.write_bytes(b"".join(lines[:last]))
    (path / "damaged" / "summary.json").unlink()
    course.harmful, course.number = True, course.length - 2
    again: Any = run_search(compose(*settings), path / "damaged", Reporter())
    course.harmful = False
    assert log.read_bytes() == whole
    assert again.report == summary.report
    return (*(_trials(path / name) for name in ("clean", "damaged")), summary)


def _trials(directory: Path) -> list[dict[str, Any]]:
    return [line for line in read_log(directory / "trials.jsonl") if line["kind"] == "trial"]


def said(kind: str, custom: bool) -> str | None:
    """What the error of a kind of harm says; None for what is put back without a word."""
    if kind in HARMLESS or (kind == "train" and custom):
        return None
    if kind == "train":
        return "ModelChanged: the model was changed while it was scored .modules left in training mode: the model and "
    if kind in HARMS:
        return f"ModelChanged: the model was changed while it was scored .*{HARMS[kind][1]}"
    others = {
        "None": "no numbers for it, but None" if custom else "TypeError: the fitness returned None, which is no Outc",
        "other names": "no numbers for it, but" if custom else "ValueError: the fitness scored other items than it was",
    }
    return others.get(kind) or (ENDS | WRONG)[kind][1]


def test_a_kind_of_harm_costs_its_own_candidate(runs: Runs) -> None:
    clean, damaged, _ = runs
    custom = all(list(metrics) == ["score"] for metrics in clean[0]["scores"].values())
    for number, kind in enumerate(course.kinds):
        harmed, message = damaged[2 * number + 1], said(kind, custom)
        if message is None:
            assert harmed == clean[2 * number + 1], kind
        else:
            assert harmed["status"] == "failed", kind
            assert re.search(message, harmed["error"]), (kind, harmed["error"])


def test_the_other_candidates_are_those_of_a_search_without_harm(runs: Runs) -> None:
    clean, damaged, summary = runs
    assert len(clean) == len(damaged) == course.length
    assert damaged[::2] == clean[::2]
    assert {trial["status"] for trial in clean} == {"ok"}
    assert len({str(trial["values"]) for trial in clean}) > course.length / 2
    assert summary.failed == sum(trial["status"] == "failed" for trial in damaged) > len(course.kinds) / 2
    assert summary.winner.mean is not None
