"""The commands of the README and of docs/, run as they stand, in a small form."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge import __version__
from evomerge.fitness.custom import Custom
from evomerge.fitness.items import Item
from evomerge.runs.suite import Suite
from tests.kit.language import save_language_suite
from tests.processes.command import evomerge

ROOT = Path(__file__).parents[2]
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
README = PAGES[ROOT / "README.md"]
COMMANDS = [
    line.split("  #")[0].strip()
    for page in PAGES.values()
    for block in re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if line.strip()
]
ELSEWHERE = ("make ", "pip install", "python scripts/build_suite.py")
"""Commands that .ci/run and tests/scripts/test_build_suite.py run."""
RUN = [command for command in COMMANDS if not command.startswith(ELSEWHERE)]
OWN = [command for command in RUN if re.search(r"path/to|merged|runs/(mine|by-hand)", command)]
"""About one's own models: each needs what those before it made."""
THEIRS = """\
merge_method: task_arithmetic
base_model: path/to/base
models:
- {model: path/to/mood, parameters: {weight: [0.2, 0.6]}}
- {model: path/to/topic, parameters: {weight: 0.3}}
"""
EVOLVE = """\
genome:
  models: [suites/lm/experts/left, suites/lm/experts/right]
  merge_method: task_arithmetic
  base_model: suites/lm/base
tasks:
- name: pico_left
"""
SMALL = ("budget=6", "fitness.items=12", "fitness.select_items=24", "fitness.report_items=24")


def test_every_link_leads_somewhere() -> None:
    for path, page in PAGES.items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_readme_is_short_and_names_every_page() -> None:
    assert len(README.splitlines()) <= 120
    for path in PAGES:
        assert path.name == "README.md" or f"](docs/{path.name})" in README, path.name


def test_the_tree_names_what_is_there() -> None:
    """Every room and every module beside the rooms stands in the tree, and every one of the tree exists."""
    page = PAGES[ROOT / "docs" / "architecture.md"]
    tree = page[page.index("```\n.\n") :]
    tree = tree[: tree.index("\n```", 5)]
    package = tree[tree.index("evomerge/") : tree.index("examples/")]
    known = {path.name for path in (ROOT / "evomerge").glob("*.py")} | {
        f"{path.parent.name}/" for path in (ROOT / "evomerge").glob("*/__init__.py")
    }
    for name in known:
        assert re.search(rf"[ ─]{re.escape(name)}", package), f"{name} is not in the tree"
    for name in re.findall(r"─ ([a-z_]+(?:/|\.py))", package):
        assert name in known, f"{name} of the tree does not exist"


PROGRAMS = [
    (path.name, block)
    for path, page in PAGES.items()
    for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
]
FITNESSES = [(name, block) for name, block in PROGRAMS if "\ndef score(" in f"\n{block}"]


@pytest.mark.parametrize("block", [block for _, block in FITNESSES], ids=[name for name, _ in FITNESSES])
def test_the_examples_of_a_fitness_run(block: str) -> None:
    names: dict[str, Any] = {}
    exec(block, names)
    items = [Item("", "one", 0), Item("", "four", 0)]
    fitness = Custom(names["score"])
    prepared = fitness.prepare(None, {"a": [replace(item, id=item.text) for item in items]})
    outcome = fitness(torch.nn.Linear(1, 1), prepared, {"a": ["one", "four"]})
    assert len(set(outcome.results["a"]["score"])) == 2


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for _, block in PROGRAMS if "import evomerge" in block])
def test_the_programs_of_the_pages_run(
    block: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    exec(block.replace("budget=200", "budget=6, items=12, select_items=24, report_items=24"), {})
    assert "winner" in capsys.readouterr().out
    assert list(place.glob("*/config.json"))


@pytest.fixture(scope="module")
def place(pico_suite: Suite, own_classifiers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's directory: the pico suite for the text suite, small models and files for one's own."""
    path = tmp_path_factory.mktemp("user")
    (path / "suites").mkdir()
    (path / "suites" / "text").symlink_to(pico_suite.path)
    (path / "suites" / "pico").symlink_to(pico_suite.path)
    (path / "path").mkdir()
    (path / "path" / "to").symlink_to(own_classifiers)
    (own_classifiers / "run").mkdir(exist_ok=True)
    for step in (10, 20, 30):
        (own_classifiers / "run" / f"checkpoint-{step}").symlink_to(own_classifiers / "mood")
    save_language_suite(path / "suites" / "lm")
    (path / "tasks").symlink_to(path / "suites" / "lm" / "tasks")
    (path / "their.yml").write_text(THEIRS)
    (path / "evolve.yml").write_text(EVOLVE)
    for name in ("mood.jsonl", "topic.jsonl"):
        (path / name).symlink_to(own_classifiers / name)
    return path


def run(command: str, place: Path) -> str:
    """Run a command of a page, a search with a budget for a test; return its standard output."""
    program, *arguments = shlex.split(command)
    assert program == "evomerge"
    if arguments[0] == "search":
        arguments = [*(argument for argument in arguments if not argument.startswith("budget=")), *SMALL]
    if arguments[0] == "compare":
        arguments = [*arguments, *SMALL[1:]]
    if arguments[0] == "auto":
        arguments[arguments.index("--hours") + 1] = "0.001"
    done = evomerge(*arguments, cwd=place)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in RUN if c not in OWN])
def test_commands_run(command: str, place: Path) -> None:
    """Each by itself, in any order."""
    compared = command.startswith("evomerge compare")
    assert ("best on select first" if compared else "winner") in run(command, place)
    assert list((place / "runs").glob("*/comparison.json" if compared else "*/recipe.yaml"))


@pytest.mark.slow
def test_from_ones_own_models_to_a_merged_one(place: Path) -> None:
    """The commands about one's own models, in their order."""
    printed = {command: run(command, place) for command in OWN}
    assert {command.split()[1] for command in OWN} == {
        *("inspect", "auto", "search", "merge", "evaluate", "export", "report")
    }
    assert (place / "runs" / "mine" / "report.html").is_file()
    assert (place / "merged" / "config.json").is_file()
    assert "mood" in printed[OWN[0]]
    assert "winner" in next(text for command, text in printed.items() if command.split()[1] == "search")


def test_each_difference_has_its_test() -> None:
    """What the README says against mergekit-evolve names a test, and that test is there."""
    start = README.index("## How it differs from mergekit-evolve")
    lines = re.findall(
        r"^- \*\*.*?(?=^- |^\n|\Z)", README[start : README.index("\n## ", start + 5)] + "\n", re.S | re.M
    )
    assert len(lines) == 5
    for line in lines:
        name, file = re.search(r"`(test_\w+)`", line), re.search(r"\((tests/[\w/]+\.py)\)", line)
        assert name, line
        assert file, line
        assert f"def {name[1]}(" in (ROOT / file[1]).read_text()


def test_versions_are_in_step() -> None:
    """The package, the citation and the newest section of the changelog that has a number."""
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    newest = re.search(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert cited is not None
    assert newest is not None
    assert cited[1] == newest[1] == __version__
