"""The settings of `evomerge evaluate`: those that were given, on top of those of a run or a recipe among the models.

In: overrides, and the names of models. Out: settings as `evomerge search` has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from evomerge.common.errors import ConfigError

if TYPE_CHECKING:  # see `evaluate.py`
    from evomerge.cli.progress import Reporter

SOURCES = ("model", "model.base", "model.suite", "model.experts", "model.trajectory", "experiment")
"""Settings that say which models are meant, so that those of a run are not taken."""


def settings_of(given: Sequence[str], names: Sequence[str], reporter: Reporter) -> dict[str, Any]:
    """Return the settings that were given; where they name no sources, on top of those of a run, or of a recipe."""
    from evomerge.cli.settings import compose_settings, spelled_out
    from evomerge.runs.config import plain
    from evomerge.runs.earlier import with_missing
    from evomerge.runs.paths import from_its_start
    from evomerge.runs.transforms import in_order
    from evomerge.selection.contenders import read_recipe

    composed = plain(compose_settings(given))
    keys = [part.split("=")[0].lstrip("+~") for argument in given for part in spelled_out(argument)]
    if any(key in SOURCES or key.startswith("model.experts.") for key in keys):
        return composed
    paths = [Path(name).expanduser() for name in names]
    for path in paths:
        file = (path if path.is_dir() else path.parent) / "config.yaml"
        if file.is_file() and (path.suffix in (".yaml", ".yml") or (path / "recipe.yaml").is_file()):
            reporter.say(f"settings: those of {file}")
            keys = ["transform" if key.startswith("transform.") else key for key in keys]  # a list in a run's settings
            return _overlaid(from_its_start(with_missing(in_order(_read(file))), file.parent), composed, keys)
    for path in paths:
        if path.is_file() and path.suffix in (".yaml", ".yml"):
            reporter.say(f"models: those of {path}")
            recipe = read_recipe(path)
            experts = {name: source.place for name, source in recipe.experts.items()}
            own = {"base": recipe.base.place, "experts": experts, "auto_class": recipe.auto_class}
            own |= {"vocabulary": recipe.vocabulary, "part": recipe.part}
            own |= {"dequantise": True} if any(source.dequantised for source in recipe.experts.values()) else {}
            own |= {"template": recipe.template or "base", "buffers": recipe.buffers.get("name", "base")}
            if "model.compute" not in keys:  # recipes up to 0.2 say no dtype: all was scored in the checkpoint's
                own["compute"] = recipe.compute or recipe.dtype
            return {**composed, "model": composed["model"] | own}
    _refuse_without_sources(composed, names)
    return composed


def _refuse_without_sources(settings: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse names where neither a setting nor one of them says which models are meant.

    Raises:
        ConfigError: that is so; where a name stands for nothing at all, it is named.
    """
    from evomerge.selection.named import find_model

    if any(settings["model"][name] for name in ("suite", "base", "experts", "trajectory")):
        return
    for name in names:
        if name not in ("base", "experts"):
            find_model(name, ())
    raise ConfigError(
        "Nothing says which base and experts are meant: name a run directory or a recipe among the MODELs, or write "
        "model=text, or model.base=path/to/base 'model.experts=[path/to/a,path/to/b]'."
    )


def _overlaid(run: dict[str, Any], composed: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a run, with those that were given in their place: whole groups first, then single ones."""
    settings = {**composed, **run}
    for key in sorted(keys, key=lambda key: "." in key):
        *groups, last = key.split(".")
        place, value = settings, composed
        for group in groups:
            place[group] = dict(place.get(group) or {})
            place, value = place[group], value[group]
        if key == "fitness":  # another one for the same tasks, unless those are given too
            same = {name: place[last].get(name) for name in ("tasks", "held_out")}
            place[last] = {**value[last], **same}
        elif last in value:
            place[last] = value[last]
        else:  # ~setting takes one away
            place.pop(last, None)
    tasks = settings["fitness"].get("tasks")
    for group, part in (("fitness", "held_out"), ("objective", "forget")):  # the run's, of tasks that are there no more
        given = (group == "objective" and group in keys) or f"{group}.{part}" in keys
        if not given and isinstance(tasks, Mapping) and (names := settings[group].get(part)):
            settings[group] = {**settings[group], part: [name for name in names if name in tasks]}
    return settings


def _read(file: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{file} cannot be read ({error}): run the search's own command again to write it."
        ) from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{file} holds no settings of a search: write the sources, model=... or model.base=...")
    return settings
