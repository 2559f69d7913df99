"""Where groups lie in a model: names of groups in, blocks in the order of depth out.

A place is a block, or what lies outside of the blocks: embeddings and head. Depth is read from the names, as
`make_groups` reads it; where they have none (space=model), every group is a place of its own.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from evomerge.common.errors import SpaceError
from evomerge.space.groups import make_groups

OUTSIDE = {"embeddings": "emb", "head": "head"}
"""What `make_groups` calls what lies outside the blocks, and the label of each."""


@dataclass(frozen=True)
class GroupPlace:
    """A block, or what lies outside of them: its name as `make_groups` gives it, and its groups."""

    name: str
    groups: tuple[str, ...]

    @property
    def axis(self) -> str:
        """The blocks of an axis make a line; each place outside is by itself."""
        return self.name.rpartition(".")[0] if self.name not in OUTSIDE else self.name

    @property
    def label(self) -> str:
        """Short enough for a tick."""
        if re.fullmatch(r".*\.\d+", self.name):
            return self.name.rpartition(".")[2]
        return OUTSIDE.get(self.name, textwrap.shorten(self.name.replace(".", " "), 20, placeholder=" …"))


def places_of(groups: Iterable[str]) -> list[GroupPlace]:
    """Return where groups lie, from embeddings to head; a group of several blocks (`layer.0-2`) is in each of them."""
    parts: dict[str, str] = {}
    for group in groups:
        run = re.fullmatch(r"(.*\.)(\d+)-(\d+)", group)
        blocks = [f"{run[1]}{i}" for i in range(int(run[2]), int(run[3]) + 1)] if run else [group]
        parts |= dict.fromkeys(blocks, group)
    try:
        layers = make_groups("layer", dict.fromkeys(parts, (1,)))
    except SpaceError:  # no blocks in the names
        return [GroupPlace(group, (group,)) for group in dict.fromkeys(parts.values())]
    return [
        GroupPlace(layer.name, tuple(dict.fromkeys(parts[span.parameter] for span in layer.spans))) for layer in layers
    ]
