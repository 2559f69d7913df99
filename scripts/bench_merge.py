"""How fast candidates are made: `python scripts/bench_merge.py [--json] [--cases 'ties*' ...] [--mergekit [DIR]]`.

In: nothing but random models of a Llama shape, 134 M parameters in bfloat16, which it makes in a temporary directory.
Out: a line for each case, of each the median over rounds in which all cases and all probes of the bandwidth take turns:

    case, method, dtype, rows, store    what: a method over so many experts, kept as bfloat16, float32, int8 or int4
    seconds          of a candidate; each round has coefficients of its own
    roofline_ratio   what share of the memory's bandwidth it reaches: bytes / bandwidth / seconds. Bytes are θ₀, each
                     row at its stored size and the output, once each; the bandwidth is that of the fastest probe
    mergekit_ratio   seconds of mergekit 0.1.5 for the same candidate / ours, with `--mergekit`
    prepare_seconds  what is done once before a search, without compiling
    extra_memory     the largest growth of anonymous memory while a candidate is made, in bytes. Case `... prepared`:
                     while it is prepared

Other cases have nothing but seconds: the random numbers of `dare` alone; the first merge of a method on a machine,
compiling, and in the next process. A ratio above 1.05 says that the bandwidth was measured wrong: it voids the run, and
the exit status is 1. What else is of interest, such as the load of the machine, goes to the standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

VOID = 1.05
"""The roofline ratio above which a run is void."""
ENVIRONMENT = Path(__file__).parents[1] / ".cache" / "mergekit-venv"


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument("--cases", nargs="*", default=[], metavar="PATTERN", help="names of cases, such as 'linear*'")
    parser.add_argument("--rounds", type=int, default=15, help="how often each case is timed")
    parser.add_argument("--layers", type=int, default=30, help="blocks of the models")
    parser.add_argument("--width", type=int, default=576, help="of their hidden states, a multiple of 18")
    parser.add_argument("--vocabulary", type=int, default=49152, help="tokens of their embeddings")
    parser.add_argument("--first-use", action="store_true", help="compile into an empty cache, instead of the cases")
    help = "time mergekit as well, in an environment of its own in DIR, made if missing"
    parser.add_argument("--mergekit", type=Path, nargs="?", const=ENVIRONMENT, metavar="DIR", help=help)
    arguments = parser.parse_args(argv)

    from merge_bench.cases import chosen  # here, since torch comes with it: --help should not wait
    from merge_bench.first_use import first_uses
    from merge_bench.measuring import measure, row_of
    from merge_bench.models import Shape

    if arguments.first_use:
        for method, which, seconds in first_uses():
            _tell(row_of(f"{which} use of {method}", method, rows=3, store="bfloat16", seconds=seconds), arguments.json)
        return 0
    if not (cases := chosen(arguments.cases)):
        parser.error(
            f"no case is called {' or '.join(arguments.cases)}: they are {', '.join(c.name for c in chosen([]))}"
        )
    shape = Shape(arguments.layers, arguments.width, arguments.vocabulary)
    with TemporaryDirectory() as directory:
        rows = measure(Path(directory), cases, shape, arguments.rounds, arguments.mergekit)
    for row in rows:
        _tell(row, arguments.json)
    if void := [row["case"] for row in rows if (row["roofline_ratio"] or 0) > VOID]:
        print(f"void: {', '.join(void)} faster than the bandwidth that was measured; run it again", file=sys.stderr)
    return int(bool(void))


def _tell(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(row), flush=True)
        return
    said = [f"{name} {value:g}" for name, value in row.items() if isinstance(value, float)]
    if row["extra_memory"] is not None:
        said.append(f"extra_memory {row['extra_memory'] / 1e6:.1f} MB")
    print(f"{row['case']:<32} {', '.join(said)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
