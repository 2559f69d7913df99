"""What a search must say of itself at its end: that its numbers could not tell its candidates apart.

In: the batches of a search with their trials, and its summary. Out: sentences, for the end of a run, its summary and
its report. Only what is certain is said: every value is the same, to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evomerge.common.names import commonest
from evomerge.selection.summary import Selected
from evomerge.trials import Batch, Trial

MODELS = {"base": "the base", "best_constant": "the best constant", "experts": "the experts, each on its own task"}
"""The models that a winner can be no different from."""


def of_search(batches: Sequence[Batch]) -> list[str]:
    """Return what is wrong with the values and gradients that a searcher went by; nothing for a single one."""
    return [*_flat(batches), *_no_slope(batches), *_one_kind_failed(batches)]


def of_selection(chosen: Selected, alike: Sequence[str]) -> list[str]:
    """Return what is wrong with the choice of a winner.

    Args:
        chosen: what was compared on the select split.
        alike: the models that have the winner's result on every report item.
    """
    found = []
    if said := _alike(chosen, "finalists", chosen.finalists):
        found.append(
            f"{said}, so the winner, {chosen.winner}, is only the first of them. More select items "
            f"(fitness.select_items) may tell them apart."
        )
    if said := _alike(chosen, "constants", chosen.constants):
        found.append(f"{said}, so the best one, {chosen.constant}, is only the first of them.")
    itself = chosen.winner.startswith("constant")
    if same := [MODELS[name] for name in alike if not (itself and name == "best_constant")]:
        found.append(f"On every single report item the winner has the same result as {', and as '.join(same)}.")
    return found


def _flat(batches: Sequence[Batch]) -> list[str]:
    """Say that all candidates have the same value, and that even their items do."""
    pairs = _scored(batches, gradient=False)
    points = {point for point, _ in pairs}
    values = {trial.values for _, trial in pairs}
    if len(points) < 2 or len(values) > 1:
        return []
    value = pairs[0][1].values or (0.0,)
    said = f"All {len(pairs)} candidates scored {value[0]:.6g}, so which of them won is an accident."
    first = pairs[0][1]
    if first.results and all((trial.items, trial.results) == (first.items, first.results) for _, trial in pairs):
        return [
            f"{said} They have the same result on every single item: does the fitness look at the model that it is "
            f"given, and do the experts change what it looks at?"
        ]
    return [f"{said} Take more search items (fitness.items), a finer metric (fitness.metric) or wider bounds."]


def _no_slope(batches: Sequence[Batch]) -> list[str]:
    """Say that no step of a gradient went anywhere."""
    steps = _scored(batches, gradient=True)
    if not steps or any(any(trial.gradient or ()) for _, trial in steps):
        return []
    return [
        f"The gradient was 0 in all {len(steps)} steps, so the coefficients never moved: the loss does not depend on "
        f"them. Try another loss (loss=...), or a searcher by values (searcher=cmaes)."
    ]


def _one_kind_failed(batches: Sequence[Batch]) -> list[str]:
    """Say that all steps of a gradient failed, or all candidates by value, while the others did not."""
    found = []
    for gradient, what, those in (
        (True, "steps of the gradient", "candidates"),
        (False, "candidates by value", "steps"),
    ):
        failed = [t for b in batches if b.gradient == gradient for t in b.trials if t is not None and not t.values]
        if failed and not _scored(batches, gradient) and _scored(batches, not gradient):
            (error, _), *_ = commonest(trial.error or "no error was recorded" for trial in failed)
            found.append(
                f"All {len(failed)} {what} failed, so the winner comes from the other {those} alone. Most often: "
                f"“{error}”."
            )
    return found


def _scored(batches: Sequence[Batch], gradient: bool) -> list[tuple[tuple[float, ...], Trial]]:
    """Return the points with a value, and their trials, of one kind."""
    return [
        (tuple(batch.points[trial.index].tolist()), trial)
        for batch in batches
        if batch.gradient == gradient
        for trial in batch.trials
        if trial is not None and trial.full
    ]


def _alike(chosen: Selected, what: str, values: Mapping[str, float | None]) -> str:
    """Return that models have one value in common, if there are two or more and no other value; of those that were
    scored on a part of the items it is what the others say.
    """
    found, seen = set(values.values()), {chosen.seen.get(name) for name in values}
    value = next(iter(found), None)
    if len(values) < 2 or len(found) > 1 or value is None:
        return ""
    part = "" if len(seen) == 1 else ", as far as they were scored"
    return f"All {len(values)} {what} scored {value:.6g} on the select items{part}"
