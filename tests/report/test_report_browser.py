"""Pages in a browser, where one is installed: nothing is said in its console, and nothing is wider than a telephone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from evomerge.report import write_comparison, write_report, write_sweep
from tests.kit.fronts import front, write_front
from tests.kit.reports import finish, write_run, write_workers
from tests.kit.standings import BETTER, SAME, row, standings
from tests.processes.command import evomerge

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
FLAGS = (
    *("--headless", "--disable-gpu", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--dump-dom"),
)
WIDTHS = (320, 390, 1440)
LONG = "a-task-with-a-name-that-nobody-would-have-thought-of"

pytestmark = pytest.mark.slow


def look(page: Path, tmp_path: Path) -> tuple[dict[str, int], str]:
    """Return by how much the page is too wide for frames of some widths, and what the browser says meanwhile."""
    frames = "".join(
        f'<iframe width="{width}" height="900" srcdoc="{html.escape(page.read_text(), quote=True)}"></iframe>'
        for width in WIDTHS
    )
    measure = """
        addEventListener("load", () => {
            const pages = [...document.querySelectorAll("iframe")].map(f => [f, f.contentDocument.documentElement]);
            document.title = JSON.stringify(pages.map(([f, page]) => [f.width, page.scrollWidth - page.clientWidth]));
        })"""
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f"<!doctype html><title>nothing</title>{frames}<script>{measure}</script>")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [BROWSER, *FLAGS, profile, f"file://{wrapper}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return dict(json.loads(html.unescape(title[1]))), "\n".join(said)


@pytest.mark.skipif(not BROWSER, reason="no chromium is installed")
def test_pages_fit_and_are_quiet(tmp_path: Path) -> None:
    one = finish(write_run(tmp_path / "runs" / "text-linear-one", steps=3, tasks=("a", LONG), experts=("a", LONG)))
    write_workers(one, workers=40, why=LONG * 3)
    going = write_run(tmp_path / "runs" / f"text-linear-{'going-on-' * 6}", experts=[f"expert-{i}" for i in range(20)])
    (tmp_path / "comparison.json").write_text(standings(row(LONG, 0.6, BETTER), row("trim+elect", 0.5, SAME)).to_json())
    three = write_front(tmp_path / "runs" / "front-of-three", front((LONG, "news", "mood"), points=12, missed=0.01))
    four = write_front(tmp_path / "runs" / "front-of-four", front(("a", "b", "c", LONG), minimised=[LONG]))
    fronts = [write_report(three), write_report(four), write_report(write_front(tmp_path / "runs" / "front-of-two"))]
    for page in (
        *fronts,
        write_report(one),
        write_report(going),
        write_sweep([one, going]),
        write_comparison(tmp_path),
    ):
        excess, said = look(page, tmp_path)
        assert said == ""
        assert excess == {str(width): 0 for width in WIDTHS}, page


def test_a_sweep_ends_with_its_page(pico_suite, tmp_path: Path) -> None:
    (tmp_path / "suites").symlink_to(pico_suite.path.parent)
    done = evomerge("search", "-m", "experiment=smoke", "budget=8", "seed=1,2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "report of the sweep: runs/report.html" in done.stderr
    links = re.findall('href="([^"]+/report.html)"', (tmp_path / "runs" / "report.html").read_text())
    assert len(links) == 2
    assert all((tmp_path / "runs" / link).is_file() for link in links)
