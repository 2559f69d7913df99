"""What a search needs: memory, disk and time, before it starts.

In: an inspection, and the settings of a search. Out: `Costs`. The time of a merge is measured on random weights, since
it depends on their number alone; the time to score is measured on the base, if there are tasks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from evomerge.common.limits import TimeLimit
from evomerge.common.progress import Progress
from evomerge.fitness.base import Fitness
from evomerge.fitness.capabilities import Exporting, Headed, Reads, check_items, requirements
from evomerge.fitness.items import check_disjoint
from evomerge.inspection.sources import Inspection
from evomerge.inspection.workers import Fit, Node, what_fits
from evomerge.merging.merger import Merger
from evomerge.merging.method import Method
from evomerge.models.checkpoint import Checkpoint, from_tensors
from evomerge.models.computing import computed_in
from evomerge.models.live import load_live, load_skeleton
from evomerge.recipes.live_directory import writer_of
from evomerge.runs.build import read_splits
from evomerge.runs.checks import check_asked, check_metrics
from evomerge.runs.intent import Intent
from evomerge.runs.leakage import leakage_notes
from evomerge.runs.preflight import failing_on_base
from evomerge.runs.roles import set_apart
from evomerge.runs.sources import make_heads
from evomerge.search.evaluators.scoring import LiveFitness, check_finite, prepare
from evomerge.search.evaluators.splits import subsets_of
from evomerge.searchers.base import USUAL
from evomerge.selection.choosing import work
from evomerge.selection.marks import task_notes
from evomerge.space.groups import Group
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.expert import ExpertDelta, is_narrow
from evomerge.task_vectors.packing import pack, packed_bytes
from evomerge.task_vectors.spans import Span
from evomerge.task_vectors.store import TaskVectors, exact_deltas
from evomerge.task_vectors.stores import AUTO, EXPERT, FLOAT32, LOSSY, kept_as

SAMPLE = 1 << 24  # elements of task vectors, 64 MiB in all, that are merged to measure how long a merge takes
BRIEF = 5.0  # seconds; what takes less is timed once more, since the first call pays for what is set up lazily


@dataclass(frozen=True)
class Costs:
    """What a search needs.

    Attributes:
        model: bytes of the live model.
        task_vectors: bytes of the task vectors, mapped into memory.
        cache: those of them that a cache on disk holds; the rest are experts as they are.
        store: how task vectors are kept (`model.store`).
        device: where candidates are built.
        merge: seconds to build one.
        bound: how far a parameter may be from that of the merge of exact task vectors, with the largest weights; 0
            where task vectors keep every bit, None where the method has no bound, or transforms come before.
        score: seconds to score one; None without tasks.
        items: on how many items; None without tasks.
        selection: seconds to choose the winner and to report it; None without tasks.
        fits: what fits on workers of 1, 2, 4 ... GPUs of a node; nothing where no node was named.
    """

    model: int
    task_vectors: int
    cache: int
    device: str
    merge: float
    store: str
    bound: float | None = None
    score: float | None = None
    items: int | None = None
    selection: float | None = None
    fits: Sequence[Fit] = ()


def estimate(
    found: Inspection, intent: Intent, reporter: Progress, node: Node | None = None
) -> tuple[Costs, list[str]]:
    """Measure what a search of these models needs; those that do not fit are left out.

    Args:
        found: the inspection, whose base can be merged into.
        intent: what the search would be made of.
        reporter: shows progress.
        node: the machine that its workers are to run on, if somebody asks what fits there.

    Returns:
        What it needs, and warnings about the items.

    Raises:
        EvomergeError: the tasks cannot be read, or the fitness fails on the base.
    """
    device, method, store = intent.devices.device, intent.method, intent.opening.store
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = {name: math.prod(shape) for name, shape in found.parameters.items()}
    refused = {member.name for member in found.refused}
    checkpoints = {member.name: member.checkpoint for member in found.experts if member.checkpoint}
    cache, kept = dict.fromkeys(sizes, 0), dict.fromkeys(sizes, 0)  # bytes by parameter
    held = dict.fromkeys(sizes, 0)  # parameter -> how many task vectors are not zero there
    for k, name in enumerate(found.compared):
        changed = {each for each, one in found.tensors.items() if one.signs.shared[k, k] > 0}
        if name in refused:
            continue
        held = {each: count + (each in changed) for each, count in held.items()}
        if not intent.transforms and store not in LOSSY:  # factors stay what they are
            factors = {each: one for each, one in checkpoints[name].factors.items() if each in changed}
            kept |= {each: kept[each] + one.left.nbytes + one.right.nbytes for each, one in factors.items()}
            changed -= factors.keys()
        if not intent.transforms and (store == EXPERT or (store == AUTO and is_narrow(checkpoints[name], sizes))):
            kept |= {each: kept[each] + sizes[each] * checkpoints[name].dtype(each).itemsize for each in changed}
        else:
            cache |= {each: cache[each] + packed_bytes(sizes[each], store) for each in changed}
    whole = sum(kept.values()), sum(cache.values())
    dtypes = found.base.facts.dtypes if found.base.facts else {}
    dtype: torch.dtype = getattr(torch, next(iter(dtypes), "float32"))
    fits = sum(name not in refused for name in found.compared)
    with reporter.working("timing a merge"):
        once = time_merge(method, max(fits, 1), dtype, device, EXPERT if whole[0] > whole[1] else store)
    read = sum(size * (held[name] + 2) for name, size in sizes.items() if held[name])  # and base, and what is written
    needs = Costs(
        model=sum(size * dtype.itemsize for size in sizes.values()),
        task_vectors=sum(whole),
        cache=whole[1],
        device=device,
        merge=once * read,
        store=store,
        bound=_bound(found, checkpoints, intent, reporter),
        fits=() if node is None else _fits(found, {each: kept[each] + cache[each] for each in sizes}, node),
    )
    if not intent.sources.tasks or intent.fitness is None:
        return needs, []
    with reporter.working("scoring the base"):
        score, sizes, warnings = time_scoring(intent, intent.fitness, found.parameters)
    judged = work(intent.bounds, USUAL, sizes, intent.goal)  # no space is made, so no searcher
    selection = judged * score / sizes["search"]
    return replace(needs, score=score, items=sizes["search"], selection=selection), warnings


def _fits(found: Inspection, vectors: Mapping[str, int], node: Node) -> Sequence[Fit]:
    """Return what fits on workers of a node, with task vectors of so many bytes by parameter."""
    base = found.base.checkpoint
    if base is None:
        return ()
    skeleton = load_skeleton(found.base.path, found.auto_class)
    return what_fits(skeleton.model, {name: base.tensor(name).nbytes for name in vectors}, vectors, node)


def _bound(
    found: Inspection, checkpoints: Mapping[str, Checkpoint], intent: Intent, reporter: Progress
) -> float | None:
    """Return how far a parameter may be off at most, with the largest weights; None where nobody can say."""
    store, base = intent.opening.store, found.base.checkpoint
    if kept_as(store) == FLOAT32:
        return 0.0
    if intent.transforms or not intent.method.linear or base is None:
        return None
    refused = {member.name for member in found.refused}
    total = dict.fromkeys(found.parameters, 0.0)
    with reporter.working("packing task vectors"):
        for name, expert in checkpoints.items():
            if name not in refused:
                for parameter, delta in exact_deltas(base, expert, found.parameters).items():
                    total[parameter] += pack(delta.dense(), store).bound
    return max(map(abs, intent.bounds)) * max(total.values())


def time_merge(method: Method, experts: int, dtype: torch.dtype, device: str, store: str = AUTO) -> float:
    """Merge random weights in place.

    Args:
        method: how candidates are built.
        experts: of how many task vectors.
        dtype: of the live model and the base.
        device: of the live model.
        store: how task vectors are kept.

    Returns:
        Seconds for each element that is read or written: of the base, of each task vector, of the model.
    """
    n = SAMPLE // experts
    generator = torch.Generator().manual_seed(0)
    names = [str(k) for k in range(experts)]
    weight = torch.ones(n, dtype=dtype)

    base = from_tensors({"sample": weight}, sha256="")
    deltas: dict[str, dict[str, Delta]] = {}
    for name in names:
        drawn = torch.randn(n, generator=generator)
        deltas[name] = {"sample": ExpertDelta(weight, drawn.bfloat16()) if store == EXPERT else pack(drawn, store)}
    model = nn.ParameterDict({"sample": nn.Parameter(weight.clone(), requires_grad=False)}).to(device)
    vectors = TaskVectors(base, dict.fromkeys(names, base), {"sample": (n,)}, deltas)
    merger = Merger(model, vectors, (Group("sample", (Span("sample", 0, n),), None),), method)
    coefficients = {variable.name: np.full((1, experts), variable.start) for variable in method.variables}

    def merge() -> None:
        merger.apply(coefficients)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    return min(_seconds(merge) for _ in range(3)) / (n * (experts + 2))


def time_scoring(
    intent: Intent, fitness: Fitness, parameters: Mapping[str, tuple[int, ...]]
) -> tuple[float, dict[str, int], list[str]]:
    """Score the base on the items of the first generation, after the checks of a search and within its time limit.

    Args:
        intent: what the search would be made of.
        fitness: its fitness.
        parameters: name -> shape of what is merged.

    Returns:
        Seconds; the number of items by split; warnings about the items.

    Raises:
        EvomergeError: the items cannot be read or scored.
        ConfigError: the fitness fails on the base.
    """
    sources, sampling, limit = intent.sources, intent.sampling, TimeLimit(intent.time_limit)
    items = read_splits(sources, fitness)
    check_metrics(fitness, intent.goal.metric, intent.goal.report_metric)
    leaks = leakage_notes(sources, items, fitness.data_sets if isinstance(fitness, Reads) else {}, intent.trained_on)
    check_disjoint(items)
    items = set_apart(items, intent.held_out)
    subsets = subsets_of(items, sampling)
    devices = intent.devices
    live = load_live(sources.base, intent.opening.auto_class, devices.first, requirements(fitness).processor)
    check_asked(fitness, items, live)
    live = computed_in(live, intent.compute, devices.kind)
    devices.spread(live.model)
    warnings = [*(fitness.warnings if isinstance(fitness, Reads) else ()), *leaks]
    warnings += task_notes(sources, isinstance(fitness, Headed), items)
    if isinstance(fitness, Headed):
        fitness = fitness.with_heads(make_heads(sources, parameters))
    if isinstance(fitness, Exporting):
        fitness = fitness.with_writer(writer_of(live, live.open(sources.base, cache=intent.opening.cache)))
    prepared = {split: prepare(fitness, live.processor, chosen) for split, chosen in items.items()}
    for split, subset in subsets.items():
        check_items(fitness, live.model, prepared[split], subset.every(), split)
    score, ids = LiveFitness(live.model, fitness, prepared["search"]), subsets["search"](0)

    def once() -> None:
        check_finite(score(ids))

    with failing_on_base("fitness", live):
        seconds = limit.first(lambda: _seconds(once))
        seconds = limit(lambda: _seconds(once)) if seconds < BRIEF else seconds
    return seconds, {split: subset.size for split, subset in subsets.items()}, warnings


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
