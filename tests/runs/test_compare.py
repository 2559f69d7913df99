"""A comparison on pico models: who is scored where, what is remembered, and what belongs to what."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from evomerge.common.errors import ConfigError, LogError
from evomerge.common.progress import Silent
from evomerge.fitness.base import Outcome
from evomerge.recipes.mergekit.read import read_mergekit
from evomerge.runs.build import build_problem, find_start
from evomerge.runs.compare import run_comparison
from evomerge.runs.compared import COSTS, LOG
from evomerge.runs.contestants import read_compared
from evomerge.runs.suite import Suite
from evomerge.runs.transforms import resolved
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.search.journal import read_log
from evomerge.search.stopping import Interrupt
from evomerge.selection.judge import Judge
from evomerge.selection.standings import Standings
from evomerge.selection.statistics import paired, score_of
from evomerge.transforms.base import Transform
from tests.kit.evaluations import elsewhere, settings_of, sources_of

CONSTANTS = [0.2, 0.6, 1.0]
SEVEN = ["trim", "elect", "magmax", "consensus", "sce", "tsvm", "iso_c"]


class Scored:
    """Counts the models that are scored on items of each split."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.stop: tuple[int, Interrupt] | None = None

    def by_split(self) -> Counter[str]:
        return Counter(self.calls)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scored]:
    """What is really scored, in this process."""
    spy, score = Scored(), LiveFitness.__call__

    def call(self: LiveFitness, ids: Any) -> Any:
        spy.calls.append(json.dumps({task: sorted(chosen) for task, chosen in ids.items()}, sort_keys=True))
        if spy.stop and len(spy.calls) >= spy.stop[0]:
            spy.stop[1].requested = True
        return score(self, ids)

    monkeypatch.setattr(LiveFitness, "__call__", call)
    return spy


@pytest.fixture(scope="module")
def settings(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return settings_of(*sources_of(pico_suite, tmp_path_factory.mktemp("cache")))


def compare(settings: dict[str, Any], directory: Path, methods: list[Any], **more: Any) -> Standings:
    found = run_comparison(settings, read_compared({"methods": methods, **more}), directory, Silent())
    assert found is not None
    return found


def lines(directory: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_log(directory / LOG) if line["kind"] == kind]


def test_three_methods_end_to_end(settings: dict[str, Any], tmp_path: Path) -> None:
    found = compare(settings, tmp_path, ["transform:ties", "tsvm", "slerp"], constants=CONSTANTS)
    assert {row.name for row in found.rows} == {"linear", "transform:ties", "tsvm"}
    assert [row.value for row in found.rows] == sorted((row.value for row in found.rows), reverse=True)
    assert list(found.left_out) == ["slerp"]
    assert "and there are 3" in found.left_out["slerp"]
    constants = {f"{one:g}" for one in CONSTANTS}
    for row in found.rows:
        assert set(row.values) == constants
        whole = {weight: value for weight, value in row.values.items() if row.seen[weight] == found.items["select"]}
        assert max(whole, key=lambda weight: whole[weight] or -1) == f"{row.constant:g}"
        assert row.select.mean == pytest.approx(row.values[f"{row.constant:g}"])
        assert row.select.se
        assert row.cost.merge
        assert row.cost.nbytes
        assert row.tested
        assert row.tested.score
        if row.name == "linear":
            assert row.ahead is row.tested.difference is row.tested.corrected is None
        else:
            assert row.ahead
            assert row.tested.difference
            assert row.tested.verdict in ("better", "same", "worse")
    assert found.base["select"]
    assert found.base["report"]
    assert Standings.from_json((tmp_path / "comparison.json").read_text()) == Standings.from_json(found.to_json())


def test_only_five_and_task_arithmetic_are_ever_scored_on_report(
    settings: dict[str, Any], tmp_path: Path, scored: Scored
) -> None:
    found = compare(elsewhere(settings, tmp_path), tmp_path, SEVEN, constants=[0.4])
    assert [row.name for row in found.tested] == [row.name for row in found.rows if row.name != "linear"][:5]
    untested = [row.name for row in found.rows if row.tested is None]
    assert len(untested) == 2
    written = {(line["name"], line["split"]) for line in lines(tmp_path, "score")}
    assert written == {(name, "report") for name in ("base", "linear", *(row.name for row in found.tested))} | {
        ("base", "select")
    }
    outcomes = [json.loads(file.read_text()) for file in (tmp_path / "cache" / "outcomes").glob("*.json")]
    size = found.items["report"]
    on_report = [one for one in outcomes if sum(map(len, one["items"].values())) == size]
    assert len(on_report) == 7
    ids = json.dumps({task: sorted(chosen) for task, chosen in on_report[0]["items"].items()}, sort_keys=True)
    assert scored.by_split()[ids] == 7


def test_nothing_is_scored_twice_however_often_it_is_stopped(
    settings: dict[str, Any], tmp_path: Path, scored: Scored
) -> None:
    whole = compare(elsewhere(settings, tmp_path / "a"), tmp_path / "a" / "run", ["trim", "sce"], constants=[0.4, 1.0])
    expected, calls = scored.by_split(), len(scored.calls)
    scored.calls.clear()
    again, directory = elsewhere(settings, tmp_path / "b"), tmp_path / "b" / "run"
    two = read_compared({"methods": ["trim", "sce"], "constants": [0.4, 1.0]})
    for stop in (1, calls // 2, calls - 2):
        interrupt = Interrupt()
        scored.stop = stop, interrupt
        assert run_comparison(again, two, directory, Silent(), interrupt) is None
    scored.stop = None
    found = compare(again, directory, ["trim", "sce"], constants=[0.4, 1.0])
    assert scored.by_split() == expected
    assert (directory / LOG).read_bytes() == (tmp_path / "a" / "run" / LOG).read_bytes()
    assert without_costs(found) == without_costs(whole)
    scored.calls.clear()
    assert without_costs(compare(again, directory, ["trim", "sce"], constants=[0.4, 1.0])) == without_costs(whole)
    assert scored.calls == []
    other = compare(
        again, tmp_path / "b" / "other", ["sce"], constants=[0.4, 1.0]
    )  # another comparison finds what is there
    assert {row.name for row in other.rows} == {"linear", "sce"}
    assert scored.calls == []


def without_costs(found: Standings) -> dict[str, Any]:
    content = json.loads(found.to_json())
    for row in content["rows"]:
        del row["cost"]
    return content


def test_a_search_finds_what_a_comparison_has_scored(settings: dict[str, Any], tmp_path: Path, scored: Scored) -> None:
    """And the other way about: a constant is the same merge, whoever asks for it."""
    own = elsewhere(settings, tmp_path)
    compare(own, tmp_path / "run", ["sce"], constants=[1.0])
    problem = build_problem({**own, "transform": resolved("sce")}, Silent())
    fitnesses = {split: live_fitness(problem, problem.items[split]) for split in ("select", "report")}
    judge = Judge(problem, SerialScorer(problem, fitnesses), make_subsets(problem), Interrupt())
    scored.calls.clear()
    for split in ("select", "report"):
        judge.merged(problem.space.constant(1.0), split)
    assert scored.calls == []
    judge.merged(problem.space.constant(0.5), "report")
    assert len(scored.calls) == 1


def test_one_weight_for_cart_is_that_of_what_experts_have_beside_the_average(
    settings: dict[str, Any], tmp_path: Path, scored: Scored
) -> None:
    """And a weight beyond the usual bounds of a search is scored, remembered and read again as any other."""
    own = elsewhere(settings, tmp_path)
    found = compare(own, tmp_path / "run", ["cart"], constants=[2.0])
    problem = build_problem({**own, "transform": resolved("cart")}, Silent())
    fitnesses = {split: live_fitness(problem, problem.items[split]) for split in ("select", "report")}
    judge = Judge(problem, SerialScorer(problem, fitnesses), make_subsets(problem), Interrupt())
    scored.calls.clear()
    assert problem.space.rows[0] == "average"
    outcome = judge.merged(problem.space.constant(np.array([1.0, 2.0, 2.0, 2.0])), "select")
    assert scored.calls == []
    row = next(row for row in found.rows if row.name == "cart")
    assert score_of(outcome, found.metric) == row.select
    assert Standings.from_json((tmp_path / "run" / "comparison.json").read_text()) == found


def yaml_of(settings: dict[str, Any], method: str, parameters: str, *experts: str) -> str:
    """A merge YAML of mergekit's for experts of the pico suite."""
    suite = Path(settings["model"]["suite"])
    models = "".join(f"- {{model: {suite}/experts/{name}, parameters: {{{parameters}}}}}\n" for name in experts)
    return f"merge_method: {method}\nbase_model: {suite}/base\nmodels:\n{models}"


def test_a_merge_yaml_and_a_closed_form_take_part_with_one_merge(
    settings: dict[str, Any], tmp_path: Path, scored: Scored
) -> None:
    """The YAML of what is there by name is that very merge; a search that starts with a closed form finds it scored."""
    own, experts = elsewhere(settings, tmp_path), ("animals", "metals", "trees")
    told = {
        "sum.yml": ("task_arithmetic", "weight: 1", experts),
        "sce.yml": ("sce", "weight: 1", experts),
        "bent.yml": ("task_arithmetic", "weight: [0.2, 0.9]", experts),
        "slerp.yml": ("slerp", "weight: 1", experts[:1]),
        "few.yml": ("sce", "weight: 1", experts[:2]),
    }
    for name, (method, parameters, models) in told.items():
        more = "parameters: {t: 0.5}\n" if method == "slerp" else ""
        (tmp_path / name).write_text(yaml_of(own, method, parameters, *models) + more)
    files = [str(tmp_path / name) for name in told]
    found = compare(own, tmp_path / "run", ["sce", "start:metagpt", *files], constants=[1.0])
    rows = {row.name: row for row in found.rows}
    assert set(rows) == {"linear", "sce", "start:metagpt", "sum.yml", "sce.yml", "bent.yml"}
    assert "and there are 3" in found.left_out["slerp.yml"]
    assert found.left_out["few.yml"].endswith("lacks trees: compare it where model.experts names those that it has")
    for name, same in (("sum.yml", "linear"), ("sce.yml", "sce")):
        assert (rows[name].select, rows[name].values) == (rows[same].select, rows[same].values)
    problem = build_problem(own, Silent())
    fitnesses = {split: live_fitness(problem, problem.items[split]) for split in ("select", "report")}
    judge = Judge(problem, SerialScorer(problem, fitnesses), make_subsets(problem), Interrupt())
    scored.calls.clear()
    judge.merged(problem.space.complete(find_start({**own, "start": "metagpt"}, problem, Silent()) or {}), "select")
    assert scored.calls == []
    told_of = read_mergekit((tmp_path / "bent.yml").read_text(), tmp_path, Silent()).recipe
    weights = told_of.on_groups(problem.space.groups, problem.space.rows, problem.vectors.parameters)
    assert score_of(judge.merged(weights, "select"), found.metric) == rows["bent.yml"].select
    (tmp_path / "bent.yml").write_text(yaml_of(own, "task_arithmetic", "weight: 0.3", *experts))
    with pytest.raises(LogError, match="differs in the methods or their weights"):
        compare(own, tmp_path / "run", ["sce", "start:metagpt", *files], constants=[1.0])
    (tmp_path / "bent.yml").write_text(yaml_of(own, "task_arithmetic", "weight: 0.3", "nobody"))
    with pytest.raises(ConfigError, match=r"bent.yml: line 4: .*nobody is none of the experts"):
        compare(own, tmp_path / "run", files)


def test_uniform_weights_and_those_of_scored_experts_are_starts(
    settings: dict[str, Any], tmp_path: Path, scored: Scored
) -> None:
    """What the comparison has scored is what searches begin with that have these starts."""
    own, starts = elsewhere(settings, tmp_path), ["start:1/K", "start:cocktail"]
    found = compare(own, tmp_path / "run", starts, constants=[0.5])
    rows = {row.name: row for row in found.rows}
    assert set(rows) == {"linear", *starts}
    assert rows["start:cocktail"].needs == "a score of each expert"
    problem = build_problem(own, Silent())
    fitnesses = {split: live_fitness(problem, problem.items[split]) for split in ("select", "report")}
    judge = Judge(problem, SerialScorer(problem, fitnesses), make_subsets(problem), Interrupt())
    cocktail = find_start({**own, "start": "cocktail"}, problem, Silent())
    assert cocktail is not None
    np.testing.assert_allclose(np.sum(cocktail["weight"], axis=1), 1)
    scored.calls.clear()
    for name, weights in (("start:1/K", np.array(1 / 3)), ("start:cocktail", cocktail["weight"])):
        outcome = judge.merged(problem.space.complete({"weight": weights}), "select")
        assert score_of(outcome, found.metric) == rows[name].select
    assert scored.calls == []
    assert "scored" in next(read_log(tmp_path / "run" / LOG))["identity"]  # experts, on search items
    compare(own, tmp_path / "run", starts, constants=[0.5])
    assert scored.calls == []


def test_settings_of_a_search_that_mean_nothing_are_refused_or_said(settings: dict[str, Any], tmp_path: Path) -> None:
    two, said = read_compared({"methods": ["trim"], "constants": [0.4]}), Said()
    with pytest.raises(ConfigError, match=r"write 'compare\.methods=\[linear,start:1/K,start:lines,their\.yml\]'"):
        run_comparison({**settings, "baselines": ["1/K", "lines", 0.4, "their.yml"]}, two, tmp_path / "a", said)
    racing = {**settings["racing"], "alpha": 0.1}
    fitness = {**settings["fitness"], "rotate": True, "grow": 0.5}
    run_comparison({**settings, "racing": racing, "fitness": fitness}, two, tmp_path / "run", said)
    notes = [line for line in said.lines if "counts for nothing here" in line]
    assert [note.split()[1] for note in notes] == ["fitness.grow", "fitness.rotate", "racing.alpha"]


class Said(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Broken(Transform):
    """A transform that cannot do what it should."""

    name, title, paper = "broken", "breaks", "nobody 2026"

    def apply(self, name: str, deltas: Any, state: Any) -> Any:
        raise RuntimeError("no such thing")


class Endless(Transform):
    """A transform whose rows make no finite model."""

    name, title, paper = "endless", "grows", "nobody 2026"

    def apply(self, name: str, deltas: Any, state: Any) -> Any:
        return {row: delta * 1e30 for row, delta in deltas.items()}


def test_what_fails_is_named_with_its_reason_and_costs_itself_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    methods = [{"_target_": f"{__name__}.{kind.__name__}"} for kind in (Broken, Endless)]
    found = compare(settings, tmp_path, [*methods, "trim"], constants=[0.4])
    assert {row.name for row in found.rows} == {"linear", "trim"}
    assert found.left_out["Broken"] == "RuntimeError: no such thing"
    assert "no merge of it could be scored" in found.left_out["Endless"]
    again = compare(settings, tmp_path, [*methods, "trim"], constants=[0.4])
    assert again.left_out == found.left_out


@pytest.mark.parametrize(
    ("changes", "more", "words"),
    [
        ({"seed": 2}, {}, "the seed"),
        ({"fitness.select_items": 30}, {}, "the items"),
        ({"fitness.report_items": 30}, {}, "the items"),
        ({}, {"constants": [0.4]}, "the methods or their weights"),
        ({"model.experts": ["trees", "animals", "metals"]}, {}, "the experts"),
    ],
)
def test_another_comparison_is_refused_in_plain_words(
    begun: tuple[dict[str, Any], Path], changes: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    settings, directory = begun
    other = {**settings, "model": dict(settings["model"]), "fitness": dict(settings["fitness"])}
    for name, value in changes.items():
        *groups, last = name.split(".")
        (other[groups[0]] if groups else other)[last] = value
    before = (directory / LOG).read_bytes()
    with pytest.raises(LogError, match=f"holds another comparison, which differs in {words}.*--out"):
        run_comparison(other, read_compared({"methods": ["linear"], "constants": [1.0], **more}), directory, Silent())
    assert (directory / LOG).read_bytes() == before


@pytest.fixture(scope="module")
def begun(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    directory = tmp_path_factory.mktemp("begun")
    compare(settings, directory, ["linear"], constants=[1.0])
    return settings, directory


def test_costs_may_be_deleted(begun: tuple[dict[str, Any], Path]) -> None:
    settings, directory = begun
    before = compare(settings, directory, ["linear"], constants=[1.0])
    (directory / COSTS).unlink()
    found = compare(settings, directory, ["linear"], constants=[1.0])
    assert found.rows[0].cost.merge is None
    assert without_costs(found) == without_costs(before)


def test_paired_on_report_is_that_of_the_logged_results(settings: dict[str, Any], tmp_path: Path) -> None:
    found = compare(settings, tmp_path, ["trim"], constants=[0.4])
    results = {line["name"]: line["results"] for line in lines(tmp_path, "score") if line["split"] == "report"}
    one, other = (
        Outcome({task: list(map(str, range(len(row)))) for task, row in rows.items()}, as_arrays(rows))
        for rows in (results["trim"], results["linear"])
    )
    tested = found.tested[0].tested
    assert tested
    assert tested.difference == paired(one, other, "m")


def as_arrays(rows: dict[str, list[float]]) -> dict[str, dict[str, np.ndarray]]:
    return {task: {"m": np.array(row)} for task, row in rows.items()}


def test_two_processes_do_not_write_one_log(begun: tuple[dict[str, Any], Path]) -> None:
    settings, directory = begun
    with (
        FileLock(directory / "comparison.lock"),
        pytest.raises(LogError, match=r"Another process is working on .*another run directory \(--out runs/another\)"),
    ):
        compare(settings, directory, ["linear"], constants=[1.0])
