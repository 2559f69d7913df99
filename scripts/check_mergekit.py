"""Holds our merges against mergekit's own: `python scripts/check_mergekit.py [--small] [--json] [--venv DIR]`.

In: nothing but pico models that it makes, and the suite `text` if it has been built. Each recipe is merged twice: by
`evomerge merge`, and by mergekit 0.1.5 in an environment of its own from the YAML that we export. Out: for every case
how many tensors are the same bits, and the largest distance in units in the last place of the output's dtype; the exit
status is 1 if one is larger than 1, or if one model has a tensor that the other lacks.

Not compared, since mergekit cannot express them: `dare_ties` (its masks come from another random generator), task
vectors that were transformed over the whole model, and groups that are parts of tensors; `evomerge export RUN
--materialise DIR` is the way out for these.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergekit_parity.cases import Case
    from mergekit_parity.compare import Verdict

ENVIRONMENT = Path(__file__).parents[1] / ".cache" / "mergekit-venv"


def main(argv: list[str] | None = None) -> int:
    """Run the cases and print what they give; return the exit status."""
    parser = argparse.ArgumentParser(description="Compare merges with mergekit's own, tensor by tensor.")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each case, and nothing else")
    parser.add_argument("--small", action="store_true", help="four cases instead of all")
    parser.add_argument("--venv", type=Path, default=ENVIRONMENT, help="the environment of mergekit, made if missing")
    arguments = parser.parse_args(argv)

    from mergekit_parity.cases import ALL, SMALL, is_there  # here, since torch comes with it: --help should not wait
    from mergekit_parity.peer import PeerError, make_environment
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    status = 0
    try:
        make_environment(arguments.venv)
    except PeerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for case in SMALL if arguments.small else ALL:
        if not is_there(case):
            print(f"skipped: {case.name}, whose models scripts/build_suite.py text makes", file=sys.stderr)
            continue
        verdict = run_case(case, arguments.venv)
        row = {"case": case.name, **{name: getattr(verdict, name) for name in ("tensors", "bit_equal", "max_ulp")}}
        if arguments.json:
            print(json.dumps(row), flush=True)
        else:
            print("{case:<36} {bit_equal:>3} of {tensors:>3} tensors bit-equal, max {max_ulp} ulp".format(**row))
        for text in (*verdict.notes, *verdict.faults):
            print(f"  {case.name}: {text}", file=sys.stderr)
        status |= bool(verdict.faults)
    return status


def run_case(case: Case, environment: Path) -> Verdict:
    """Merge a case twice and compare; what goes wrong on the way is a fault, too."""
    from mergekit_parity.cases import FAMILIES, write_case
    from mergekit_parity.compare import Verdict, compare
    from mergekit_parity.peer import PeerError, run_mergekit, run_mergekit_pytorch

    from evomerge.cli import main as evomerge
    from evomerge.weights import read_tensors, weight_files

    with TemporaryDirectory() as scratch:
        directory = Path(scratch)
        tied = write_case(case, directory)
        run = run_mergekit_pytorch if FAMILIES[case.family].raw else run_mergekit
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                evomerge(["merge", str(directory / "recipe.yaml"), str(directory / "ours")])
            run(environment, directory / "mergekit.yaml", directory / "theirs")
        except SystemExit:
            return Verdict(faults=[f"evomerge merge failed: {said.getvalue()}"])
        except PeerError as error:
            return Verdict(faults=[str(error)])
        ours, theirs = (read_tensors(weight_files(directory / name)) for name in ("ours", "theirs"))
        return compare(ours, theirs, tied)


if __name__ == "__main__":
    sys.exit(main())
