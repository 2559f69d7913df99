"""The page of a run: whole, closed to the outside, and true to the run directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge.cli.progress import Reporter
from evomerge.cli.report import main
from evomerge.common.errors import ConfigError
from evomerge.report import write_report, write_sweep
from evomerge.report.facts import RunFacts
from evomerge.report.pictures import gains, tasks
from evomerge.report.sweep import ranked
from evomerge.report.wording import with_error
from evomerge.runs.directory import open_run, record_command
from evomerge.runs.run import run_search
from tests.kit.helpers import compose
from tests.kit.pages import read
from tests.kit.reports import finish, write_run

NASTY = '<script>alert("1")</script>'


@pytest.fixture(autouse=True)
def only_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of the time; test_report_pictures.py has them."""
    monkeypatch.setattr("evomerge.report.pictures.of_run", lambda *_: None)
    monkeypatch.setattr("evomerge.report.pictures.of_sweep", lambda *_: None)


@pytest.fixture(scope="module")
def pico_run(pico_suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real search on pico models."""
    settings = [f"model.suite={pico_suite.path}", f"model.cache={tmp_path_factory.mktemp('cache')}", "model.device=cpu"]
    directory = tmp_path_factory.mktemp("runs") / "pico"
    config = compose("model=pico", *settings, "budget=22", "fitness.items=30")
    assert run_search(config, directory, Reporter()) is not None
    return directory


def test_a_real_run_has_the_numbers_of_its_summary(pico_run: Path) -> None:
    page = read(write_report(pico_run))
    summary = json.loads((pico_run / "summary.json").read_text())
    for row in summary["report"].values():
        assert with_error(row["mean"], row["se"]).replace("\xa0", " ") in page.text.replace("\xa0", " ")
        for task, score in row["tasks"].items():
            assert f"{with_error(score, row['tasks_se'][task], 3)}" in " ".join(page.texts)
    difference = summary["paired"]["winner_vs_best_constant"]
    assert with_error(abs(difference["diff"]), difference["se"]) in " ".join(page.texts)
    assert "600 report items" in page.text
    assert "log_probability" in page.text  # the settings stand there
    for name, version in summary["versions"].items():
        assert f"{name} {version}" in page.text


def test_every_trial_is_a_dot_and_every_coefficient_a_cell(pico_run: Path) -> None:
    page = read(write_report(pico_run))
    dots = [
        value for tag, name, value in page.attributes if tag == "circle" and name == "class" and value == "mark dot"
    ]
    constants = len(json.loads((pico_run / "summary.json").read_text())["select"]["constants"])
    assert len([tag for tag in page.tags if tag == "circle"]) >= 22 + constants
    assert len(dots) >= 22 + constants - 1  # the best constant has a mark of its own
    cells = [value for tag, name, value in page.attributes if tag == "td" and name == "title"]
    assert len(cells) == 3 * 3


def test_the_same_run_gives_the_same_page(pico_run: Path) -> None:
    first = write_report(pico_run).read_bytes()
    assert write_report(pico_run).read_bytes() == first


def test_whatever_people_name_is_escaped(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "a <b> & run",
        tasks=(NASTY, "b&b"),
        experts=('"><img src=x onerror=alert(1)>', "{{ 271828 * 314159 }}"),
        errors={3: f"ValueError: {NASTY}"},
    )
    warned = {f"beware of {NASTY}": 1}
    for page in (read(write_report(run)), read(write_report(finish(run, logged=warned))), read(write_sweep([run]))):
        assert "img" not in page.tags
        assert str(271828 * 314159) not in page.text
        assert "a <b> & run" in page.text
    page = read(write_report(run))
    assert NASTY in page.text
    assert f"beware of {NASTY}" in page.text
    assert '"><img src=x onerror=alert(1)>' in page.text


def test_a_search_that_goes_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "budget=200", errors={5: "OutOfMemoryError"})
    page = read(write_report(run))
    assert "candidate 12 of 200" in page.text
    assert "it still runs, or it was stopped" in page.text
    assert "1 of 12 candidates failed" in page.text
    assert "OutOfMemoryError" in page.text
    assert "Coefficients" in page.text
    assert "From split to split" not in page.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batches": 0}, "has not scored a candidate yet"),
        ({"errors": dict.fromkeys(range(1, 13), "RuntimeError: no")}, "No candidate could be scored"),
        ({"batches": 0, "steps": 3}, "The latest cross entropy is"),
        ({"batches": 1, "steps": 12}, "Loss of the gradient steps"),
    ],
)
def test_little_to_show(arguments: dict, said: str, tmp_path: Path) -> None:
    page = read(write_report(write_run(tmp_path / "run", **arguments)))
    assert said in page.text


def test_a_summary_that_is_older_than_the_log(tmp_path: Path) -> None:
    run = finish(write_run(tmp_path / "run"), trials=8)
    assert "has gone on after its winner was scored" in read(write_report(run)).text


def test_a_run_of_an_earlier_version_has_no_errors_of_tasks(tmp_path: Path) -> None:
    run = finish(write_run(tmp_path / "run"))
    summary = json.loads((run / "summary.json").read_text())
    for row in summary["report"].values():
        del row["tasks_se"]
    for key in ("tasks", "tasks_se"):
        del summary["paired"]["winner_vs_best_constant"][key]
    (run / "summary.json").write_text(json.dumps(summary))
    page = read(write_report(run))
    assert "standard errors of the means only" in page.text
    assert "on the same items, ± one standard error" not in page.text


def test_experts_that_do_not_cover_all_tasks_and_errors_that_are_not_known(tmp_path: Path) -> None:
    run = finish(write_run(tmp_path / "run"), se=None)
    summary = json.loads((run / "summary.json").read_text())
    summary["report"]["experts"] |= {"mean": None, "se": None, "tasks": {"news": 0.8}, "tasks_se": {"news": None}}
    summary["report"]["winner"] |= {"se": None}
    (run / "summary.json").write_text(json.dumps(summary))
    page = read(write_report(run))
    assert "too few report items to say how sure" in page.text
    assert "None" not in page.text


def test_a_metric_that_is_negative(tmp_path: Path) -> None:
    run = finish(write_run(tmp_path / "run", "fitness.report_metric=log_probability"), metric="log_probability")
    summary = json.loads((run / "summary.json").read_text())
    for row in summary["report"].values():
        row["mean"] -= 2
        row["tasks"] = {task: score - 2 for task, score in row["tasks"].items()}
    (run / "summary.json").write_text(json.dumps(summary))
    page = read(write_report(run))
    assert "−1.3700 ± 0.0080" in page.text.replace("\xa0", " ")
    assert "the winner’s log probability is −1.3700" in page.text


def test_a_search_on_public_items_says_so_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "+fitness.public_test=true")
    page = read(write_report(run))
    assert "Before you read on This search has looked at splits on which results are published" in page.text


def test_the_page_shows_the_command_that_made_the_run(tmp_path: Path) -> None:
    run = finish(write_run(tmp_path / "run"))
    assert (
        f"names no command: another program ran this search, or an earlier version of evomerge. Its settings are "
        f"below, and in {run}/config.yaml" in read(write_report(run)).text
    )
    record_command(run, "evomerge search 'model.base=a & b' seed=2")
    assert "evomerge search 'model.base=a & b' seed=2" in read(write_report(run)).text
    record_command(run, None)  # gone on with from a program
    assert "names no command" in read(write_report(run)).text


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        finish(write_run(tmp_path / "runs" / name))
    main(["runs/a"])
    main(["runs/a", "-o", "out/page.html"])
    main(["runs/a", "runs/b"])
    assert capsys.readouterr().out.splitlines() == ["runs/a/report.html", "out/page.html", "runs/report.html"]
    assert (tmp_path / "out" / "page.html").is_file()
    main(["runs/a", "-o", "out"])
    main(["runs/a", "runs/b", "-o", str(tmp_path / "runs" / "a")])
    assert capsys.readouterr().out.splitlines() == ["out/report.html", "runs/a/report.html"]
    for runs in (["runs/a"], ["runs/a", "runs/b"]):
        with pytest.raises(
            ConfigError, match=r"elsewhere is no directory, and no name of a page: write elsewhere\.html"
        ):
            main([*runs, "-o", "elsewhere"])
    main(["runs/a", "-o", "elsewhere.html"])
    capsys.readouterr()
    with pytest.raises(ConfigError, match=r"runs is no run directory.*runs/a"):
        main(["runs"])
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "examples:" in capsys.readouterr().out


def test_a_run_whose_report_has_no_numbers_is_drawn(tmp_path: Path) -> None:
    """As those of earlier versions, where a fitness gave no finite numbers on the report split."""
    runs = [finish(write_run(tmp_path / name)) for name in ("a", "b")]
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        empty = dict.fromkeys(summary["report"]["base"]["tasks"])
        nothing = {"se": None, "tasks": empty, "tasks_se": empty}
        for name in ("base", "best_constant", "winner"):
            summary["report"][name] = {"mean": None, **nothing}
        summary["paired"]["winner_vs_best_constant"] = {"diff": None, **nothing}
        (run / "summary.json").write_text(json.dumps(summary))
    page = read(write_report(runs[0]))
    assert "is worth is not known" in page.text
    assert "has no score on the report items" in page.text
    assert "None" not in page.text
    assert "cannot be held against that of the best constant" in read(write_sweep(runs)).text
    gains(ranked([RunFacts(open_run(run)) for run in runs]), {run.name: run.name for run in runs})
    tasks(RunFacts(open_run(runs[0])))
