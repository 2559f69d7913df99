"""The checkpoints of one training run as a recipe, with weights that are known before anything is scored.

In: directories and a weight for each. Out: the recipe of their mean, with those whose weight is not 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.common.progress import Progress
from evomerge.models.buffers import AVERAGE, floating_buffers
from evomerge.models.hub import find_directory, name_directories
from evomerge.models.trajectory import base_of
from evomerge.recipes.mergekit.read import skeleton_of
from evomerge.recipes.recipe import Recipe, Source
from evomerge.space.groups import make_groups

MODEL = "model"
"""The granularity: one weight for all of a checkpoint."""


def mean_of(checkpoints: Sequence[str], weights: Sequence[float], base: str | None, reporter: Progress) -> Recipe:
    """Return the recipe of a weighted mean of checkpoints.

    Running statistics, as of batch norm, become the plain mean of those that count.

    Args:
        checkpoints: directories, or names on the hub.
        weights: of them.
        base: what they are held against; None for the first that counts. The mean is the same.
        reporter: is told what goes on.

    Raises:
        CheckpointError: one is not there, is damaged, or does not belong with the others.
    """
    counted = [(name, weight) for name, weight in zip(checkpoints, weights, strict=True) if weight]
    places = {name: find_directory(path) for name, path in name_directories([name for name, _ in counted]).items()}
    home = find_directory(base_of([str(place.path) for place in places.values()], base))
    live = skeleton_of(home.path)
    with reporter.bars(), reporter.working("reading the checkpoints"):
        ours = live.open(home.path, progress=reporter.steps)
        opened = {name: live.open(one.path, progress=reporter.steps, base=ours) for name, one in places.items()}
    (group,) = make_groups(MODEL, {name: shape for name, shape in live.parameters.items() if name not in ours.missing})
    shares = dict(zip(places, (float(weight) for _, weight in counted), strict=True))
    return Recipe(
        base=Source(str(home.path), ours.sha256, home.hub),
        experts={name: Source(str(one.path), opened[name].sha256, one.hub) for name, one in places.items()},
        method={"name": "average"},
        granularity=MODEL,
        coefficients={"weight": {group.name: shares}},
        auto_class=live.auto_class,
        buffers={"name": AVERAGE} if floating_buffers(ours) else {},
    )


def notes_of(recipe: Recipe, number: int) -> list[str]:
    """Return what a person should know of the mean of a run with so many checkpoints."""
    ((_, weights),) = recipe.coefficients["weight"].items()
    said = ", ".join(f"{name} {weight:.4g}" for name, weight in weights.items())
    left = f"; the {number - len(weights)} before them do not count" if number > len(weights) else ""
    notes = [f"weights: {said}{left}"]
    if recipe.buffers:
        notes.append(
            "running statistics are the mean of those of the checkpoints; to take them anew of data, search with "
            "model.trajectory and model.buffers=recalibrate"
        )
    return notes
