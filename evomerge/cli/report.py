"""`evomerge report`: one HTML page for a run, for several, or for a comparison, with pictures beside it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """examples:
  evomerge report runs/text-linear-layer-cmaes          writes runs/text-linear-layer-cmaes/report.html
  evomerge report runs/text-linear-*                    a page for each, and runs/report.html, which compares them
  evomerge report runs/a runs/b -o comparison.html      the same, elsewhere

A run need not have ended: the page then says how far it is, and is drawn anew when you call this again. The page holds
all that it shows, so it can be sent as it is. With --pictures, PNG files lie in a directory of its name beside it.
"""


def main(arguments: Sequence[str]) -> None:
    """Write the report of one run or of several, and print where it is.

    Args:
        arguments: the run directories, and where the page goes.
    """
    parser = argparse.ArgumentParser(
        prog="evomerge report",
        description="Draw a run, or several, as one HTML page.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = "run directories that `evomerge search` made, or one of `evomerge compare`"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=what)
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="where the page goes, a file or a directory: RUN/report.html, or report.html beside the runs if left out",
    )
    parser.add_argument("--pictures", action="store_true", help="draw PNG files as well (pip install 'evomerge[plot]')")
    given = parser.parse_args(arguments)
    from evomerge.report import is_comparison, write_comparison, write_report, write_sweep

    one = len(given.runs) == 1
    if one and is_comparison(given.runs[0]):
        print(os.path.relpath(write_comparison(given.runs[0], given.out)))
        return
    draw = {"pictures": given.pictures}
    page = write_report(given.runs[0], given.out, **draw) if one else write_sweep(given.runs, given.out, **draw)
    print(os.path.relpath(page))
