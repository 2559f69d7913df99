"""A file that says how models are merged: a recipe of evomerge's, or a merge YAML of mergekit's.

In: its path. Out: the recipe, or what the YAML is as one, with what should be known of it.
"""

from __future__ import annotations

from pathlib import Path

from evomerge.common.errors import ConfigError
from evomerge.common.progress import Progress
from evomerge.recipes.mergekit.document import is_mergekit
from evomerge.recipes.mergekit.read import Told, read_mergekit
from evomerge.recipes.recipe import Recipe


def read_merge(path: Path, reporter: Progress) -> Told:
    """Read a recipe, or a merge YAML with the models that it names.

    Args:
        path: of the file.
        reporter: is told what goes on.

    Raises:
        ConfigError: it is neither, or a YAML that evomerge cannot honour; the message names the file.
        CheckpointError: a model of a YAML is not there, is damaged, or does not belong with the others.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return read_mergekit(text, path.parent, reporter) if is_mergekit(text) else Told(Recipe.from_yaml(text), [])
    except (ConfigError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
