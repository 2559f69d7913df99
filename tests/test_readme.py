"""The README's commands, run as they stand, in a small form."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evomerge.items import Item
from evomerge.suite import Suite

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if line.strip()
]
ELSEWHERE = ("make ", "pip install", "python scripts/build_suite.py")
"""Commands that .ci/run and tests/test_build_suite.py run."""
SMALL = ("budget=10", "fitness.items=30", "fitness.select_items=60", "fitness.report_items=60")


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_tree_names_what_is_there() -> None:
    """Every file of the package stands in the README's tree, and every name of the tree exists."""
    tree = README[README.index("```\n.\n") :]
    tree = tree[: tree.index("\n```", 5)]
    for path in (ROOT / "evomerge").iterdir():
        if path.suffix == ".py" and path.name not in ("__init__.py", "errors.py", "names.py"):
            assert path.name in tree, f"{path.name} is not in the README's tree"
    for name in re.findall(r"[a-z_]+\.py", tree):
        assert (ROOT / "evomerge" / name).exists(), f"{name} of the README's tree does not exist"


def test_the_example_of_a_fitness_runs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["score"](None, None, {"a": [Item("", "one", 0), Item("", "three", 1)]}) == {"a": [3.0, 5.0]}


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith(ELSEWHERE)])
def test_commands_run(command: str, pico_suite: Suite, own_classifiers: Path, tmp_path: Path) -> None:
    """With the pico suite for the text suite, small directories for one's own, and a budget for a test."""
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "text").symlink_to(pico_suite.path)
    (tmp_path / "suites" / "pico").symlink_to(pico_suite.path)
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "to").symlink_to(own_classifiers)
    for name in ("mood.jsonl", "topic.jsonl"):
        (tmp_path / name).symlink_to(own_classifiers / name)
    program, *arguments = shlex.split(command)
    assert program == "evomerge"
    code = "from evomerge.cli import main; main()"
    kept = [argument for argument in arguments if not argument.startswith("budget=")]
    done = subprocess.run(
        [sys.executable, "-c", code, *kept, *SMALL],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert "winner" in done.stdout
    assert list((tmp_path / "runs").glob("*/recipe.yaml"))
