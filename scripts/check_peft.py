"""Holds our fold of adapters against PEFT's own: `python scripts/check_peft.py --base DIR [--json]`.

In: a base of Llama's modules, such as that of `scripts/build_suite.py lm`. Out: a row for every kind of adapter, whose
factors are drawn: the largest relative difference to `merge_and_unload` in float32; and in bfloat16 the elements that
differ, by how many units at most, and how often evomerge and how often PEFT is the nearer one to the fold in float64.
The exit status is 1 if one of the two changes another tensor; if they differ by more than 1e-6 in float32, and
evomerge as much from the fold in float64; if they differ by more than a unit in bfloat16 (but for DoRA, where PEFT
rounds lengths as well); or if PEFT is nearer more often.

Kinds that the base has no modules for are on bases that hold its numbers: one untied with biases that are drawn, and a
GPT-2, whose matrices have inputs first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NEAR = 1e-6
"""How far two folds in float32 may be apart, as a share of a tensor's norm."""
HEAD = (
    "| adapter | base | tensors | float32: largest relative difference | bfloat16: elements | differ | units at most | "
    "evomerge nearer | PEFT nearer |\n|---|---|---|---|---|---|---|---|---|"
)
ROW = (
    "| {adapter} | {base} | {tensors} | {float32:.1e} | {elements:,} | {differ:,} | {units:g} | {evomerge_nearer:,} | "
    "{peft_nearer:,} |"
)


def main(argv: list[str] | None = None) -> int:
    """Compare every kind, print what is found, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, metavar="DIR", help="a model of Llama's modules")
    parser.add_argument("--json", action="store_true", help="a JSON object a line instead of a table")
    arguments = parser.parse_args(argv)

    from peft_parity.forms import FORMS  # here, since torch comes with it: --help should not wait
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    faults = []
    if not arguments.json:
        print(HEAD, flush=True)
    for base in dict.fromkeys(form.base for form in FORMS.values()):
        with TemporaryDirectory() as directory:
            for row, wrong in rows_of(base, arguments.base, Path(directory)):
                print(json.dumps(row) if arguments.json else ROW.format(**row), flush=True)
                faults += [f"{row['adapter']}: {text}" for text in wrong]
    for fault in faults:
        print(fault, file=sys.stderr)
    return int(bool(faults))


def rows_of(base: str, given: Path, directory: Path) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Yield a row for every kind of adapter of a base, and what is wrong with it.

    Args:
        base: the kind of base.
        given: the model whose numbers it has.
        directory: an empty one.
    """
    import torch
    from peft_parity.compare import compare, compare_narrow, distances
    from peft_parity.forms import FORMS, write_adapter, write_base

    narrow = torch.bfloat16
    for dtype in (torch.float32, narrow):
        write_base(base, given, directory / str(dtype), dtype)
    for name, form in FORMS.items():
        if form.base != base:
            continue
        for dtype in (torch.float32, narrow):
            write_adapter(form, directory / str(dtype), directory / name / str(dtype))
        wide = str(torch.float32)
        tensors, apart, faults = compare(directory / wide, directory / name / wide)
        found = compare_narrow(directory / str(narrow), directory / name / str(narrow), narrow)
        if apart > NEAR:
            ours, theirs = distances(directory / wide, directory / name / wide)
            text = f"differs by {apart:.1e} in float32: evomerge {ours:.1e} from the fold in float64, PEFT {theirs:.1e}"
            faults += [text] if ours > NEAR else []
            print(f"note: {name}: {text}", file=sys.stderr)
        faults += [f"differs by {found.units:g} units"] if found.units > 1 and not form.settings.get("use_dora") else []
        faults += ["PEFT is nearer more often"] if found.theirs > found.ours else []
        row = {"adapter": name, "base": base, "tensors": tensors, "float32": apart, "elements": found.elements}
        row |= {"differ": found.differ, "units": found.units}
        yield row | {"evomerge_nearer": found.ours, "peft_nearer": found.theirs}, faults


if __name__ == "__main__":
    sys.exit(main())
