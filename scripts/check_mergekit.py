"""Holds our merges against mergekit's own: `python scripts/check_mergekit.py [--small] [--json] [--venv DIR] [--run RUN
...]`.

In: nothing but pico models that it makes, and the suite `text` if it has been built. Each recipe is merged twice: by
`evomerge merge`, and by mergekit 0.1.5 in an environment of its own from the YAML that we export. Out: for every case
how many tensors are the same bits, and the largest distance in units in the last place of the output's dtype; the exit
status is 1 if one is larger than 1, or if one model has a tensor that the other lacks. With `--run`, the winners of
these run directories are merged instead, from their own `recipe.yaml` and `mergekit.yaml`.

Not compared, since mergekit cannot express them: random masks, which come from another generator (`dare` and `della`
are compared where they drop nothing), elections by count, shares over several tensors, task vectors that were
transformed over the whole model, and groups that are parts of tensors; `evomerge export RUN --materialise DIR` is the
way out for most of these.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from mergekit_parity.cases import Case
    from mergekit_parity.compare import Verdict
    from mergekit_parity.reading import Reading

ENVIRONMENT = Path(__file__).parents[1] / ".cache" / "mergekit-venv"


def main(argv: list[str] | None = None) -> int:
    """Run the cases and print what they give; return the exit status."""
    parser = argparse.ArgumentParser(description="Compare merges with mergekit's own, tensor by tensor.")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each case, and nothing else")
    parser.add_argument("--small", action="store_true", help="a few cases instead of all")
    parser.add_argument("--read", action="store_true", help="only the cases of reading mergekit's YAML")
    parser.add_argument("--venv", type=Path, default=ENVIRONMENT, help="the environment of mergekit, made if missing")
    parser.add_argument("--run", type=Path, action="append", default=[], help="a run directory, instead of the cases")
    arguments = parser.parse_args(argv)
    for run in arguments.run:
        if lost := [name for name in ("recipe.yaml", "mergekit.yaml") if not (run / name).is_file()]:
            parser.error(f"{run} has no {' and no '.join(lost)}: name the directory of a search that is complete")

    from mergekit_parity.cases import ALL, SMALL, is_there  # here, since torch comes with it: --help should not wait
    from mergekit_parity.peer import PeerError, make_environment
    from mergekit_parity.reading import READINGS, SMALL_READINGS
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    status = 0
    try:
        make_environment(arguments.venv)
    except PeerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for run in arguments.run:
        status |= _tell(run.name, run_winner(run, arguments.venv), arguments.json)
    for case in () if arguments.run or arguments.read else SMALL if arguments.small else ALL:
        if not is_there(case):
            print(f"skipped: {case.name}, whose models scripts/build_suite.py text makes", file=sys.stderr)
            continue
        status |= _tell(case.name, run_case(case, arguments.venv), arguments.json)
    for reading in () if arguments.run else SMALL_READINGS if arguments.small else READINGS:
        status |= _tell(reading.name, run_reading(reading, arguments.venv), arguments.json)
    return status


def _tell(name: str, verdict: Verdict, as_json: bool) -> bool:
    """Print a verdict; return whether there are faults."""
    row = {"case": name, **{each: getattr(verdict, each) for each in ("tensors", "bit_equal", "max_ulp")}}
    if as_json:
        print(json.dumps(row), flush=True)
    else:
        print("{case:<36} {bit_equal:>3} of {tensors:>3} tensors bit-equal, max {max_ulp} ulp".format(**row))
    for text in (*verdict.notes, *verdict.faults):
        print(f"  {name}: {text}", file=sys.stderr)
    return bool(verdict.faults)


def run_winner(run: Path, environment: Path) -> Verdict:
    """Merge the winner of a run twice and compare; its paths are seen from here, as they were when it was searched."""
    from evomerge.models.live import load_skeleton
    from evomerge.recipes.recipe import Recipe

    recipe = Recipe.from_yaml((run / "recipe.yaml").read_text(encoding="utf-8"))
    live = load_skeleton(Path(recipe.base.path), recipe.auto_class)
    document = yaml.safe_load((run / "mergekit.yaml").read_text(encoding="utf-8"))
    if "base_model" in document:
        document["base_model"] = str(Path(document["base_model"]).absolute())
    for model in document["models"]:
        model["model"] = str(Path(model["model"]).absolute())
    with TemporaryDirectory() as scratch:
        config = Path(scratch) / "mergekit.yaml"
        config.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        raw = type(live.model).__name__.startswith("Bert")
        return merge_twice(run / "recipe.yaml", config, Path(scratch), environment, raw, live.tied)


def run_case(case: Case, environment: Path) -> Verdict:
    """Merge a case twice and compare."""
    from mergekit_parity.cases import FAMILIES, write_case
    from mergekit_parity.reading import ORDER

    with TemporaryDirectory() as scratch:
        directory = Path(scratch)
        tied = write_case(case, directory)
        recipe, config = directory / "recipe.yaml", directory / "mergekit.yaml"
        raw, limit = FAMILIES[case.family].raw, None if case.loose else 1
        verdict = merge_twice(recipe, config, directory, environment, raw, tied, limit)
        if case.loose and not verdict.faults:
            _check_near(directory / "ours", directory / "theirs", ORDER, verdict)
        return verdict


def run_reading(case: Reading, environment: Path) -> Verdict:
    """Merge a YAML twice, both from its own text, and compare; no unit may differ.

    Where mergekit does otherwise than the text says, it merges the twin of the text, and a note tells how far the text
    itself is from that.
    """
    from mergekit_parity.reading import write_reading

    with TemporaryDirectory() as scratch:
        directory = Path(scratch)
        tied = write_reading(case, directory)
        config, twin = directory / "mergekit.yaml", directory / "twin.yaml"
        verdict = merge_twice(config, twin, directory, environment, False, tied, limit=None if case.loose else 0)
        if case.loose and not verdict.faults:
            _check_near(directory / "ours", directory / "theirs", case.why, verdict)
        if case.twin:
            own = compared(directory / "ours", config, directory / "own", environment, False, tied, None)
            verdict.notes.append(
                f"mergekit's own merge of this text: {own.bit_equal} of {own.tensors} bit-equal, max {own.max_ulp} "
                f"ulp; {case.why}"
            )
        return verdict


def _check_near(ours: Path, theirs: Path, why: str, verdict: Verdict) -> None:
    """Hold two merges against each other whose last bits may differ, tensor by tensor."""
    from mergekit_parity.compare import NEAR

    from evomerge.models.weight_files import weight_files
    from evomerge.models.weights import read_tensors

    one, other = (read_tensors(weight_files(path)) for path in (ours, theirs))
    worst = max(float((one[key] - other[key]).abs().max() / other[key].abs().max()) for key in one)
    verdict.notes.append(f"the largest difference is {worst:.1e} of the largest element of a tensor; {why}")
    if worst > NEAR:
        verdict.faults.append(f"differs by {worst:.1e}")


def merge_twice(
    recipe: Path,
    config: Path,
    scratch: Path,
    environment: Path,
    raw: bool,
    tied: Mapping[str, str],
    limit: int | None = 1,
) -> Verdict:
    """Merge a recipe by evomerge and its YAML by mergekit, and compare; what goes wrong on the way is a fault, too.

    Args:
        recipe: our recipe, or the YAML that both merge.
        config: mergekit's YAML of the same.
        scratch: an empty directory, or one with other names in it than `ours` and `theirs`.
        environment: of mergekit.
        raw: whether mergekit has to take the weight files alone.
        tied: alias -> key of the tensors that are tied.
        limit: how many units in the last place an element may differ by; None: any number.
    """
    from mergekit_parity.compare import Verdict

    from evomerge.cli.main import main as evomerge

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            evomerge(["merge", str(recipe), str(scratch / "ours")])
    except SystemExit:
        return Verdict(faults=[f"evomerge merge failed: {said.getvalue()}"])
    return compared(scratch / "ours", config, scratch / "theirs", environment, raw, tied, limit)


def compared(
    ours: Path, config: Path, theirs: Path, environment: Path, raw: bool, tied: Mapping[str, str], limit: int | None
) -> Verdict:
    """Merge a YAML by mergekit, and compare what comes out with a merge of ours.

    Args:
        ours: the directory of our merge.
        config: mergekit's YAML.
        theirs: the directory to make.
        environment: of mergekit.
        raw: whether mergekit has to take the weight files alone.
        tied: alias -> key of the tensors that are tied.
        limit: how many units in the last place an element may differ by; None: any number.
    """
    from mergekit_parity.compare import Verdict, compare
    from mergekit_parity.peer import PeerError, run_mergekit, run_mergekit_pytorch

    from evomerge.models.weight_files import weight_files
    from evomerge.models.weights import read_tensors

    try:
        (run_mergekit_pytorch if raw else run_mergekit)(environment, config, theirs)
    except PeerError as error:
        return Verdict(faults=[str(error)])
    one, other = (read_tensors(weight_files(path)) for path in (ours, theirs))
    return compare(one, other, tied, limit)


if __name__ == "__main__":
    sys.exit(main())
