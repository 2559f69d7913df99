"""`evomerge merge`: the merged model of a recipe, of a merge YAML of mergekit, or of the checkpoints of a training run,
as a directory that transformers loads.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.common.errors import ConfigError

if TYPE_CHECKING:  # torch takes seconds to import; `--help` needs none
    from evomerge.cli.progress import Reporter
    from evomerge.recipes.recipe import Recipe

EXAMPLES = """\
examples:
  evomerge merge runs/<name>/recipe.yaml merged/
  evomerge merge recipe.yaml merged/ --base models/base --expert mood=models/mood --expert topic=models/topic
  evomerge merge recipe.yaml merged/ --dtype bfloat16 --max-shard-size 5GB
  evomerge merge recipe.yaml adapter/ --adapter          of adapters: one PEFT adapter, exact, of all their ranks
  evomerge merge recipe.yaml adapter/ --adapter --rank 16      of any merge: the nearest one of this rank
  evomerge merge recipe.yaml merged/ --push owner/name
  evomerge merge mergekit.yaml merged/       a merge YAML of mergekit's; what is done otherwise is named with its line
  evomerge merge 'run/checkpoint-*' merged/ --weights ema       the mean of the checkpoints of one training run

The sources are looked for where the recipe says, from the working directory or from the recipe's own, and by their
commit on the hub, if they came from there. Their weights must be those that the recipe was made from, by their hashes.
DIR may be a name on the hub: owner/name or owner/name@revision. The merged directory is there as a whole or not at all;
the same command again finds it done. Files of the base that are neither weights nor code are taken over; what is left
out or not merged is named here and on the card.
"""


def main(arguments: Sequence[str]) -> None:
    """Build a merged model.

    Args:
        arguments: those after the verb.
    """
    given = _parsed(arguments)
    experts = _places(given.expert)

    from evomerge.cli.progress import Reporter
    from evomerge.models.upload import Upload

    upload = Upload(given.push, not given.public) if given.push else None
    if upload:
        upload.check(given.out)
    reporter = Reporter()
    recipe = _mean(given, reporter) if given.weights else _read(given.recipe, reporter)
    if given.adapter:
        _write_adapter(given, recipe, experts, reporter)
    else:
        _write_model(given, recipe, experts, reporter)
    if upload:
        print(f"on the hub: {upload.send(given.out)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evomerge merge",
        description="Build the merged model of a recipe, of a merge YAML of mergekit, or of the checkpoints of a run: "
        "weights, what lies beside the base's, heads, recipe and card.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "recipe",
        type=Path,
        help="a recipe.yaml, with its heads/ beside it; or a merge YAML of mergekit; or, with --weights, checkpoints "
        "of one training run, as a pattern in quotes or a list",
    )
    parser.add_argument("out", type=Path, help="the directory to make")
    parser.add_argument("--base", type=Path, metavar="DIR", help="where the base is, if not where the recipe says")
    parser.add_argument(
        "--expert", action="append", default=[], metavar="NAME=DIR", help="where an expert is; once for each"
    )
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", help="such as 5GB or 500MB; as the base's files if left out"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights; as they were scored if left out"
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="merge the experts as they are where the search packed task vectors (model.store), and say what differs",
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="write one PEFT adapter in place of a model: exact, of a weighted sum of adapters",
    )
    parser.add_argument(
        "--rank",
        type=int,
        metavar="N",
        help="with --adapter: the nearest one of this rank, of any merge, and how far off it is",
    )
    parser.add_argument(
        "--weights",
        metavar="NAME",
        help="how checkpoints are weighed: swa, lawa, ema or wsm; with settings: '{ema: {decay: 0.9}}'",
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="send it to the hub as well, with recipe and card")
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--private", action="store_true", help="with --push: only its owner may see it; so if left out")
    seen.add_argument("--public", action="store_true", help="with --push: everybody may see it")
    return parser


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; flags that do not go together end the program, as wrong ones do."""
    parser = _parser()
    given, beyond = parser.parse_known_args(arguments)
    if beyond:
        parser.error(f"unrecognized arguments: {' '.join(beyond)}; a pattern of checkpoints is written in quotes")
    if given.rank is not None and not given.adapter:
        parser.error("--rank N is the rank of an adapter: write --adapter --rank N")
    if given.adapter and (given.dtype or given.max_shard_size or given.exact):
        parser.error("--adapter writes factors in float32: leave out --dtype, --max-shard-size and --exact")
    if (given.private or given.public) and not given.push:
        parser.error("--private and --public say who may see what is sent: write --push owner/name as well")
    return given


def _write_model(given: argparse.Namespace, recipe: Recipe, experts: Mapping[str, Path], reporter: Reporter) -> None:
    """Write the merged model."""
    from evomerge.recipes.model import write_model

    out = write_model(
        recipe,
        given.recipe.parent,
        given.out,
        base=given.base,
        experts=experts,
        max_shard_size=given.max_shard_size,
        dtype=given.dtype,
        exact=given.exact,
        reporter=reporter,
    )
    print(f"merged model: {out}")
    print(f'load it with: transformers.{recipe.auto_class}.from_pretrained("{out}")')


def _write_adapter(given: argparse.Namespace, recipe: Recipe, experts: Mapping[str, Path], reporter: Reporter) -> None:
    """Write a merge as an adapter."""
    from evomerge.recipes.adapter import write_adapter

    places = {"base": given.base, "experts": experts}
    written = write_adapter(recipe, given.recipe.parent, given.out, rank=given.rank, reporter=reporter, **places)
    if written.distance:
        print(written.distance)
    print(f"merged adapter: {written.path} (rank {written.rank})")
    print(f'load it with: peft.PeftModel.from_pretrained(base, "{written.path}")')


def _places(given: Sequence[str]) -> dict[str, Path]:
    """Return the directories that `--expert` names."""
    places = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--expert {text} does not say which expert is where: write --expert NAME=DIR.")
        places[name] = Path(path)
    return places


def _mean(given: argparse.Namespace, reporter: Reporter) -> Recipe:
    """Return the mean of checkpoints as a recipe."""
    from evomerge.models.trajectory import find_checkpoints
    from evomerge.recipes.trajectory import mean_of, notes_of
    from evomerge.runs.closed_forms import schedule_of

    schedule, text = schedule_of(_understood(given.weights)), str(given.recipe)
    found = find_checkpoints([str(one) for one in _understood(text)] if text.startswith("[") else text)
    base = str(given.base) if given.base else None
    recipe = mean_of(found, schedule.weights(len(found)).tolist(), base, reporter)
    for note in notes_of(recipe, len(found)):
        reporter.say(f"note: {note}")
    return recipe


def _understood(text: str) -> Any:
    """Return what a text says as YAML."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{text} cannot be read: write brackets and braces in pairs, {{ema: {{decay: 0.9}}}}."
        ) from error


def _read(path: Path, reporter: Reporter) -> Recipe:
    from evomerge.recipes.reading import read_merge

    if not path.is_file():
        inside = path / "recipe.yaml"
        hint = f"write {inside}" if inside.is_file() else "a search writes one at its end, runs/<name>/recipe.yaml"
        raise ConfigError(f"There is no recipe {path}: {hint}.")
    told = read_merge(path, reporter)
    for note in told.notes:
        reporter.say(f"note: {path}: {note}")
    return told.recipe
