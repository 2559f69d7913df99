"""One search in this process, from settings to run directory."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError, EvomergeError, LogError, SpaceError
from evomerge.common.progress import Seconds, Silent, unlimited
from evomerge.recipes.recipe import Recipe
from evomerge.runs.build import build_problem, find_start
from evomerge.runs.config import plain
from evomerge.runs.outputs import show
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.runs.transforms import in_order
from evomerge.search.evaluators import serial
from evomerge.search.journal import read_log
from evomerge.selection import choosing
from evomerge.selection.summary import Summary
from evomerge.trials import Trial
from tests.kit.helpers import compose


@pytest.fixture(scope="module")
def settings(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [
        "model=pico",
        f"model.suite={pico_suite.path}",
        f"model.cache={tmp_path_factory.mktemp('cache')}",
        "model.device=cpu",
        "budget=13",
        "fitness.items=30",
    ]


@pytest.fixture(scope="module")
def finished(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    assert run_search(compose(*settings), directory, Reporter()) is not None
    return directory


def trials(directory: Path) -> int:
    return sum(line["kind"] == "trial" for line in read_log(directory / "trials.jsonl"))


def test_summary_and_recipe_agree(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    recipe = Recipe.from_yaml((finished / "recipe.yaml").read_text())
    assert summary["trials"] == trials(finished) == 13
    assert summary["failed"] == 0
    assert 0 < summary["noise"]["share"] <= 1
    assert recipe.scores["winner"]["mean"] == summary["report"]["winner"]["mean"]
    assert recipe.scores["kernels"] == "plain"  # the model is too small for compiled ones
    assert list(recipe.experts) == ["animals", "trees", "metals"]
    assert all((finished / path).is_file() for path in recipe.heads.values())
    selected = summary["select"]
    whole = [
        value for name, value in selected["constants"].items() if selected["seen"][name] == summary["items"]["select"]
    ]
    assert selected["finalists"][selected["winner"]] >= max(whole)  # those that were dropped have values on fewer items


def test_a_lower_budget_takes_nothing_back(finished: Path, settings: list[str]) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    again = run_search(compose(*settings, "budget=3"), finished, Reporter())
    assert again == Summary.from_json(before["summary.json"].decode())
    assert {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


def test_more_budget_goes_on(finished: Path, settings: list[str]) -> None:
    head = (finished / "trials.jsonl").read_bytes()
    summary = run_search(compose(*settings, "budget=15"), finished, Reporter())
    assert summary is not None
    assert trials(finished) == summary.trials == 15
    assert (finished / "trials.jsonl").read_bytes().startswith(head)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts written bytes as Linux does")
def test_a_candidate_writes_no_model(settings: list[str], pico_suite: Suite, tmp_path: Path) -> None:
    """What 20 candidates more make this process write, beyond their log, is less than one model."""
    few = ["fitness.select_items=30", "fitness.report_items=30"]  # what is judged is remembered on disk as well

    def written(budget: int) -> int:
        directory = tmp_path / str(budget)
        before = int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])
        assert run_search(compose(*settings, f"budget={budget}", "seed=5", *few), directory, Reporter()) is not None
        after = int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])
        return after - before - (directory / "trials.jsonl").stat().st_size

    first, more = written(6), written(26)
    assert more - first < (pico_suite.base / "model.safetensors").stat().st_size


def test_another_search_in_the_same_directory_is_refused(finished: Path, settings: list[str]) -> None:
    with pytest.raises(LogError, match="belongs to another search: seed was 1, is 2"):
        run_search(compose(*settings, "seed=2"), finished, Reporter())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fitness.select_items=1", r"fitness\.select_items is 1"),
        ("fitness.report_items=abc", r"fitness\.report_items=abc is no int or null"),
        ("budget_items=5", r"budget\.items=5 is less than one candidate costs, 30 items: raise it, or lower fitness"),
        ("budget_items=0", r"budget\.items=0 is less than one candidate costs, 30 items: raise it, or leave it out"),
        ("fitness.sampling=random", r"fitness\.sampling: Unknown choice 'random'"),
        ("fitness.grow=1", r"fitness\.grow=1 is no share of fitness\.items"),
        ("space.bounds={weight: [a, b]}", r"space\.bounds\.weight is"),
        ("space.frozen=[x]", r"space\.frozen is"),
        ("space.tied='weight/*'", r"space\.tied is"),
        ("space.tied=[{trees: -x}]", r"space\.tied has -x for trees, which is no number: write 'space\.tied=\[\{a: 1"),
        ("space.tied=[1]", r"space\.tied is 1: write 'space\.tied=\[\{a: 1, b: -0\.5\}\]'"),
        ("space.only=[1]", r"space\.only is \[1\]; write a list of patterns of what is searched"),
        ("objective.weights={animals: high}", r"objective\.weights has high"),
        ("seed=-1", "seed=-1 is negative"),
        ("budget=0", "at least 1"),
        ("budget_hours=0", r"budget\.hours=0 is no time"),
    ],
)
def test_settings_are_refused_before_the_search(
    override: str, message: str, settings: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_search(compose(*settings, override), tmp_path, Reporter())
    assert not (tmp_path / "trials.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["start=1.6"], r"start at 1\.6 for weight/.*of weight, \[0, 1\.5\].*space\.bounds=\{weight: \[0\.0, 1\.6\]"),
        (["start=-0.1"], r"start at -0\.1 for weight/.*weight: \[-0\.1, 1\.5\]"),
        (["start=1/K", "space.bounds={weight: [0, 0.2]}"], r"start at 0\.333333 for weight/.*\[0, 0\.2\]"),
        (["start={recipe}", "space.bounds={weight: [3, 4]}"], r"would start at .* bounds of weight, \[3, 4\]"),
    ],
)
def test_a_start_outside_the_bounds_is_refused_before_the_search(
    given: list[str], said: str, settings: list[str], finished: Path, tmp_path: Path
) -> None:
    given = [one.replace("{recipe}", str(finished / "recipe.yaml")) for one in given]
    with pytest.raises(SpaceError, match=said):
        run_search(compose(*settings, *given), tmp_path, Reporter())
    assert not (tmp_path / "trials.jsonl").exists()


def test_a_start_in_closed_form_is_of_the_rows_that_a_transform_made(settings: list[str]) -> None:
    chosen = in_order(plain(compose(*settings, "transform=unified", "start=metagpt", "space=model")))
    problem = build_problem(chosen, Silent())
    start = find_start(chosen, problem, Silent())
    assert start is not None
    assert start["weight"].tolist() == [[1.0]]


def test_bounds_without_a_usual_constant(settings: list[str], tmp_path: Path) -> None:
    narrow = ["space.bounds={weight: [-0.09, 0.01]}", "budget=3", "searcher=random", "searcher.batch=3", "start=0"]
    summary = run_search(compose(*settings, *narrow), tmp_path, Reporter())
    assert summary is not None
    assert all(-0.09 <= float(constant) <= 0.01 for constant in summary.select.constants)


FAILING = """
def score(model, processor, items):
    if {n} == sum(map(len, items.values())):
        {do}
    return {{task: [float(len(item.text)) for item in chosen] for task, chosen in items.items()}}
"""


@pytest.mark.parametrize(
    ("do", "said"),
    [
        ("raise ValueError('of my own')", r"the base cannot be scored on the report split: ValueError: of my own"),
        (
            "return {task: [float('nan'), *[1.0] * (len(chosen) - 1)] for task, chosen in items.items()}",
            r"the base cannot .*score of 1 of 30 items of animals is not a finite number",
        ),
    ],
)
def test_a_function_that_fails_on_the_report_split_leaves_its_trials(
    do: str, said: str, settings: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(FAILING.format(n=90, do=do))
    given = ["fitness=custom", f"fitness.function={tmp_path}/mine.py:score", "budget=3", "searcher=random"]
    sizes = ["fitness.items=30", "fitness.select_items=60", "fitness.report_items={}"]
    run = tmp_path / "run"
    with pytest.raises(EvomergeError, match=said):
        run_search(compose(*settings, *given, *sizes[:2], sizes[2].format(90)), run, Reporter())
    assert trials(run) == 3
    assert not (run / "summary.json").exists()
    log = (run / "trials.jsonl").read_bytes()
    assert run_search(compose(*settings, *given, *sizes[:2], sizes[2].format(120)), run, Reporter()) is not None
    assert (run / "trials.jsonl").read_bytes() == log


def test_a_summary_without_numbers_is_shown(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As those of earlier versions, where a fitness gave no finite numbers on the report split."""
    summary = json.loads((finished / "summary.json").read_text())
    empty = dict.fromkeys(summary["report"]["winner"]["tasks"])
    summary["report"]["winner"] = {"mean": None, "se": None, "tasks": empty}
    summary["paired"]["winner_vs_best_constant"] = {"diff": None, "se": None}
    show(Summary.from_json(json.dumps(summary)), finished, Reporter())
    captured = capsys.readouterr()
    assert ": unknown (paired)" in captured.out + captured.err


def test_the_selection_counts_what_it_scores(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the end, also where nothing has to be scored again; and the best constant once."""
    monkeypatch.setattr("evomerge.cli.progress.PLAIN_EVERY", 0.0)
    asked, choose = list[str](), choosing.choose

    def watched(merges: Any, score: Any, *more: Any) -> Any:
        return choose(merges, lambda name, part: asked.append(name) or score(name, part), *more)

    monkeypatch.setattr(choosing, "choose", watched)
    for name in ("one", "two"):
        run_search(
            compose(*settings, "fitness.select_items=30", "fitness.report_items=60"), tmp_path / name, Reporter()
        )
        counted = re.findall(r"([\d,]+) of ([\d,]+) items scored", capsys.readouterr().err)
        assert len(counted) > 15  # constants, finalists, and the four of the report
        assert counted[-1][0] == counted[-1][1]
        assert len({total for _, total in counted}) == 1
    assert asked
    assert not [name for name in asked if name.startswith("constant ")]  # that one is known when it is a finalist


class Timed(Silent):
    """A clock by which each candidate takes a second, and nothing else takes any; and what was told."""

    def __init__(self) -> None:
        self.now, self.lines = 0.0, []

    def clock(self) -> float:
        return self.now

    def say(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def searching(
        self, past: Sequence[Trial], budget: int, left: Seconds = unlimited
    ) -> Iterator[Callable[[Trial], None]]:
        def second(trial: Trial) -> None:
            self.now += 1.0

        yield second


def test_hours_end_a_search_and_the_same_command_goes_on(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What choosing takes, as much as 26 candidates do here, is kept back."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) / 2)  # a candidate looks at it twice after its merge
    monkeypatch.setattr(serial, "time", clock)
    monkeypatch.setattr("evomerge.runs.preflight._merge_seconds", lambda *given: 0.0)
    told, given = Timed(), [*settings, "seed=7", "fitness.select_items=30", "fitness.report_items=30"]

    def search(name: str, *more: str) -> Summary:
        summary = run_search(compose(*given, *more), tmp_path / name, told, clock=told.clock)
        assert summary is not None
        return summary

    few = f"budget_hours={26.9 / 3600}"
    with pytest.raises(
        ConfigError, match=r"takes about 1 s, and choosing the winner up to 26 s\. Write budget\.hours=0"
    ):
        search("run", few)
    assert not (tmp_path / "run" / "trials.jsonl").exists()
    whole, hours = search("whole"), f"budget_hours={33.5 / 3600}"
    first = search("run", hours)
    assert (first.stop, first.trials) == ("time", 7)
    assert any("leaves time for about 7 candidates (7 s)" in line for line in told.lines)
    assert any(line.startswith("The hours are spent") for line in told.lines)
    log = (tmp_path / "whole" / "trials.jsonl").read_bytes()
    assert log.startswith((tmp_path / "run" / "trials.jsonl").read_bytes())
    assert search("run", few, "budget=3") == first  # a lower budget takes nothing back, and needs no time
    last = search("run", hours)
    assert (last.stop, last.trials, last.select) == ("budget", 13, whole.select)
    assert (tmp_path / "run" / "trials.jsonl").read_bytes() == log
    assert search("run", hours) == last  # now it is complete
    warned = "fitness.grow), and budget.hours=0.00930556 leaves time for about 10 of them, so the last ones will"
    assert not any("fitness.grow" in line for line in told.lines)
    search("grown", f"budget_hours={33.5 / 3600:.8f}", "fitness.grow=0.5")
    assert any(f"over 13 candidates ({warned}" in line and "write budget=10, or" in line for line in told.lines)
    told.lines.clear()
    search("grown whole", f"budget_hours={33.5 / 3600:.8f}", "fitness.grow=0.5", "budget=10")
    assert not any("fitness.grow" in line for line in told.lines)
