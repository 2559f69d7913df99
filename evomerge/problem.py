"""What is searched: where it comes from, the live model, task vectors, space, merger, fitness, items and goal.

Plain data with a few operations. `runs/` builds it of settings, which it does not know. It says itself what its
outcomes depend on: `contents`, names and hashes without paths and clocks, and `circumstances`, the machine and this
version. What changes results and is missing there would mix two searches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from evomerge import __version__
from evomerge.common.code import sources_of
from evomerge.common.digests import digest
from evomerge.common.machine import fingerprint
from evomerge.fitness.base import Fitness
from evomerge.fitness.capabilities import identity
from evomerge.fitness.draws import ADAPTIVE, STRATIFIED
from evomerge.fitness.goal import Goal
from evomerge.fitness.items import Item, Task
from evomerge.fitness.sampling import Growth, Subset
from evomerge.fitness.values import DISTANCE
from evomerge.merging.merger import Merger
from evomerge.merging.method import Formed, Method
from evomerge.models.buffers import BASE, RECALIBRATE, floating_buffers
from evomerge.models.files_beside import inputs_of
from evomerge.models.live import LiveModel
from evomerge.models.processing import digest_processor
from evomerge.models.sentences import settings_of
from evomerge.models.spreading import kinds_of
from evomerge.models.templates import digest_template
from evomerge.models.vocabulary import REFUSE
from evomerge.models.weights import dtype_name
from evomerge.space.affine import dead_entries
from evomerge.space.coefficients import CoefficientSpace
from evomerge.task_vectors.store import TaskVectors
from evomerge.task_vectors.stores import AUTO, LOSSY, kept_as
from evomerge.transforms.chain import Chain


@dataclass(frozen=True)
class Sources:
    """Where models and tasks come from.

    Attributes:
        base: its directory.
        experts: their directories by name.
        tasks: by name.
        further: by task, the settings that only some fitnesses have (`FURTHER`), as they were given.
        hub: `owner/name@commit` of those that came from the hub, by expert; of the base under no name.
        dequantised: by expert, the quantised model whose numbers are in its directory: where it is, or its name there.
    """

    base: Path
    experts: dict[str, Path]
    tasks: dict[str, Task]
    further: dict[str, dict[str, Any]] = field(default_factory=dict)
    hub: dict[str, str] = field(default_factory=dict)
    dequantised: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Opening:
    """How model directories are opened.

    Attributes:
        cache: directory that remembers content hashes, task vectors and outcomes.
        auto_class: the transformers class whose parameters are merged.
        vocabulary: what becomes of experts with another number of tokens: `refuse`, `base`, `shared` or `union`.
        allow_missing: tensors, by name or pattern, that experts may lack and that may be left over.
        store: how task vectors are kept; see `task_vectors/packing.py`.
        buffers: what a merge has of floating buffers: `base`, `average` or `recalibrate`.
        buffer_items: of how many search items they are taken anew.
        template: whose chat template, end token and generation config a merge has: `base`, or the name of an expert.
    """

    cache: Path
    auto_class: str = "AutoModel"
    vocabulary: str = REFUSE
    allow_missing: tuple[str, ...] = ()
    store: str = AUTO
    buffers: str = BASE
    buffer_items: int = 256
    template: str = "base"

    @property
    def kept_as(self) -> str:
        """How task vectors are kept; float32 stands for all that keep every bit."""
        return kept_as(self.store)


@dataclass(frozen=True)
class Sampling:
    """How many items of each split are scored, in all; None for all of them.

    Attributes:
        search: of a candidate.
        select: of a finalist.
        report: of the models of the report.
        rotate: whether each generation is given other search items.
        seed: of the draw of search items; select and report items are drawn alike for every seed.
        by: how search items are drawn: `stratified`, `uniform`, `disagreement` or `adaptive` (see `fitness/draws.py`).
        growth: how the number of search items grows; None for all of them from the beginning.
        approximate: the narrower dtype in which a model is scored on search items; None for that of the live model.
        estimate: how the value of a candidate on all search items is estimated (see `fitness/estimates.py`); None where
            it is that of its sample.
        others: the constants whose answers to all of them estimates rest on, beside those of base and experts.
    """

    search: int | None = None
    select: int | None = None
    report: int | None = None
    rotate: bool = False
    seed: int = 1
    by: str = STRATIFIED
    growth: Growth | None = None
    approximate: str | None = None
    estimate: str | None = None
    others: tuple[float, ...] = ()

    @property
    def rotates(self) -> bool:
        """Whether generations have other search items each."""
        return self.rotate or self.by == ADAPTIVE


@dataclass(frozen=True)
class Written:
    """Parts of a problem as identities and recipes write them, in plain data.

    Attributes:
        method: its class as `_target_`, and its settings.
        transform: the same of each transform in order, with a hash of the code of one that is not ours.
        fitness: the same, without what chooses items and metrics.
        granularity: of the space.
        code: a hash of the code of a method that is not ours.
    """

    method: dict[str, Any]
    transform: list[dict[str, Any]]
    fitness: dict[str, Any]
    granularity: str
    code: str | None = None


@dataclass(frozen=True)
class Problem:
    """What is searched.

    Attributes:
        sources: where models and tasks come from.
        live: the loaded base.
        vectors: base and task vectors, exact, before any transform.
        rows: what candidates are combined of: these after the transforms, as they are kept.
        space: the coefficient space.
        method: how candidates are built.
        merger: builds them, of the transformed task vectors if there are transforms.
        fitness: scores them.
        items: the items of each split by task; under `HELD_OUT` the report items of tasks that the search never sees.
        warnings: what the user should know about the sources.
        opening: how the model directories were opened, and how others are.
        goal: what is maximised.
        sampling: how many items are scored.
        written: its parts as plain data.
        transforms: what is done to the task vectors before the search.
        scored_under: the circumstances of the workers that score; None where this process does.
    """

    sources: Sources
    live: LiveModel
    vectors: TaskVectors
    rows: TaskVectors
    space: CoefficientSpace
    method: Method
    merger: Merger
    fitness: Fitness
    items: dict[str, dict[str, list[Item]]]
    warnings: list[str]
    opening: Opening
    goal: Goal
    sampling: Sampling
    written: Written
    transforms: Chain = ()
    scored_under: Mapping[str, Any] | None = None

    @cached_property
    def contents(self) -> dict[str, Any]:
        """All that decides how a merge with given coefficients scores on given items, as the sources were at first."""
        sources, vectors = self.sources, self.vectors
        union = {"union": self.live.union.digest} if self.live.union else {}
        cut = union or any(expert.rows for expert in vectors.experts.values())  # only then is the vocabulary a choice
        taken = [self.calibration] if self.buffers == RECALIBRATE else []
        return {
            "base": vectors.base.sha256,
            "experts": [[name, expert.sha256] for name, expert in vectors.experts.items()],  # in the order of the sum
            "files": digest_inputs(sources.base),
            "class": self.opening.auto_class,
            **({} if sources.base.is_dir() else _in_memory(self.live)),
            **({"part": self.live.part} if self.live.part else {}),
            **({"modules": steps} if (steps := settings_of(self.live.model)) else {}),
            **({"vocabulary": self.opening.vocabulary} if cut else {}),
            **union,
            **({"template": digest_template(self.template)} if self.template else {}),
            **({"buffers": [self.buffers, *taken]} if self.buffers != BASE else {}),
            **({"compute": dtype_name(self.live.compute)} if self.live.compute else {}),  # else in the checkpoint's
            **({DISTANCE: True} if self.takes_distance else {}),  # beside the metrics of the fitness
            **({"store": self.opening.store} if self.opening.store in LOSSY else {}),
            "heads": {
                name: hashlib.sha256(task.head.read_bytes()).hexdigest()
                if task.head
                else task.expert and [task.expert, digest_inputs(sources.experts[task.expert])]
                for name, task in sources.tasks.items()
            },
            "method": self.written.method | ({"code": self.written.code} if self.written.code else {}),
            **({"transform": self.written.transform} if self.written.transform else {}),
            # its batch size as well: sums over other batches end in other last bits, and then so does every later point
            "fitness": self.written.fitness | identity(self.fitness),
        }

    @cached_property
    def circumstances(self) -> dict[str, Any]:
        """What an outcome depends on beside contents: this version, the kind of machine, and the device."""
        if self.scored_under is not None:
            return dict(self.scored_under)
        devices = {parameter.device for parameter in self.live.model.parameters()}
        return {"evomerge": __version__, "fingerprint": {**fingerprint(), **kinds_of(devices)}}

    @property
    def template(self) -> Path | None:
        """The directory of the expert whose chat template a merge has; None where it is the base's."""
        return None if self.opening.template == "base" else self.sources.experts[self.opening.template]

    @property
    def buffers(self) -> str:
        """What a merge has of floating buffers; the base's where there are none."""
        return self.opening.buffers if floating_buffers(self.vectors.base) else BASE

    @property
    def calibration(self) -> dict[str, list[str]]:
        """The search items of which buffers are taken anew, by task."""
        size = max(self.opening.buffer_items, len(self.items["search"]))
        return Subset(self.items["search"], size, 0)(0)

    @property
    def objectives(self) -> int:
        """How many values a point has."""
        return len(self.goal.values(self.items["search"], self.goal.metric)) or 1

    @cached_property
    def takes_distance(self) -> bool:
        """Whether outcomes say how far the model lies from the base, since a value, a constraint or the report asks."""
        goal, tasks = self.goal, self.items["search"]
        metrics = [one.metric for one in (*goal.values(tasks, goal.metric), *goal.conditions(tasks))]
        return DISTANCE in (*metrics, goal.report_metric) and DISTANCE not in self.fitness.metrics

    @property
    def reports_distance(self) -> bool:
        """Whether what is reported is how far a model lies from the base, and no metric of the fitness's."""
        return self.goal.report_metric == DISTANCE and DISTANCE not in self.fitness.metrics

    @property
    def experts(self) -> dict[str, str]:
        """The expert of each task, for those tasks that have one."""
        return {name: task.expert for name, task in self.sources.tasks.items() if task.expert}

    @cached_property
    def negated(self) -> tuple[str, ...]:
        """The rows that constants take away where something is to be forgotten, and the others stay at 0: those of the
        experts of these tasks (Ilharco et al. 2023). None where these are all rows, or where there are none; nor where
        the space ties them with others, so that it has no such point.
        """
        own = {self.experts.get(task) for task in self.goal.forget}

        def is_own(row: str) -> bool:  # or a part of one, as `mood.1`
            return row in own or (row not in self.sources.experts and row.rpartition(".")[0] in own)

        rows = tuple(row for row in self.space.rows if is_own(row))
        return () if len(rows) == len(self.space.rows) or self.space.ties(rows) else rows

    def constant(self, weight: float) -> dict[str, np.ndarray]:
        """Return coefficients with one weight everywhere; or, of what takes away some rows, 0 for the others."""
        return self.space.constant(self.space.flat(weight, self.negated))

    def within(self, weight: float) -> dict[str, np.ndarray]:
        """Return the coefficients of the space that are nearest to a constant; what the user froze stays frozen."""
        return self.space.decode(self.space.nearest({"weight": self.space.flat(weight, self.negated)}))

    def same(self, one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
        """Return whether two merges are one: they have the same coefficients wherever there is a task vector."""
        counts_zero = not isinstance(self.method, Formed) or self.method.counts_zero
        dead = dead_entries(self.space.groups, self.space.rows, () if counts_zero else self.rows.zero, "")
        return all(np.array_equal(one[variable][~dead], other[variable][~dead]) for variable in one)

    def become(self, expert: str | None) -> None:
        """Overwrite the live model with an expert, as far as it is merged, or with the base (None).

        The expert is as it came: no transform touches it.
        """
        if expert is None:
            self.merger.restore()
        else:
            self.merger.load(self.vectors.added(expert), floating_buffers(self.vectors.experts[expert]))


def without_compute(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what contents are, alone or among others, where everything is computed in the dtype of the checkpoint."""
    return {name: value for name, value in description.items() if name != "compute"}


def _in_memory(live: LiveModel) -> dict[str, str]:
    """Return hashes of what a module in memory computes, and how its inputs are made: no files say it."""
    own = {} if live.processor is None else {"processor": digest_processor(live.processor)}
    return {"source": sources_of(live.model), **own}


def digest_inputs(directory: Path) -> str:
    """Return a hash of all in a model directory that decides what a model is given to read, and how it reads it.

    At its top that is what settings and vocabularies usually end in, whatever it is; and everything else that
    transformers may open beside weights, such as `source.spm`, `vocab.bpe` or a folder of chat templates. A model in
    memory has no files.
    """
    if not directory.is_dir():
        return digest([])
    usual = {
        path.name
        for path in directory.iterdir()
        if path.suffix in (".json", ".txt", ".model", ".jinja") and "index" not in path.name and path.is_file()
    }
    names = sorted(usual | set(inputs_of(directory)))
    return digest([[name, hashlib.sha256((directory / name).read_bytes()).hexdigest()] for name in names])
