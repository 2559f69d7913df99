"""`evomerge compare` as people type it: table, page, kill and resume, and what is refused."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli.compare import _unused
from evomerge.cli.main import main
from evomerge.runs.compared import LOG
from evomerge.runs.config import plain
from evomerge.runs.suite import Suite
from evomerge.search.stopping import Interrupt
from tests.kit.evaluations import sources_of
from tests.kit.helpers import compose
from tests.kit.pages import read
from tests.processes.command import begun, evomerge
from tests.processes.waiting import PATIENCE, size, wait_until

ASKED = ("compare.methods=[magmax,tsvm,slerp]", "compare.constants=[0.4,1.0]")


def settings(suite: Suite, cache: Path) -> list[str]:
    return [one for one in sources_of(suite, cache) if not one.startswith("fitness.items")]


def without_costs(directory: Path) -> dict[str, Any]:
    content = json.loads((directory / "comparison.json").read_text())
    for row in content["rows"]:
        del row["cost"]
    del content["command"]
    return content


def numbers(table: str) -> list[list[str]]:
    """The cells of a table but for what clocks say."""
    rows = [line.split("│")[1:-1] for line in table.splitlines() if "│" in line]
    return [[cell.strip() for i, cell in enumerate(row) if i not in (6, 7)] for row in rows]


@pytest.mark.slow
def test_a_kill_and_a_resume_give_the_same_table(pico_suite: Suite, tmp_path: Path) -> None:
    def command(name: str) -> list[str]:
        place = tmp_path / name
        return ["compare", *settings(pico_suite, place / "cache"), *ASKED, "--out", str(place / "run")]

    whole = evomerge(*command("whole"), cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    expected = (tmp_path / "whole" / "run" / LOG).read_bytes()
    log = tmp_path / "killed" / "run" / LOG
    for share in (0.3, 0.8):
        with begun(*command("killed"), cwd=tmp_path) as running:
            process, goal = running.process, share * len(expected)
            wait_until(lambda: size(log) >= goal or not process.is_alive(), "the next line", PATIENCE)  # noqa: B023
            process.kill()
            done = running.end(PATIENCE)
            assert done.returncode in (0, -signal.SIGKILL), done.stderr
        assert expected.startswith(log.read_bytes().rpartition(b"\n")[0])
    done = evomerge(*command("killed"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert log.read_bytes() == expected
    assert without_costs(tmp_path / "whole" / "run") == without_costs(tmp_path / "killed" / "run")
    assert numbers(done.stdout) == numbers(whole.stdout)
    assert "left out: slerp: The method slerp merges the base and one expert, and there are 3" in done.stdout
    assert [row[0] for row in numbers(done.stdout)[1:]][-1] == "base"
    page = read(tmp_path / "killed" / "run" / "report.html")
    assert "3 methods in run" in page.text
    drawn = evomerge("report", str(tmp_path / "killed" / "run"), "-o", str(tmp_path / "page.html"), cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert read(tmp_path / "page.html").text == page.text


def test_the_directory_is_named_by_the_comparison_and_a_stop_is_told(
    pico_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[Path] = []

    def stopped(
        settings: Any, compared: Any, directory: Path, reporter: Any, interrupt: Interrupt, command: str
    ) -> None:
        places.append(directory)
        interrupt.by = signal.SIGTERM

    monkeypatch.setattr("evomerge.runs.compare.run_comparison", stopped)
    own = [*settings(pico_suite, tmp_path / "cache"), "compare.methods=[linear]", "compare.constants=[1.0]"]
    for more in ([], ["seed=2"], ["compare.constants=[0.5]"], [], ["--out", "here", "seed=3"]):
        with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
            main(["compare", *own, *more])
    assert places.pop() == Path("here")
    assert len(places) == 4
    assert places[0] == places[3]
    assert len(set(places)) == 3
    assert all(place.parent == Path("runs") and place.name.startswith("compare-pico") for place in places)


def test_what_counts_for_little_is_said() -> None:
    usual = plain(compose("model=pico"))
    assert _unused(usual, usual, ["model"]) == []
    (items,) = _unused(usual, usual, ["model", "fitness.items"])
    assert items.startswith("fitness.items counts for start:cocktail alone")
    assert items.endswith("fitness.select_items")
    (note,) = _unused(plain(compose("model=pico", "experiment=adarank")), usual, ["experiment"])
    assert note.startswith("transform, space, searcher, loss, start of the experiment count for nothing here")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model=pico", "space=tensor"), "space has no meaning here"),
        (("model=pico", "baselines=[1/K]"), "write 'compare.methods=[linear,start:1/K]'"),
        (("model=pico", "method.elect=count"), "method.elect has no meaning here"),
        (("model=pico", "budget=10"), "budget has no meaning here"),
        (("model=pico", "tracker=wandb"), "tracker has no meaning here"),
        (("model=pico", "fitness.worth=true"), "fitness.worth has no meaning here"),
        (("model=pico", "compare.methods=ties,tsvm"), "in brackets, such as 'compare.methods=[ties,tsvm]'"),
        (("model=pico", "compare.methods=[tiess]"), "did you mean"),
        (("model=pico", "compare.method=[ties]"), "did you mean 'methods'"),
        (("model=picco",), "Did you mean pico"),
    ],
)
def test_what_has_no_meaning_is_refused(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["compare", *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_run_and_a_file_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trials.jsonl").touch()
    for place, message in ((tmp_path, "is the run of a search"), (tmp_path / "trials.jsonl", "is a file")):
        with pytest.raises(SystemExit) as end:
            main(["compare", "model=pico", "--out", str(place)])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["trials.jsonl"]
