"""The merged model of a recipe as a directory that transformers loads, made anywhere, one shard in memory at a time.

In: a recipe, and the directories of base and experts with exactly the weights that it names by their hashes. Out: a
directory with weights, config, tokenizer, the heads of the tasks, the recipe and a model card. It is there as a whole
or not at all; a killed merge leaves nothing that loads. Nothing is run and nothing is cached: names come from the
config, weights from the files (`rebuild.py`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.common.directories import whole_directory
from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.common.files import write_atomically
from evomerge.common.names import unknown
from evomerge.common.progress import Progress
from evomerge.models.buffers import BASE
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.live import LiveModel, load_skeleton
from evomerge.models.templates import write_template
from evomerge.models.vocabulary import UNION
from evomerge.models.weight_files import read_json, weight_files
from evomerge.models.weights import dtype_name, read_tensors
from evomerge.recipes.beside import copy_file, look_beside, unmerged
from evomerge.recipes.buffers import merged_buffers
from evomerge.recipes.card import model_card
from evomerge.recipes.copies import tied_copies
from evomerge.recipes.dtypes import BY_NAME, parameter_dtypes, scored_dtype
from evomerge.recipes.filling import Filling
from evomerge.recipes.kept import kept_notes
from evomerge.recipes.origins import find_heads, find_origins, open_origin
from evomerge.recipes.rebuild import Compared, Rebuild
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.shards import bytes_of, check_size, plan_shards, write_shards
from evomerge.task_vectors.family import family_notes
from evomerge.task_vectors.store import TaskVectors

DTYPE_KEYS = ("dtype", "torch_dtype")
"""What a config calls it now, and what it called it in earlier years."""
RECORD = "merge.json"
"""In which a merged model tells which merge it is."""
FORMAT = 2
"""Of what is written: version 0.2 made another directory of the same recipe."""
SPARE = 1 << 20  # bytes of all that is small


def write_model(
    recipe: Recipe,
    beside: Path,
    out: Path,
    *,
    base: Path | None = None,
    experts: Mapping[str, Path] | None = None,
    max_shard_size: str | None = None,
    dtype: str | None = None,
    exact: bool = False,
    made: TaskVectors | None = None,
    reporter: Progress,
) -> Path:
    """Build the merged model of a recipe as a directory.

    The weights are bit for bit those of the live model that was scored, if that was on a CPU. Memory beyond what is
    mapped from files: the largest shard and about 20 MiB. A method that looks at whole parameters (`ties`, `dare_ties`)
    takes about eight times the largest of them in float32 for each expert, and a transform as it needs. Of an expert
    with fewer tokens than the base, whose rows are merged, embedding and head are held in memory.

    Args:
        recipe: what to build.
        beside: the directory of the recipe: its heads are there, and its sources if they are not where it says.
        out: the directory to make; missing, empty, or this very merge, which is then left as it is.
        base: where the base is, if not where the recipe says.
        experts: where experts are, by name, if not where the recipe says.
        max_shard_size: such as 5GB; None for the files that the base has.
        dtype: to cast to, such as bfloat16; None for that in which the model was scored.
        exact: merge the experts as they are where the recipe's task vectors were packed, and say what that changes. It
            takes two copies in float32 of the largest parameter.
        made: the rows of the recipe, where a search has made them; None to make them of the experts.
        reporter: is told what goes on.

    Returns:
        `out`.

    Raises:
        ConfigError: `out` holds something else, a source or a head is not found, or a setting is wrong.
        CheckpointError: a source is damaged or has other weights than the recipe says, there is no room on the disk,
            or the result is not finite.
    """
    if dtype is not None and dtype not in BY_NAME:
        raise ConfigError(f"--dtype: {unknown('dtype', dtype, BY_NAME)}")
    if max_shard_size is not None:
        check_size(max_shard_size)
    digest = hashlib.sha256(recipe.to_yaml().encode()).hexdigest()
    record = {"format": FORMAT, "recipe": digest, "dtype": dtype, "max_shard_size": max_shard_size}
    exact = exact and bool(recipe.store)
    record |= {"exact": True} if exact else {}
    if _is_there(out, record):
        reporter.say(f"{out} is this very merge already: nothing to do.")
        return out
    merge = _opened(recipe, beside, find_origins(recipe, beside, base, experts or {}), exact, made, reporter)
    scored = scored_dtype(recipe, merge.base, merge.live)
    kind, copies = BY_NAME[dtype] if dtype else scored, tied_copies(merge.base, scored)
    dtypes = parameter_dtypes(merge.base.path, recipe.auto_class, kind)
    shards = plan_shards(merge.base, dtypes, BY_NAME[dtype] if dtype else None, max_shard_size, copies)
    tokenizer = merge.live.union and merge.live.union.tokenizer
    found = look_beside(merge.base.path, merge.experts, merge.base.modules, tokenizer)
    left = unmerged(merge.base, copies, recipe.auto_class)
    notes = [*found.notes, *left, *_rounded(kind, scored), *_asked(recipe)]
    for note in notes:
        reporter.say(f"note: {note}")
    with whole_directory(out) as directory:
        _check_room(directory, bytes_of(shards) + found.nbytes + SPARE)
        with reporter.bars(), reporter.working("merging"):
            filling = Filling(merge.rebuild, merge.base, merge.parameters, merge.buffers)
            write_shards(shards, filling, directory, reporter.steps)
        kept = kept_notes(recipe, merge.rebuild.difference if isinstance(merge.rebuild, Compared) else None)
        for note in kept:
            reporter.say(f"note: {note}")
        found.copy(directory)
        _copy_own(recipe, beside, merge, directory)
        card = model_card(
            *(recipe, merge.base.path, merge.experts, merge.parameters, dtype, notes, merge.family, kept, exact)
        )
        write_atomically(directory / "README.md", card)
        write_atomically(directory / RECORD, json.dumps(record, indent=1) + "\n")
        tokens = merge.live.union and merge.live.union.size
        write_config(merge.base, directory, dtype_name(kind), tokens)  # last: without it nothing loads
    return out


def _copy_own(recipe: Recipe, beside: Path, merge: Opened, directory: Path) -> None:
    """Write what belongs to the recipe: itself, its heads and statistics, and the template that it was scored with."""
    if recipe.template is not None:
        write_template(directory, merge.experts[recipe.template])
    for task, file in merge.heads.items():
        copy_file(file, directory / recipe.heads[task])
    if "file" in recipe.buffers:
        copy_file(beside / recipe.buffers["file"], directory / recipe.buffers["file"])
    write_atomically(directory / "recipe.yaml", recipe.to_yaml())


def _rounded(kind: torch.dtype, scored: torch.dtype) -> Iterator[str]:
    """Say so where the weights are not in the dtype in which they were scored."""
    if kind != scored:
        yield (
            f"written in {dtype_name(kind)}, and scored in {dtype_name(scored)}: each weight is rounded otherwise, so "
            f"the scores are not to the last digit those of this directory"
        )


def _asked(recipe: Recipe) -> Iterator[str]:
    """Say whose template the merge has."""
    if recipe.template is not None:
        yield (
            f"chat template, end token and generation config are those of the expert {recipe.template}, with which "
            f"it was scored; the rest of the tokenizer is the base's"
        )


@dataclass(frozen=True)
class Opened:
    """A recipe's sources, and what rebuilds its merge of them.

    Attributes:
        live: the base's modules, without memory.
        base: its weights.
        experts: where the others are, by name.
        heads: the files of the tasks' heads.
        rebuild: makes the merged parameters.
        parameters: which are merged, and their shapes.
        family: what should be known of the experts.
        buffers: by key those that the merge has otherwise than the base.
    """

    live: LiveModel
    base: Checkpoint
    experts: dict[str, Path]
    heads: Mapping[str, Path]
    rebuild: Rebuild | Compared
    parameters: dict[str, tuple[int, ...]]
    family: list[str]
    buffers: dict[str, Tensor]


def _opened(
    recipe: Recipe,
    beside: Path,
    places: Mapping[str, Path],
    exact: bool,
    made: TaskVectors | None,
    reporter: Progress,
) -> Opened:
    """Open base and experts, and say what should be known of them.

    Raises:
        ConfigError: a head is not found.
        CheckpointError: a source is damaged or has other weights than the recipe says.
    """
    heads = find_heads(recipe, beside)
    live = load_skeleton(places[""], recipe.auto_class).with_part(recipe.part)
    own = {name: places[name] for name in recipe.experts}
    if recipe.vocabulary == UNION:
        live = _united(recipe, live, places[""], own)
    with reporter.bars(), reporter.working("comparing the sources with the hashes of the recipe"):
        base = open_origin("", recipe.base, places[""], live, reporter)
        fit = {"vocabulary": recipe.vocabulary, "base": base}
        experts = {
            name: open_origin(name, one, places[name], live, reporter, **fit) for name, one in recipe.experts.items()
        }
    parameters = {name: shape for name, shape in live.parameters.items() if name not in base.missing}
    anything = ["*"]  # whoever searched with these meant it
    buffers, template = recipe.buffers.get("name", BASE), recipe.template or BASE
    family = family_notes(
        own, live, base, experts, parameters, anything, written=True, buffers=buffers, template=template
    )
    for note in family:
        reporter.say(f"warning: {note}")
    with reporter.working("looking at the task vectors"):
        rebuild = Rebuild(recipe, base, experts, parameters, made=made)
        if exact:
            rebuild = Compared(Rebuild(recipe, base, experts, parameters, exact=True), rebuild)
        found = merged_buffers(recipe, beside, base, experts)
    return Opened(live, base, own, heads, rebuild, parameters, family, found)


def _is_there(out: Path, record: Mapping[str, Any]) -> bool:
    """Whether a directory is this very merge.

    Raises:
        ConfigError: it is something else, which is left alone.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = read_json(out / RECORD)
        read_json(out / "config.json")
        read_tensors(weight_files(out))  # all that the index names; their headers alone are read
    except (CheckpointError, OSError):
        found = None
    if found == record:
        return True
    what = "is a file" if out.is_file() else "holds another merge" if found else "holds other files"
    raise ConfigError(f"{out} {what}, and nothing is overwritten: name a new directory, or remove this one first.")


def _check_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise CheckpointError(
            f"The merged model needs {needed / 2**30:.2f} GiB, and {directory.parent} has {free / 2**30:.2f} GiB left: "
            f"make room, or write to another disk."
        )


def _united(recipe: Recipe, live: LiveModel, base: Path, experts: Mapping[str, Path]) -> LiveModel:
    """Return the skeleton with rows for the tokens of all experts, if they are those of the recipe."""
    live = live.united(base, experts.values())
    if live.union and live.union.digest != recipe.union:
        raise CheckpointError(
            "The tokenizers of base and experts are not those that the recipe was made with (model.vocabulary=union), "
            "so rows would stand for other tokens. Take the directories as they were, or search anew."
        )
    return live


def write_config(base: Checkpoint, directory: Path, dtype: str, tokens: int | None = None) -> None:
    """Write the base's config.json, with the dtype in which the weights are loaded as they were scored, and as many
    tokens as there are rows.
    """

    def changed(config: Mapping[str, Any], says: bool) -> dict[str, Any]:
        own = {
            name: changed(value, name == "text_config")
            if name.endswith("_config") and isinstance(value, dict)
            else value
            for name, value in config.items()
        }
        if tokens and "vocab_size" in own:
            own["vocab_size"] = tokens
        said = [name for name in DTYPE_KEYS if own.get(name) is not None]
        return {**own, **dict.fromkeys(said or (["dtype"] if says else []), dtype)}

    target, config = directory / "config.json", changed(base.config, says=True)
    if config == base.config:
        return copy_file(base.path / "config.json", target)
    return write_atomically(target, json.dumps(config, indent=2) + "\n")
