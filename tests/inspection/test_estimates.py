from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from evomerge.cli.progress import Reporter
from evomerge.common import limits
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.inspection.estimates import estimate, time_merge
from evomerge.inspection.sources import inspect_sources
from evomerge.inspection.workers import Node
from evomerge.merging.methods import Linear, Ties
from evomerge.problem import Sources
from evomerge.runs.build import build_problem
from evomerge.runs.checks import make_fitness
from evomerge.runs.config import plain
from evomerge.runs.intent import intent_of
from evomerge.runs.run import run_search
from evomerge.runs.sources import find_sources
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from tests.kit.helpers import compose
from tests.kit.models import rewritten


@pytest.fixture
def settings(pico_suite, tmp_path) -> dict:
    overrides = (f"model.suite={pico_suite.path}", f"model.cache={tmp_path / 'cache'}", "model.device=cpu")
    return plain(compose("model=pico", *overrides))


def needs(settings: dict, sources: Sources, node: Node | None = None):
    found = inspect_sources(sources, "AutoModel", Path(settings["model"]["cache"]), 0.2, Reporter())
    fitness = make_fitness(settings["fitness"])
    return found, *estimate(found, intent_of(settings, sources, fitness), Reporter(), node)


def test_a_suite(settings, problem):
    sources = find_sources(settings["model"], None)
    found, need, warnings = needs(settings, sources, Node.read("2x80x256"))
    deltas = [delta for held in problem.vectors.deltas.values() for delta in held.values()]
    assert need.task_vectors == sum(delta.nbytes for delta in deltas)
    assert need.model == 4 * found.whole.elements
    assert need.device == "cpu"
    assert [(fit.gpus, fit.workers, fit.place) for fit in need.fits] == [(1, 2, "device"), (2, 1, "device")]
    assert 0 < need.merge < 1
    assert need.items == settings["fitness"]["items"]
    assert need.score is not None
    assert need.selection is not None
    assert need.selection > 10 * need.score  # some ten constants, and more items in each split
    assert warnings == []


@pytest.mark.parametrize("text", ["8", "8x80", "0x80x256", "8x80xmuch"])
def test_a_node_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match=r"--node=.* write its GPUs, .* such as --node=8x80x1024"):
        Node.read(text)


def test_without_tasks(settings):
    sources = find_sources(settings["model"], None)
    _, need, warnings = needs(settings, Sources(sources.base, sources.experts, {}))
    assert (need.score, need.items, need.selection, warnings) == (None, None, None, [])


def test_few_items_are_said(settings, tmp_path):
    sources = find_sources(settings["model"], None)
    rows = [{"text": f"text {i}", "label": i % 3} for i in range(20)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings["fitness"]["tasks"] = {
        "animals": {"items": str(tmp_path / "few.jsonl"), "head": str(sources.tasks["animals"].head)}
    }
    settings["fitness"]["items"] = 2
    _, need, warnings = needs(settings, find_sources(settings["model"], settings["fitness"]["tasks"]))
    assert need.items == 2
    assert warnings[0].startswith("few search items")


def test_a_fitness_that_fails(settings, tmp_path):
    (tmp_path / "mine.py").write_text("def score(model, tokenizer, items):\n    raise KeyError('x')\n")
    config = compose(
        "model=pico",
        "fitness=custom",
        f"fitness.function={tmp_path / 'mine.py'}:score",
        f"model.suite={settings['model']['suite']}",
        f"model.cache={settings['model']['cache']}",
    )
    with pytest.raises(ConfigError, match="fails on the base"):
        needs(plain(config), find_sources(settings["model"], None))


def test_a_fitness_that_hangs_has_the_limit_of_a_search(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "LEAST", 0.5)
    (tmp_path / "mine.py").write_text("import time\n\ndef score(model, tokenizer, items):\n    time.sleep(60)\n")
    config = compose(
        *("model=pico", "fitness=custom", f"fitness.function={tmp_path / 'mine.py'}:score", "time_limit=0.1"),
        *(f"model.suite={settings['model']['suite']}", f"model.cache={settings['model']['cache']}"),
    )
    with pytest.raises(ConfigError, match=r"fails on the base.*took longer than the 0\.5 s that time_limit=0\.1"):
        needs(plain(config), find_sources(settings["model"], None))


def test_a_score_that_is_not_finite_is_refused_as_in_a_search(settings, tmp_path):
    body = "return {task: [float('nan')] * len(chosen) for task, chosen in items.items()}"
    (tmp_path / "mine.py").write_text(f"def score(model, tokenizer, items):\n    {body}\n")
    config = compose(
        *("model=pico", "fitness=custom", f"fitness.function={tmp_path / 'mine.py'}:score"),
        *(f"model.suite={settings['model']['suite']}", f"model.cache={settings['model']['cache']}"),
    )
    said = []
    for verb in (
        lambda: needs(plain(config), find_sources(settings["model"], None)),
        lambda: run_search(config, tmp_path / "run", Reporter()),
    ):
        with pytest.raises(EvomergeError) as caught:
            verb()
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_heads_are_given_what_is_merged(own_classifiers, tmp_path, monkeypatch):
    """The pooler that the base lacks is drawn at random in the live model, and the expert's own runs in its head."""
    base = shutil.copytree(own_classifiers / "base", tmp_path / "base")
    rewritten(base, lambda tensors: {name: one for name, one in tensors.items() if "pooler" not in name})
    given = plain(
        compose(
            *(f"model.base={base}", f"model.experts=[{own_classifiers / 'mood'}]", "model.device=cpu"),
            *(f"model.cache={tmp_path / 'cache'}", f"fitness.tasks={{mood: {own_classifiers / 'mood.jsonl'}}}"),
        )
    )
    seen, call = [], LiveFitness.__call__
    monkeypatch.setattr(LiveFitness, "__call__", lambda self, ids: seen.append(call(self, ids)) or seen[-1])
    needs(given, find_sources(given["model"], given["fitness"]["tasks"]))
    whole = build_problem(given, Reporter())
    whole.become(None)
    live_fitness(whole, whole.items["search"])(make_subsets(whole)["search"](0))
    inspected, searched = (outcome.results["mood"]["log_probability"] for outcome in (seen[0], seen[-1]))
    assert inspected == pytest.approx(searched, abs=1e-6)


def test_items_of_all_splits_are_looked_at_as_in_a_search(settings, tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr("evomerge.inspection.estimates.check_items", lambda *given: checked.append(given[-1]))
    needs(settings, find_sources(settings["model"], None))
    assert checked == ["search", "select", "report"]


def test_experts_that_do_not_fit_need_nothing(settings, tmp_path, pico_suite):
    broken = shutil.copytree(pico_suite.experts["trees"], tmp_path / "broken")
    rewritten(broken, lambda tensors: {name: torch.full_like(tensor, math.nan) for name, tensor in tensors.items()})
    sources = Sources(pico_suite.base, {"good": pico_suite.experts["animals"], "broken": broken}, {})
    found, need, _ = needs(settings, sources)
    assert [member.name for member in found.refused] == ["broken"]
    changed = [np.prod(found.parameters[name]) for name, one in found.tensors.items() if one.signs.shared[0, 0]]
    assert need.task_vectors == 4 * sum(changed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [Linear(), Ties()], ids=["linear", "ties"])
def test_time_of_a_merge(monkeypatch, method, dtype):
    """The best of three, over what is read and written: base, three task vectors and the model."""
    seconds = iter([9.0, 6.0, 8.0])
    monkeypatch.setattr("evomerge.inspection.estimates.SAMPLE", 1 << 12)
    monkeypatch.setattr("evomerge.inspection.estimates._seconds", lambda merge: merge() or next(seconds))
    state = torch.get_rng_state()
    assert time_merge(method, 3, dtype, "cpu") == 6.0 / ((1 << 12) // 3 * 5)
    assert torch.equal(torch.get_rng_state(), state)
