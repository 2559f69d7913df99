"""What is to be said of a merge whose task vectors were packed (`model.store`): what was lost, and who merges what.

In: a recipe. Out: sentences for who merges it, for its card, and for mergekit's YAML; none where nothing was lost.
"""

from __future__ import annotations

from evomerge.recipes.recipe import Recipe


def kept_notes(recipe: Recipe, difference: float | None = None) -> list[str]:
    """Return what should be known of a merged model.

    Args:
        recipe: what was built.
        difference: the largest of a parameter between the merge of exact experts, which this is, and the one that was
            scored; None where this is the one that was scored.
    """
    if not recipe.store:
        return []
    if difference is None:
        return [
            f"made of task vectors in {recipe.kept_as}, as it was scored: {_bound(recipe)}. `evomerge merge --exact` "
            f"merges the experts as they are"
        ]
    return [
        f"made of the experts as they are, and scored with task vectors in {recipe.kept_as}: the largest difference of "
        f"a parameter is {difference:.3g} before it is rounded ({_bound(recipe)}), so the scores are not to the last "
        f"digit those of this directory"
    ]


def mergekit_caveat(recipe: Recipe) -> str:
    """Return the same as comments of mergekit's YAML; empty where nothing was lost."""
    if not recipe.store:
        return ""
    return (
        f"# mergekit merges the experts as they are, and evomerge scored task vectors in {recipe.kept_as}:\n"
        f"# {_bound(recipe)}.\n# `evomerge merge` builds what was scored.\n"
    )


def _bound(recipe: Recipe) -> str:
    if recipe.bound is None:
        return "how far parameters may differ has no bound, since the method compares elements"
    return f"parameters differ by {recipe.bound:.3g} at most"
