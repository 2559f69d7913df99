"""The command on any terminal: every verb where the streams, or the whole system, cannot show τ, ± or é."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.command import evomerge

PACKAGE = Path(__file__).parents[2] / "evomerge"
SOURCES = ("model.base=base", "model.experts=[mood,topic]", "fitness.tasks={mood: mood.jsonl, topic: topic.jsonl}")
SEARCH = ("search", *SOURCES, "searcher=random", "budget=2", "fitness.items=10", "hydra.run.dir=runs/one")
VERBS = {
    "search": SEARCH,
    "auto": ("auto", "base", "mood", "topic", "--tasks", "mood.jsonl", "topic.jsonl", "--hours", "0.001"),
    "inspect": ("inspect", "base", "mood", "topic"),
    "evaluate": ("evaluate", "runs/one", "base"),
    "merge": ("merge", "runs/one/recipe.yaml", "merged"),
    "compare": ("compare", *SOURCES, "compare.methods=[magmax]", "compare.constants=[1.0]", "--out", "runs/two"),
    "export": ("export", "runs/one", "-o", "out/recipe.yaml"),
    "report": ("report", "runs/one"),
}
"""Every verb, in an order in which each finds what it needs."""
THROUGH_ALL = """
import sys
from evomerge.cli.main import main
for arguments in %r:
    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.fixture
def place(own_classifiers: Path, tmp_path: Path) -> Path:
    """A user's directory, whose texts have characters of their own."""
    for name in ("base", "mood", "topic"):
        (tmp_path / name).symlink_to(own_classifiers / name)
    for name in ("mood.jsonl", "topic.jsonl"):
        text = (own_classifiers / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("keke", "kéke τ"), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_a_question_mark_stands_for_what_streams_of_another_encoding_lack(place: Path) -> None:
    for verb in ("search", "inspect", "evaluate"):
        done = evomerge(*VERBS[verb], cwd=place, encoding="ascii")
        assert done.returncode == 0, (verb, done.stderr)
        assert "Traceback" not in done.stderr, verb
        assert "?" in done.stdout, verb  # for τ, and for ±
    assert (place / "runs" / "one" / "report.html").is_file()


@pytest.mark.slow
def test_a_refusal_with_letters_that_the_stream_lacks(place: Path) -> None:
    done = evomerge("report", "τ/été", cwd=place, encoding="ascii")
    assert done.returncode == 2
    assert "?/?t? is no run directory" in done.stderr


@pytest.mark.slow
def test_every_verb_ends_well_where_the_system_knows_no_unicode(place: Path) -> None:
    """Streams and files are ASCII by default, then."""
    without = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))}
    system = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", THROUGH_ALL % (list(map(list, VERBS.values())),)],
        cwd=place,
        env={**without, "HF_HUB_OFFLINE": "1", **system},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    assert b"winner" in done.stdout
    for made in ("runs/one/report.html", "merged/config.json", "out/recipe.yaml"):
        assert (place / made).is_file(), made


def test_the_command_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "evomerge", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "evomerge search experiment=smoke" in done.stdout
    assert "exit status" in done.stdout


def test_a_reader_that_has_seen_enough_is_no_traceback(place: Path) -> None:
    if (shell := shutil.which("bash")) is None:
        pytest.skip("there is no bash")
    command = f"'{sys.executable}' -m evomerge --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run([shell, "-c", command], cwd=place, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr


def calls() -> Iterator[tuple[Path, ast.Call]]:
    """Every call in the package, with its file."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield file, node


def test_every_text_file_is_opened_with_its_encoding() -> None:
    """What the system takes for an encoding decides nothing."""
    for file, call in calls():
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        said = {keyword.arg for keyword in call.keywords}
        modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if name in ("read_text", "write_text"):
            assert "encoding" in said, f"{file}:{call.lineno}"
        if name == "open" and any(set(mode) <= set("rwax+t") for mode in modes):
            assert "encoding" in said, f"{file}:{call.lineno}"
