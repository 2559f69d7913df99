"""Blocks: the items of a candidate are cut, so that several devices share it and none waits long for the last.

In: item ids by task. Out: blocks of them, and the outcome of all when those of the blocks are there. Items keep their
order, so a block holds items of few tasks, and batches of the fitness stay as they were but at its ends. Sums over
other batches end in other last bits, which is why the number of blocks makes another search.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from evomerge.fitness.base import Outcome
from evomerge.search.evaluators.units import Model, Scored, Scorer, Unit

Items = Mapping[str, list[str]]


def cut(ids: Items, count: int) -> list[dict[str, list[str]]]:
    """Cut items into blocks of about equal size.

    Args:
        ids: by task.
        count: how many blocks; fewer where there are fewer items.

    >>> cut({"a": ["1", "2", "3"], "b": ["4"]}, 2)
    [{'a': ['1', '2']}, {'a': ['3'], 'b': ['4']}]
    """
    flat = [(task, item) for task, chosen in ids.items() for item in chosen]
    blocks = list[dict[str, list[str]]]()
    for part in np.array_split(np.arange(len(flat)), max(1, min(count, len(flat)))):
        block = dict[str, list[str]]()
        for task, item in (flat[int(i)] for i in part):
            block.setdefault(task, []).append(item)
        blocks.append(block)
    return blocks if len(blocks) > 1 else [{task: list(chosen) for task, chosen in ids.items()}]


def cut_tasks(ids: Items, count: int) -> list[dict[str, list[str]]]:
    """Cut items into blocks between tasks: all items of a task are in one.

    Args:
        ids: by task.
        count: how many blocks; fewer where there are fewer tasks.
    """
    parts = np.array_split(list(ids), max(1, min(count, len(ids))))
    return [{str(task): list(ids[str(task)]) for task in part} for part in parts]


def joined(outcomes: Sequence[Outcome], tasks: Iterable[str]) -> Outcome:
    """Return the outcome on all items of those on their blocks, in the order of the blocks.

    Args:
        outcomes: one for each block.
        tasks: in their order; those without a result in any block are left out.
    """
    if len(outcomes) == 1:
        return outcomes[0]
    items, results = dict[str, list[str]](), dict[str, dict[str, np.ndarray]]()
    for task in tasks:
        parts = [outcome for outcome in outcomes if task in outcome.results]
        if parts:
            items[task] = [item for part in parts for item in part.items[task]]
            names = parts[0].results[task]
            results[task] = {name: np.concatenate([part.results[task][name] for part in parts]) for name in names}
    seconds = [outcome.forward_seconds for outcome in outcomes]
    known = [each for each in seconds if each is not None]
    return Outcome(items, results, sum(known) if len(known) == len(seconds) else None)


def ordered(outcome: Outcome, ids: Mapping[str, Sequence[str]]) -> Outcome:
    """Return an outcome in the order of all items, as if it had been scored on them in one go."""
    items, results = dict[str, list[str]](), dict[str, dict[str, np.ndarray]]()
    for task, found in outcome.items.items():
        place = {item: i for i, item in enumerate(ids[task])}
        order = sorted(range(len(found)), key=lambda i, found=found, place=place: place[found[i]])
        items[task] = [found[i] for i in order]
        results[task] = {metric: row[order] for metric, row in outcome.results[task].items()}
    return Outcome(items, results)


def whole(parts: Sequence[Scored | None], ids: Items) -> Scored | None:
    """Return what came of a candidate once its blocks say it, or None: the first block that failed decides, once all
    before it are there.
    """
    outcomes = list[Outcome]()
    for part in parts:
        if part is None:
            return None
        if isinstance(part.outcome, Exception):
            return part
        if outcomes and (strange := _metrics(part.outcome) ^ _metrics(outcomes[0])):
            return Scored(
                ValueError(f"the fitness returned {', '.join(sorted(strange))} for some items and not for others")
            )
        outcomes.append(part.outcome)
    done = [part for part in parts if part is not None]
    merge, forward, total = (sum(getattr(part, name) for part in done) for name in ("merge", "forward", "total"))
    return Scored(joined(outcomes, ids), merge, forward, total, _summed([part.gradients for part in done]))


def _metrics(outcome: Outcome) -> set[str]:
    return {name for metrics in outcome.results.values() for name in metrics}


def _summed(parts: Sequence[Mapping[str, np.ndarray] | None]) -> Mapping[str, np.ndarray] | None:
    """Return the sum of gradients by variable, in their order; None where there are none."""
    known = [part for part in parts if part is not None]
    if len(known) <= 1:
        return known[0] if known else None
    return {name: np.add.reduce([part[name] for part in known]) for name in known[0]}


def scored_whole(answers: Iterable[tuple[int, Scored]], counts: Sequence[int], ids: Items) -> Iterator[Scored]:
    """Yield what came of each candidate, in order, as soon as those before it have ended too.

    Args:
        answers: of a scorer, to the blocks of all candidates in a row.
        counts: the number of blocks of each.
        ids: the items of each by task.
    """
    owner = [(i, block) for i, count in enumerate(counts) for block in range(count)]
    early = [list[Scored | None]([None] * count) for count in counts]
    due = 0
    for position, scored in answers:
        candidate, block = owner[position]
        if early[candidate]:  # else it has failed already
            early[candidate][block] = scored
        del scored  # an error holds the tensors of its frames
        while due < len(early) and (found := whole(early[due], ids)) is not None:
            early[due] = []
            yield found
            del found
            due += 1


def begin(scorer: Scorer, model: Model, ids: Items, blocks: int, **how: object) -> Iterator[Scored]:
    """Let a scorer begin with one model on items, in blocks; the iterator yields what came of it.

    Args:
        scorer: scores it.
        model: what is scored.
        ids: the items by task.
        blocks: how many.
        how: further attributes of its units.
    """
    parts = cut(ids, blocks)
    units = [Unit(model, part, **how) for part in parts]  # pyright: ignore[reportArgumentType]
    return scored_whole(scorer(units), [len(parts)], ids)


def score_now(scorer: Scorer, model: Model, ids: Items, blocks: int = 1, **how: object) -> Outcome:
    """Return the outcome of one model on items; the arguments are those of `begin`.

    Raises:
        Exception: whatever its model or fitness raised.
    """
    (scored,) = begin(scorer, model, ids, blocks, **how)  # to its end: the scorer learns that all was taken
    return outcome_or_raise(scored)


def outcome_or_raise(scored: Scored) -> Outcome:
    """Return the outcome of what came of a model.

    Raises:
        Exception: whatever its model or fitness raised.
    """
    outcome = scored.outcome
    try:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome
    finally:
        del outcome, scored  # an error that is raised from here holds this frame, and tensors with it


def blocks_of(ids: Mapping[str, Sequence[str]], blocks: int, candidate: int) -> int:
    """Return into how many blocks items are cut that are as large as those of a candidate of a search.

    Args:
        ids: by task.
        blocks: of a candidate; 1 for no cut at all.
        candidate: how many items it has.
    """
    return max(1, round(blocks * sum(map(len, ids.values())) / candidate)) if blocks > 1 else 1
