"""The table of the README from run directories: `python scripts/results_table.py runs/text-linear-*`.

In: run directories with a `summary.json`, seeds told apart by `-s<seed>` at the end of their names. Out: a markdown
table of the report split: base, experts and best constant once, then each search with its seeds, and the paired
difference from the best constant with its standard error.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the summaries and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    runs = sorted(parser.parse_args().runs)
    if open_runs := [str(run) for run in runs if not (run / "summary.json").is_file()]:
        parser.error(f"no summary.json in {', '.join(open_runs)}: name run directories of searches that have ended")
    summaries = {run.name: json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in runs}
    first = next(iter(summaries.values()))
    tasks = list(first["report"]["base"]["tasks"])
    print(f"| | {' | '.join(tasks)} | mean ± se | winner − best constant ± paired se |")
    print(f"|---|{'---|' * len(tasks)}---|---|")
    for name in ("base", "experts", "best_constant"):
        rows = {json.dumps(summary["report"][name]) for summary in summaries.values()}
        for row in sorted(rows):  # one, unless the runs were not scored on the same items
            constant = f" ({first['select']['constant']})" if name == "best_constant" else ""
            print(_row(name.replace("_", " ") + constant, json.loads(row), tasks, ""))
    for name, summary in summaries.items():
        search, _, seed = re.fullmatch(r"(.*?)(-s(\d+))?", name).groups()  # pyright: ignore[reportOptionalMemberAccess]
        difference = summary["paired"]["winner_vs_best_constant"]
        ratio = difference["diff"] / difference["se"] if difference["se"] else float("nan")
        label = f"{search}, seed {seed or 1}"
        text = f"{difference['diff']:+.4f} ± {difference['se']:.4f} ({ratio:+.1f} se)"
        print(_row(label, summary["report"]["winner"], tasks, text))


def _row(name: str, row: dict[str, Any], tasks: list[str], difference: str) -> str:
    scores = " | ".join(f"{row['tasks'][task]:.3f}" for task in tasks)
    return f"| {name} | {scores} | {row['mean']:.4f} ± {row['se']:.4f} | {difference} |"


if __name__ == "__main__":
    main()
