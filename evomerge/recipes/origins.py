"""Where the sources of a recipe are on this machine, and whether they are the ones that it was made from.

In: a recipe, and what the user says of where its sources are. Out: their directories, the files of its heads, and the
opened weights, which have the recipe's hashes. The base stands under no name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.common.names import unknown
from evomerge.common.paths import started_in
from evomerge.common.progress import Progress
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.dequantised import dequantised, is_quantised
from evomerge.models.hub import find_directory, is_name
from evomerge.models.live import LiveModel
from evomerge.recipes.recipe import Recipe, Source


def _sources(recipe: Recipe) -> Iterator[tuple[str, Source]]:
    """Yield the base, under no name, and the experts by name."""
    yield "", recipe.base
    yield from recipe.experts.items()


def find_origins(recipe: Recipe, beside: Path, base: Path | None, experts: Mapping[str, Path]) -> dict[str, Path]:
    """Return where the sources are: as given, else as the recipe says, from here or from where it lies, or on the hub.

    Args:
        recipe: whose sources.
        beside: the directory of the recipe.
        base: where the base is, or its name on the hub, if not where the recipe says.
        experts: the same of experts, by name.

    Raises:
        ConfigError: some are not there.
    """
    for name in experts:
        if name not in recipe.experts:
            raise ConfigError(f"--expert {name}: {unknown('expert', name, recipe.experts)}")
    given = {**({"": base} if base else {}), **experts}
    found, lost = {}, []
    for name, source in _sources(recipe):
        path = Path(source.path).expanduser()
        roots = [Path(), beside, *started_in(beside)]
        tries = [given[name]] if name in given else list(dict.fromkeys(root / path for root in roots))
        place = next((place for place in tries if place.is_dir()), None)
        hub, why = (str(given[name]) if name in given else source.hub) or "", ""
        if source.dequantised:
            try:
                place = _as_numbers(source, place, hub, roots, recipe.auto_class)
            except (CheckpointError, ConfigError, OSError) as error:
                place = None
                why = (
                    f" (that was a copy, as numbers, of the quantised model {source.dequantised}, which cannot be made "
                    f"again: {error} Name the quantised model as DIR, or search again with model.dequantise=true)"
                )
        elif place is None and is_name(hub):
            try:
                place = find_directory(hub).path
            except CheckpointError as error:
                why = f" ({error})"
        if place is None:
            flag = f"--expert {name}=DIR" if name else "--base DIR"
            lost.append(f"{_who(name)} is not at {' or '.join(map(str, tries))}: {flag}{why}")
        else:
            found[name] = place
    if lost:
        raise ConfigError("Sources of the recipe are not there. Say where they are:\n  " + "\n  ".join(lost))
    return found


def _as_numbers(source: Source, place: Path | None, named: str, roots: Iterable[Path], auto_class: str) -> Path:
    """Return where the numbers of a quantised expert are, made again in the cache of the search if they are not there.

    Raises:
        ConfigError: the quantised model is not there.
        CheckpointError: it is not on the hub, or transformers cannot make numbers of it here.
    """
    if place is None:
        text = named or source.dequantised or ""
        own = [] if named else [root / Path(text).expanduser() for root in roots]
        place = next((path for path in own if path.is_dir()), None) or find_directory(text).path
    if not place.is_dir():
        raise ConfigError(f"{place} is not there.")
    cache = Path(source.path).expanduser().parent.parent
    return dequantised(place, auto_class, cache) if is_quantised(place) else place


def find_heads(recipe: Recipe, beside: Path) -> dict[str, Path]:
    """Return the files of the heads by task.

    Args:
        recipe: whose heads.
        beside: its directory.

    Raises:
        ConfigError: one is not there, or lies elsewhere than in `heads/`.
    """
    found = {}
    for task, text in recipe.heads.items():
        path = Path(text)
        if path.is_absolute() or path.parts[:1] != ("heads",) or ".." in path.parts:
            raise ConfigError(f"recipe: the head of {task} must lie in heads/ beside it, as heads/{task}.safetensors.")
        found[task] = beside / path
        if not found[task].is_file():
            raise ConfigError(
                f"The head of the task {task} is not at {found[task]}: copy the recipe with the heads/ beside it, or "
                f"take the task out of `heads` in the recipe to merge without it."
            )
    return found


def open_origin(name: str, source: Source, path: Path, live: LiveModel, reporter: Progress, **fit: Any) -> Checkpoint:
    """Open a source, if its weights are those that the recipe was made from.

    Args:
        name: of the expert; empty for the base.
        source: what the recipe says of it.
        path: where it is.
        live: the base's skeleton.
        reporter: shows progress.
        fit: of an expert, `vocabulary` and `base` of `open_checkpoint`.

    Raises:
        CheckpointError: it has other weights, or cannot be read.
    """
    opened = live.open(path, progress=reporter.steps, **fit)
    if opened.sha256 != source.sha256:
        flag = f"--expert {name}=DIR" if name else "--base DIR"
        raise CheckpointError(
            f"{_who(name)} in {path} has other weights than the recipe was made from: their hash is "
            f"{opened.sha256[:12]}, and the recipe says {source.sha256[:12]}. Name the right directory ({flag}), "
            f"download that version again, or search anew with these weights."
        )
    return opened


def _who(name: str) -> str:
    return f"the expert {name}" if name else "the base"
