"""What was scored of a winner after its search: beside its parents, and around it; kept in the run directory.

In: models side by side, the winner first, and the run. Out: `worth.json` and `around.json`, which reports draw. Each
says of which winner it is, and on which items: of one that the search has left behind, or on others than it was judged
on, it is not taken. Both may be deleted.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evomerge.common.digests import digest
from evomerge.common.errors import LogError
from evomerge.common.files import write_atomically
from evomerge.fitness.items import HELD_OUT
from evomerge.runs.directory import Run
from evomerge.selection.around import Around, around_of
from evomerge.selection.comparison import Comparison
from evomerge.selection.worth import BASE, ENSEMBLE, WINNER, Worth, worth_of

WORTH, AROUND = "worth.json", "around.json"


@dataclass(frozen=True)
class Beside:
    """A winner beside its parents.

    Attributes:
        result: the winner, the base, every expert, and their ensemble where there is one, on the report items.
        worth: what follows.
        experts: their names.
        held_out: the same models on tasks that were held out of the search; None where there are none, or where that
            was not scored.
    """

    result: Comparison
    worth: Worth
    experts: Sequence[str]
    held_out: Comparison | None = None

    @property
    def measures(self) -> Mapping[str, str]:
        """What the metric is, by task, those that were held out included."""
        return {**self.result.measures, **(self.held_out.measures if self.held_out else {})}


def has_its_items(run: Run, result: Comparison) -> bool:
    """Whether models were scored on the items on which a run has judged its winner; also where that is not known."""
    chosen = run.summary.chosen if run.summary else {}
    if result.split == HELD_OUT and HELD_OUT not in chosen:  # of an earlier version, which has no hash of these
        return _apart(run) == set(next(iter(result.models.values())).tasks)
    return not chosen or chosen.get(result.split) == result.chosen


def is_whole(run: Run) -> bool:
    """Whether it is known what a winner reached beside its parents, also on tasks that were held out of its search."""
    beside = read_worth(run)
    return beside is not None and (beside.held_out is not None or not _apart(run))


def keep_worth(run: Run, result: Comparison, held_out: Comparison | None = None) -> Path:
    """Write what a winner reached beside its parents, and return where.

    Args:
        run: its run, which has ended.
        result: the winner first; it holds the base and all experts.
        held_out: the same on tasks that were held out of the search; None where there are none.
    """
    return _keep(run, WORTH, result, **({HELD_OUT: held_out.to_plain()} if held_out else {}))


def keep_around(run: Run, result: Comparison, rows: Sequence[str]) -> Path:
    """Write what became of a winner whose weights were scaled, and return where.

    Args:
        run: its run, which has ended.
        result: the winner first.
        rows: the experts, or other rows, whose weights were scaled one by one.
    """
    return _keep(run, AROUND, result, rows=list(rows))


def read_worth(run: Run) -> Beside | None:
    """Return the winner of a run beside its parents; None where that is not known.

    Raises:
        LogError: the file is damaged.
    """
    content = _read(run, WORTH)
    if content is None:
        return None
    experts = [name for name, _ in run.identity["experts"]]
    try:
        others = [BASE, *experts, ENSEMBLE]
        result = _of_winner(Comparison.from_plain(content), others)
        apart = Comparison.from_plain(content[HELD_OUT]) if HELD_OUT in content else None
        apart = _of_winner(apart, others) if apart and has_its_items(run, apart) else None
        return Beside(result, replace(worth_of(result, experts, apart), merge=f"the {WINNER}"), experts, apart)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(run.path / WORTH, error) from error


def read_around(run: Run) -> tuple[Comparison, list[Around]] | None:
    """Return the winner of a run with its weights scaled, and what that says; None where it is not known.

    Raises:
        LogError: the file is damaged.
    """
    content = _read(run, AROUND)
    if content is None:
        return None
    try:
        result = Comparison.from_plain(content)
        result = _of_winner(result, list(result.models))
        return result, around_of(result, content["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(run.path / AROUND, error) from error


def outdated(run: Run) -> list[str]:
    """Return the names of such files in a run directory that are of another winner, or on other items."""
    return [name for name in (WORTH, AROUND) if (content := _content(run.path / name)) and not _is_of(content, run)]


def is_page_older(page: Path, directory: Path) -> bool:
    """Whether the page of a run is not there, or older than something that it shows.

    Args:
        page: where it is, or would be.
        directory: of the run.
    """
    shown = [directory / name for name in ("trials.jsonl", "summary.json", WORTH, AROUND)]
    times = [file.stat().st_mtime_ns for file in shown if file.is_file()]
    return not page.is_file() or page.stat().st_mtime_ns < max(times, default=0)


def _apart(run: Run) -> set[str]:
    """Return the tasks that were held out of a search that has ended."""
    found = run.summary.held_out if run.summary else None
    return set(found.report[BASE].tasks) if found else set()


def _keep(run: Run, name: str, result: Comparison, **more: Any) -> Path:
    write_atomically(run.path / name, result.to_json(of=_key(run, result.chosen), **more) + "\n")
    return run.path / name


def _key(run: Run, chosen: str | None) -> str:
    """Return a hash of a run's winner, of the metric that it was reported with, and of items.

    Args:
        run: it has ended.
        chosen: the hash of the items.
    """
    winner = run.recipe and {name: value for name, value in asdict(run.recipe).items() if name != "scores"}
    if run.summary and not run.summary.chosen:  # of an earlier version, whose items are known as a part of this alone
        chosen = run.summary.run
    return digest([winner, run.summary and [run.summary.metric, run.summary.items], chosen])


def _is_of(content: dict[str, Any], run: Run) -> bool:
    chosen = run.summary.chosen.get(content.get("split", "")) if run.summary else None
    return content.get("of") == _key(run, chosen)


def _read(run: Run, name: str) -> dict[str, Any] | None:
    content = _content(run.path / name)
    return content if content and _is_of(content, run) else None


def _content(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _damaged(file, error) from error
    if not isinstance(content, dict):
        raise _damaged(file, TypeError("it is no mapping"))
    return content


def _of_winner(result: Comparison, others: Collection[str]) -> Comparison:
    """Return a comparison whose first model, whatever it was called, is the winner, with some of the others."""
    first, *_ = result.models
    kept = [name for name in others if name in result.models and name != first]
    return replace(
        result,
        models={WINNER: result.models[first], **{name: result.models[name] for name in kept}},
        paired={name: result.paired[name] for name in kept},
        marks={WINNER if name == first else name: texts for name, texts in result.marks.items()},
    )


def _damaged(file: Path, error: Exception) -> LogError:
    return LogError(f"{file} cannot be read ({error}): delete it; `evomerge evaluate` writes it again.")
