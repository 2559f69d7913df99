"""The page of a run, of several, or of a comparison: facts in, `report.html` out; PNG files in `report/` beside it.

A page holds all that it shows: no script, and nothing that a browser would have to fetch. Templates escape every text,
since names of tasks, experts and errors are anybody's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from evomerge import __version__
from evomerge.common.errors import ConfigError
from evomerge.common.files import write_atomically
from evomerge.common.names import mark_lines
from evomerge.fitness.objectives import CHEBYSHEV
from evomerge.report import bars, charts, fronts
from evomerge.report.colours import ramp
from evomerge.report.comparison import comparison_context, read_standings
from evomerge.report.concerns import concerns
from evomerge.report.facts import MODELS, RunFacts
from evomerge.report.grids import CoefficientMap, grids
from evomerge.report.lanes import where_time_went
from evomerge.report.parents import around, parents
from evomerge.report.places import OUTSIDE
from evomerge.report.scales import shade
from evomerge.report.sweep import sweep_context
from evomerge.report.wording import (
    closed,
    deciding,
    headline,
    metric,
    number,
    signed,
    span,
    surely_of,
    what,
    with_error,
)
from evomerge.runs.beside import is_page_older
from evomerge.runs.directory import Run, open_run
from evomerge.runs.fronts import better, titled
from evomerge.runs.table import KEPT, held_out_lines, kept_cells, rescored_of
from evomerge.runs.worker_log import WORKERS, read_sessions

STOPS = {
    "budget": "It ended with its budget.",
    "time": "It ended with its hours.",
    "exhausted": "It ended when every point that its searcher can propose had been scored.",
    "converged": "It ended when its searcher had converged.",
}
SEARCHED = "from the first ask to the last tell"
AFTERWARDS = "Choosing the winner and scoring it on the report items comes on top."


def write_comparison(directory: Path, file: Path | None = None) -> Path:
    """Write the page of a comparison that has ended.

    Args:
        directory: of the comparison.
        file: where the page goes; `report.html` in that directory when left out.

    Returns:
        The page.

    Raises:
        ConfigError: it has not ended.
        LogError: what came out of it is damaged.
    """
    found, file = read_standings(directory), _page(file, directory)
    context = comparison_context(found, directory.resolve().name)
    context["workers"] = where_time_went(read_sessions(directory / WORKERS), "from the beginning to the end")
    _write(file, "comparison.html.j2", context)
    return file


def write_report(directory: Path, file: Path | None = None, pictures: bool = False) -> Path:
    """Write the page of a run, complete or not.

    Args:
        directory: the run directory.
        file: where the page goes; `report.html` in the run directory when left out.
        pictures: whether PNG files are drawn as well, in a directory of the same name without the suffix.

    Returns:
        The page.

    Raises:
        ConfigError: it is no run directory, or pictures are wanted and matplotlib is missing.
        LogError: its log is damaged.
    """
    facts = RunFacts(open_run(directory))
    file = _page(file, directory)
    found = grids(facts)
    _write(file, "run.html.j2", _context(facts, found))
    if pictures:
        _pictures().of_run(facts, found, file.with_suffix(""))
    return file


def write_sweep(
    directories: Sequence[Path], file: Path | None = None, again: bool = True, pictures: bool = False
) -> Path:
    """Write one page for several runs, and the page of each run that it links to.

    Args:
        directories: the run directories.
        file: where the page goes; `report.html` in the directory of the first run's when left out.
        again: whether the page of a run is also written where there is one that is newer than the run.
        pictures: whether PNG files are drawn as well, in a directory of the same name without the suffix.

    Returns:
        The page.

    Raises:
        ConfigError: one of them is no run directory, or pictures are wanted and matplotlib is missing.
        LogError: the log of one is damaged.
    """
    directories = list({directory.resolve(): directory for directory in directories}.values())
    facts = [RunFacts(open_run(directory)) for directory in directories]
    if len({one.name for one in facts}) < len(facts):  # runs of several directories
        for one in facts:
            one.name = os.path.relpath(one.run.path)
    file = _page(file, directories[0].resolve().parent)
    for directory in directories:
        if again or is_page_older(directory / "report.html", directory):
            write_report(directory, pictures=pictures)
    context, best = sweep_context(facts, file)
    _write(file, "sweep.html.j2", context)
    if pictures:
        _pictures().of_sweep(facts, best, file.with_suffix(""))
    return file


def _pictures() -> ModuleType:
    """Return what draws pictures, which needs a library that is large and slow to load."""
    try:
        from evomerge.report import pictures
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Pictures need {error.name}, which is not installed: pip install 'evomerge[plot]'. The page needs no "
            f"pictures: leave --pictures out."
        ) from error
    return pictures


def _page(file: Path | None, usual: Path) -> Path:
    """Return where a page goes: into a directory as `report.html`; left out, into the usual one."""
    if file is None or file.is_dir():
        return (file or usual) / "report.html"
    if file.suffix not in (".html", ".htm"):
        raise ConfigError(
            f"{file} is no directory, and no name of a page: write {file}.html, or make the directory first."
        )
    return file


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("evomerge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "correlation": _correlation}
    style = files("evomerge.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    ramps = {theme: ramp(theme) for theme in ("light", "dark")}
    environment.globals |= {"version": __version__, "style": Markup(style), "ramps": ramps}
    return environment


def _write(file: Path, template: str, context: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, _environment().get_template(template).render(context))


def _context(facts: RunFacts, found: list[CoefficientMap]) -> dict[str, Any]:
    """Return what the template of a run shows."""
    run, tasks = facts.run, bars.tasks(facts)
    return {
        "facts": facts,
        "what": what(facts),
        "concerns": concerns(facts, found),
        "headline": headline(facts),
        "closed": closed(facts),
        "means": bars.means(facts),
        "marks": [*mark_lines(facts.marks, MODELS), *(rescored_of(facts.summary) if facts.summary else ())],
        "tasks": tasks,
        "has_errors": tasks is not None and any(bar.error for _, rows in tasks.sections for bar in rows),
        "better": _better(facts),
        "gains": bars.gains(facts),
        "parents": parents(facts),
        "around": around(facts),
        "front": _front(facts),
        "clouds": fronts.clouds(facts),
        "cloud_legend": fronts.cloud_legend(facts),
        "held_out": bars.held_out(facts),
        "held_out_lines": held_out_lines(facts.summary) if facts.summary else [],
        "forgetting": _forgetting(facts),
        "grids": found,
        "shades": [shade(grid.values, grid.centre) for grid in found],
        "any_held": any(grid.held for grid in found),
        "line_ends": _line_ends(facts, found),
        "convergence": charts.convergence(facts),
        "losses": charts.losses(facts),
        "finalists": charts.finalists(facts),
        "search_title": "Candidates on the search items"
        if facts.by_value
        else "Warm start: constants on the search items",
        "progress": _progress(facts),
        "optimism": facts.optimism,
        "optimism_caption": _deciding(facts),
        "comparable": _comparable(facts),
        "constants": charts.constants(facts),
        "workers": where_time_went(
            read_sessions(run.path / WORKERS), "from the first ask to the last tell", AFTERWARDS
        ),
        "pace": _pace(facts),
        "shares": _shares(facts),
        "command": run.command,
        "versions": ", ".join(f"{name} {v}" for name, v in (facts.summary.versions if facts.summary else {}).items()),
        "sources": _sources(run),
        "settings": yaml.safe_dump(facts.settings, sort_keys=False, allow_unicode=True).rstrip(),
    }


def _front(facts: RunFacts) -> dict[str, Any] | None:
    """Return what a page shows of a front."""
    front = facts.front
    if front is None or facts.summary is None:
        return None
    found = fronts.maps(facts)
    of = {one.variable: [other for other in found if other.variable == one.variable] for one in found}
    scales = {name: shade([x for one in mine for x in one.values], mine[0].centre) for name, mine in of.items()}
    return {
        "pictures": fronts.pictures(facts),
        "legend": fronts.legend(front),
        "paired": len(front.values) <= fronts.PAIRED,
        "titles": [titled(front, name) for name in front.values],
        "rows": fronts.rows(front, starred=bool(facts.marks.get("winner"))),
        "better": better(front),
        "constant": front.best_constant.name,
        "experts": any(point.experts for point in front.points),
        "notes": fronts.notes(facts.summary, front),
        "maps": [(variable, scales[variable], mine) for variable, mine in of.items()],
        "trades": front.trades,
        "traded": fronts.traded(front),
    }


def _correlation(value: float | None, se: float | None) -> str:
    return with_error(value, se, 2, sign=True)


def _better(facts: RunFacts) -> str:
    """Say which scores of tasks are good."""
    if not facts.forget:
        return "higher is better"
    return f"higher is better, but lower on what is to be forgotten: {', '.join(facts.forget)}"


def _forgetting(facts: RunFacts) -> dict[str, Any] | None:
    """Return what models forgot and kept, as a table."""
    found = facts.summary.forgetting if facts.summary else None
    if found is None:
        return None
    rows = [(MODELS[name], kept_cells(found.models[name])) for name in MODELS if name in found.models]
    select = f" On the select items the winner keeps {found.select:.1%}." if found.select is not None else ""
    asked = f"{found.share:.4g} of the base's score on the other tasks, the controls, was to be kept.{select}"
    return {"columns": KEPT, "rows": rows, "asked": asked, "tasks": ", ".join(found.tasks), "own": found.negated}


def _line_ends(facts: RunFacts, found: list[CoefficientMap]) -> list[str]:
    """Say of a winner on lines where they begin and end: those two numbers are what was searched."""
    if facts.settings["space"]["granularity"] != "line" or facts.summary is None:
        return []
    texts = []
    for grid in found:
        inside = [row for row in grid.rows if row.name not in OUTSIDE]
        ends = [
            f"{name} {number(first.value, 2)} to {number(last.value, 2)}"
            for name, first, last in zip(grid.columns, inside[0].cells, inside[-1].cells, strict=True)
        ]
        texts.append(f"Each expert has a line over depth, from its first block to its last: {', '.join(ends)}.")
    return texts


def _progress(facts: RunFacts) -> str:
    parts = []
    if facts.scored:
        parts.append(f"{len(facts.scored):,} candidates scored by {metric(facts.metric)}")
    if facts.losses:
        parts.append(f"{len(facts.losses):,} steps of a gradient")
    parts.append(f"{len(facts.failed):,} failed" if facts.failed else "none failed")
    items = ", ".join(f"{task} {n}" for task, n in facts.items.get("search", {}).items())
    how = f" in {facts.approximate}, which the winner is not" if facts.approximate else ""
    on = f" A candidate is scored on search items{how}: {items}." if items else ""
    if facts.summary and facts.summary.responses:
        drawn = "They are drawn" * facts.drawn_by_experts
        valued = f"{'values' if drawn else 'Values'} are estimates on all ({facts.estimate})" if facts.estimate else ""
        how = " and ".join(filter(None, [drawn, valued]))
        on += f" {how} by what base and experts say of all: {facts.summary.responses:,} item evaluations more."
    if facts.forget:
        on += " One that keeps too little on the other tasks is worth less than the base, by as much as it lacks."
    if facts.constraints and not facts.value_names:
        on += " One that violates a constraint is worth less than the base, by as much as it lacks."
    end = f" {STOPS.get(facts.summary.stop, '')}" if facts.summary and facts.complete else ""
    noise = f" On these, {facts.noise.said}." if items and facts.noise else ""
    saved = f" {facts.raced.sentence[0].upper()}{facts.raced.sentence[1:]}." if facts.raced else ""
    return f"{', '.join(parts)}.{end}{on}{noise}{saved}"


def _deciding(facts: RunFacts) -> str:
    of = {"worst": "worst task’s ", CHEBYSHEV: ""}.get(facts.aggregate, "mean ")
    text = f"{of}{deciding(facts, facts.measured)}"
    return f"{text[0].upper()}{text[1:]}"


def _comparable(facts: RunFacts) -> str:
    if facts.normalised:
        return "Normalised values of two splits lie between other ends, so only the select items are shown."
    if facts.constraints:
        sure = surely_of(facts)
        violates = f"does not hold all constraints{sure}" if sure else "violates a constraint"
        return (
            f"On the select items a model that {violates} is worth less than the base, by what it lacks. "
            f"Such a value is no score, so only a winner that holds all constraints there{sure} has one."
        )
    won = next((finalist for finalist in facts.finalists if finalist.winner), None)
    if won and won.search is None:
        return "No candidate’s score on the search items is that of the winner, so that column has none."
    return ""


def _pace(facts: RunFacts) -> str | None:
    if facts.pace is None:
        return None
    total, n = sum(facts.seconds.values()), len(facts.run.timings)
    return f"{span(total)} for {n:,} candidates, {facts.pace:.0f} a minute. {AFTERWARDS}"


def _shares(facts: RunFacts) -> list[dict[str, Any]]:
    total = sum(facts.seconds.values())
    texts = {"merge": "merge", "forward": "forward and backward" if facts.losses else "forward", "other": "other"}
    return [
        {
            "kind": kind,
            "share": round(seconds / total, 5),
            "words": f"{texts[kind]} {span(seconds)} ({seconds / total:.1%})",
        }
        for kind, seconds in facts.seconds.items()
        if total > 0
    ]


def _sources(run: Run) -> list[dict[str, str]]:
    """Return base, experts and heads with their hashes; paths from the recipe, once there is one."""
    recipe = run.recipe
    rows = [{"name": "base", "path": recipe.base.path if recipe else "", "sha256": run.identity["base"]}]
    for name, sha256 in run.identity["experts"]:
        path = recipe.experts[name].path if recipe and name in recipe.experts else ""
        rows.append({"name": f"expert {name}", "path": path, "sha256": sha256})
    for task, sha256 in run.identity["heads"].items():
        own = "the expert’s own" if sha256 else "none"
        rows.append({"name": f"head of {task}", "path": "", "sha256": sha256 if isinstance(sha256, str) else own})
    return rows
