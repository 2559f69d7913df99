"""The page of a comparison: its standings in, one context for the template out.

Methods are in the order of the select split: by the report split one would choose on it, and its numbers would no
longer be honest. Only those that were tested have any there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evomerge.common.errors import ConfigError, LogError
from evomerge.report.bars import Bars, Value, bars
from evomerge.report.wording import metric, number, with_error
from evomerge.selection.standings import ALPHA, OTHERWISE, RESULT, Row, Standings
from evomerge.selection.statistics import chance_text


def is_comparison(directory: Path) -> bool:
    """Whether a directory holds a comparison that has ended."""
    return (directory / RESULT).is_file()


def read_standings(directory: Path) -> Standings:
    """Read what came out of a comparison.

    Raises:
        ConfigError: there is none, or it has not ended.
        LogError: it is damaged.
    """
    file = directory / RESULT
    try:
        return Standings.from_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        why = f"{directory} holds no comparison that has ended: run `evomerge compare` to its end."
        raise ConfigError(why) from None
    except ValueError as error:
        raise LogError(
            f"{file} cannot be read ({error}): delete it, and run the comparison's own command again to write it."
        ) from error


def comparison_context(found: Standings, where: str) -> dict[str, Any]:
    """Return what the template of a comparison shows.

    Args:
        found: what came out.
        where: the name of its directory.
    """
    order = [] if found.by_mean else [OTHERWISE]
    weights = sorted({weight for row in found.rows for weight in row.values}, key=float)
    base = {split: with_error(score.mean, score.se) if score else "–" for split, score in found.base.items()}
    failed = [f"{row.name} has no report score: {error}" for row in found.tested if (error := _error(row))]
    return {
        "title": f"{len(found.rows)} methods",
        "where": where,
        "headline": _headline(found),
        "concerns": [*found.warnings, *order, *found.at_the_ends, *failed],
        "forest": _forest(found),
        "metric": metric(found.metric),
        "reference": found.reference,
        "tested": len(found.tested),
        "items": {split: f"{n:,}" for split, n in found.items.items()},
        "rows": [_cells(row) for row in found.rows],
        "base": base,
        "weights": weights,
        "curves": [(row.name, f"{row.constant:g}", [_reached(row, each) for each in weights]) for row in found.rows],
        "left_out": list(found.left_out.items()),
        "command": found.command,
        "versions": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
    }


def _headline(found: Standings) -> tuple[str, str]:
    """Return the verdict in a few words, and the honest number in one sentence."""
    words = {row.name: row.tested.verdict for row in found.tested if row.tested}
    better = [name for name, word in words.items() if word == "better"]
    if not words:
        return "Nothing was held against task arithmetic.", "There is no other method in this comparison."
    short = (
        f"{' and '.join(better) if len(better) < 3 else f'{len(better)} methods'} "
        f"{'is' if len(better) == 1 else 'are'} better than task arithmetic."
        if better
        else "No method is better than task arithmetic as far as this can be told."
    )
    first, arithmetic = found.tested[0], found.arithmetic
    assert first.tested is not None
    assert arithmetic.tested is not None
    own = first.tested.score
    score = arithmetic.tested.score
    gap = first.tested.difference
    sentence = (
        f"{len(words)} were tested on {found.items['report']:,} report items that chose nothing: the best on "
        f"{found.items['select']:,} select items. Taken together, the chance that even one is called different while "
        f"it is not is below {ALPHA:.0%} (Holm)."
    )
    if own and score and gap and gap.diff is not None:
        side = "above" if gap.diff >= 0 else "below"
        sentence += (
            f" First on select is {first.name}: its {metric(found.metric)} on the report items is "
            f"{with_error(own.mean, own.se)}, {with_error(abs(gap.diff), gap.se)} {side} that of task arithmetic, "
            f"{number(score.mean)}."
        )
    return short, sentence


def _error(row: Row) -> str:
    return row.tested.error if row.tested else ""


def _forest(found: Standings) -> Bars | None:
    values = [
        Value(row.name, "run", row.tested.difference.diff, row.tested.difference.se)
        for row in found.tested
        if row.tested and row.tested.difference and row.tested.difference.diff is not None
    ]
    return bars([("", values)], "difference", sign=True) if values else None


def _cells(row: Row) -> dict[str, str]:
    tested, cost = row.tested, row.cost
    score, difference = (tested.score, tested.difference) if tested else (None, None)
    return {
        "name": row.name,
        "title": row.title,
        "paper": row.paper,
        "needs": row.needs,
        "constant": f"{row.constant:g}",
        "select": with_error(row.select.mean, row.select.se),
        "ahead": with_error(row.ahead.diff, row.ahead.se, sign=True) if row.ahead else "",
        "report": with_error(score.mean, score.se) if score else "",
        "difference": with_error(difference.diff, difference.se, sign=True) if difference else "",
        "corrected": chance_text(tested.corrected) if tested else "",
        "verdict": tested.verdict if tested else "",
        "prepare": "" if cost.prepare is None else f"{cost.prepare:.2f}",
        "merge": "" if cost.merge is None else f"{cost.merge:.3f}",
        "size": "" if cost.nbytes is None else f"{cost.nbytes / 2**20:,.1f}",
    }


def _reached(row: Row, weight: str) -> tuple[str, bool]:
    """Return what a weight reached, and whether it was not scored on all items."""
    if weight not in row.values:
        return "", False
    return number(row.values[weight]), row.seen.get(weight, 0) < max(row.seen.values())
