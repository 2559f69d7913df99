"""The table of the README from run directories: `python scripts/results_table.py runs/text-linear-*`.

In: run directories with a `summary.json`, seeds told apart by `-s<seed>` at the end of their names. Out: a markdown
table of the report split: base, experts and best constant once, then each search with its seeds, and the paired
difference from the best constant with its standard error. Of a search with several values that is the point of the
front which was chosen; a line below says how, and what it gains in each value.
"""

import argparse
import re
from pathlib import Path

from evomerge.runs.directory import read_summary
from evomerge.runs.fronts import gains_of
from evomerge.selection.statistics import Score


def main() -> None:
    """Read the summaries and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    runs = sorted(parser.parse_args().runs)
    summaries = {run.name: summary for run in runs if (summary := read_summary(run)) is not None}
    if open_runs := [str(run) for run in runs if run.name not in summaries]:
        parser.error(f"no summary.json in {', '.join(open_runs)}: name run directories of searches that have ended")
    first = next(iter(summaries.values()))
    tasks = list(first.base.tasks)
    print(f"| | {' | '.join(tasks)} | mean ± se | winner − best constant ± paired se |")
    print(f"|---|{'---|' * len(tasks)}---|---|")
    for name in ("base", "experts", "best_constant"):
        constant = f" ({first.select.constant})" if name == "best_constant" else ""
        label = name.replace("_", " ") + constant
        rows = {
            _row(label, summary.report[name], tasks, "") for summary in summaries.values() if name in summary.report
        }
        print("\n".join(sorted(rows)))  # one, unless the runs were not scored on the same items
    for name, summary in summaries.items():
        search, _, seed = re.fullmatch(r"(.*?)(-s(\d+))?", name).groups()  # pyright: ignore[reportOptionalMemberAccess]
        gain = summary.gain
        ratio = gain.diff / gain.se if gain.diff is not None and gain.se else float("nan")
        text = f"{_number(gain.diff, '+.4f')} ± {_number(gain.se)} ({ratio:+.1f} se)"
        print(_row(f"{search}, seed {seed or 1}", summary.winner, tasks, text))
    for name, summary in summaries.items():
        if front := summary.front:
            print(
                f"\n{name}: {len(front.points)} points; {front.rule}; {gains_of(front)}; hypervolume "
                f"{front.hypervolume['report']:.4g} on report."
            )


def _row(name: str, row: Score, tasks: list[str], difference: str) -> str:
    scores = " | ".join(_number(row.tasks.get(task), ".3f") for task in tasks)
    return f"| {name} | {scores} | {_number(row.mean)} ± {_number(row.se)} | {difference} |"


def _number(value: float | None, form: str = ".4f") -> str:
    return "unknown" if value is None else f"{value:{form}}"


if __name__ == "__main__":
    main()
