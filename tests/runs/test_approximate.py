"""Search items scored in half the bits: on a copy, candidates alone, and never what chooses the winner or judges it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evomerge.common.errors import ConfigError
from evomerge.common.progress import Silent
from evomerge.models import computing
from evomerge.report import write_report
from evomerge.runs.build import build_problem
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.runs.worker import Worker, build_message
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.splits import approximately, live_fitness, make_subsets
from evomerge.search.evaluators.units import Named, Unit
from evomerge.search.journal import read_log
from evomerge.selection.named import Model as Called
from evomerge.selection.named import described
from evomerge.selection.summary import Summary
from tests.kit.evaluations import settings_of, sources_of
from tests.kit.helpers import compose
from tests.kit.narrow import narrowed

APPROXIMATE = "fitness.approximate=bfloat16"
SMALL = ("searcher=random", "space=model", "fitness.items=24", "fitness.select_items=30")


@pytest.fixture(scope="module")
def sources(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return sources_of(pico_suite, tmp_path_factory.mktemp("cache"))


def searched(path: Path, *settings: str, budget: int = 5) -> tuple[Summary, list[dict[str, Any]]]:
    config = compose(*settings, *SMALL, "fitness.report_items=60", "seed=3", f"budget={budget}")
    summary = run_search(config, path, Silent())
    assert summary
    return summary, [line for line in read_log(path / "trials.jsonl") if line["kind"] == "trial"]


def test_candidates_are_scored_as_a_model_of_that_dtype(sources: list[str]) -> None:
    problem = build_problem(settings_of(*sources, APPROXIMATE), Silent())
    ids, point = make_subsets(problem)["search"](0), np.full(problem.space.dim, 0.7)
    exact = live_fitness(problem, problem.items["search"])
    score = approximately(problem, exact)
    for one in (point * 0.5, point):
        problem.merger.apply(problem.space.decode(one))
        before = {name: tensor.clone() for name, tensor in problem.live.tensors().items()}
        found, fine = score(ids), exact(ids)
        whole = LiveFitness(problem.live.narrowed(torch.bfloat16), problem.fitness, exact.prepared)(ids)
        assert all(torch.equal(tensor, before[name]) for name, tensor in problem.live.tensors().items())
        for task in ids:
            each = [outcome.results[task]["log_probability"] for outcome in (found, whole, fine)]
            assert np.array_equal(each[0], each[1])
            assert not np.array_equal(each[0], each[2])
            assert np.allclose(each[0], each[2], atol=0.1)


def test_only_the_search_is_approximate(sources: list[str], tmp_path: Path) -> None:
    found, trials = searched(tmp_path / "approximate", *sources, APPROXIMATE)
    exact, others = searched(tmp_path / "exact", *sources)
    assert [one["items"] for one in trials] == [one["items"] for one in others]
    assert [one["values"] for one in trials] != [one["values"] for one in others]
    assert found.report["base"] == exact.report["base"]
    assert found.report["best_constant"] == exact.report["best_constant"]


def test_scores_of_candidates_are_remembered_apart(sources: list[str], tmp_path: Path) -> None:
    cached = [sources[0], f"model.cache={tmp_path / 'cache'}", "fitness.remember=true", "fitness.sampling=disagreement"]
    fresh, expected = searched(tmp_path / "fresh", *sources, APPROXIMATE, "fitness.sampling=disagreement")
    searched(tmp_path / "exact", *cached)
    summary, trials = searched(tmp_path / "one", *cached, APPROXIMATE)
    assert (summary.remembered, fresh.remembered) == (0, 0)
    assert [one["values"] for one in trials] == [one["values"] for one in expected]
    again, trials = searched(tmp_path / "two", *cached, APPROXIMATE)
    assert again.remembered > 0
    assert [one["values"] for one in trials] == [one["values"] for one in expected]


def test_workers_do_the_same_and_score_what_is_no_candidate_exactly(sources: list[str]) -> None:
    settings = settings_of(*sources, APPROXIMATE)
    problem = build_problem(settings, Silent())
    worker = Worker(build_message(settings, problem, torch.get_num_threads()))
    ids, point = make_subsets(problem)["search"](0), np.full(problem.space.dim, 0.6)
    exact = live_fitness(problem, problem.items["search"])
    problem.merger.apply(problem.space.decode(point))
    expected = {"candidate": approximately(problem, exact)(ids)}
    problem.become("trees")
    expected["expert"] = exact(ids)
    problem.become(None)
    expected["base"] = exact(ids)
    expert = Named(described(Called("expert", "trees")))
    for name, model in {"candidate": point, "expert": expert, "base": "base"}.items():
        found = worker._scored(Unit(model, ids)).outcome
        for task in ids:
            row, wanted = (each.results[task]["log_probability"] for each in (found, expected[name]))
            assert np.array_equal(row, wanted), name


def test_where_it_saves_nothing_it_is_refused(pico_suite: Suite, sources: list[str], tmp_path: Path) -> None:
    narrow = [f"model.suite={narrowed(pico_suite, tmp_path / 'narrow')}", f"model.cache={tmp_path / 'cache'}"]
    for settings, why in (
        (["model=pico", *narrow, "model.compute=null"], "kept and scored in bfloat16"),
        (["model=pico", *narrow, "model.compute=float32"], "kept in bfloat16, and scored in float32"),
        (
            [*sources, "fitness=command", "fitness.command='true {model} {items} {out}'"],
            "a command is handed a directory",
        ),
        ([*sources, "fitness.approximate=int3"], "fitness.approximate: .*int3"),
    ):
        with pytest.raises(ConfigError, match=why):
            run_search(compose(*settings[:1], APPROXIMATE, *settings[1:]), tmp_path / "none", Silent())


def timed(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Let products take so long, by dtype; nothing for a machine that must not be asked."""
    times = {getattr(torch, name): each for name, each in seconds.items()}
    monkeypatch.setattr(computing, "product_seconds", lambda dtypes: {dtype: times[dtype] for dtype in dtypes})


def test_auto_is_what_is_faster_when_the_run_begins_and_stays(
    sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, runs = "fitness.approximate=auto", {}
    for name, half in (("fast", 1.0), ("slow", 3.0)):
        timed(monkeypatch, float32=2.0, bfloat16=half)
        runs[name] = searched(tmp_path / name, *sources, asked)[1]
    timed(monkeypatch)
    assert runs["fast"] == searched(tmp_path / "half", *sources, APPROXIMATE)[1]
    assert runs["slow"] == searched(tmp_path / "whole", *sources)[1]
    assert runs["fast"] != runs["slow"]
    whole = (tmp_path / "whole" / "trials.jsonl").read_bytes()
    assert (tmp_path / "slow" / "trials.jsonl").read_bytes() == whole
    for name, chosen in (("fast", "bfloat16"), ("slow", None)):
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text(encoding="utf-8"))
        assert config["fitness"]["approximate"] == chosen
        page = write_report(tmp_path / name).read_text(encoding="utf-8")
        assert ("search items in bfloat16, which the winner is not" in page) == (chosen is not None)
    for name, same in (("fast", "half"), ("slow", "whole")):
        more = searched(tmp_path / name, *sources, asked, budget=7)[1]  # nobody is asked again
        assert more[:5] == runs[name]
        settings = [APPROXIMATE] if same == "half" else []
        assert more == searched(tmp_path / same, *sources, *settings, budget=7)[1]


def test_auto_leaves_a_base_of_16_bits_as_it_is(
    pico_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch)
    narrow = [f"model.suite={narrowed(pico_suite, tmp_path / 'narrow')}", f"model.cache={tmp_path / 'cache'}"]
    searched(tmp_path / "run", "model=pico", *narrow, "model.compute=null", "fitness.approximate=auto")
    header = next(iter(read_log(tmp_path / "run" / "trials.jsonl")))
    assert "approximate" not in header["identity"]
