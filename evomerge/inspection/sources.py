"""Whether base and experts can be merged and what they are like, before anything expensive starts.

In: where the models are. Out: an `Inspection`: what each directory says of itself, which experts do not fit and why,
and the geometry of the task vectors. An expert that does not fit costs that expert; the others are compared, and
what is to be known of them is what a search of them would say. The base is loaded, as a search would load it; no task
vector is written: the weights are read from their files, block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from operator import add
from pathlib import Path

import numpy as np

from evomerge.common.errors import CheckpointError, SpaceError
from evomerge.common.progress import Progress
from evomerge.inspection.clusters import Clusters, find_clusters
from evomerge.inspection.facts import ModelFacts, read_facts
from evomerge.inspection.geometry import Geometry, measure
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.completeness import check_base
from evomerge.models.live import LiveModel, load_skeleton
from evomerge.models.pretrained import load_model
from evomerge.models.vocabulary import REFUSE, UNION
from evomerge.problem import Sources
from evomerge.space.groups import Group, make_groups
from evomerge.task_vectors.expert import not_finite
from evomerge.task_vectors.family import family_notes
from evomerge.task_vectors.store import check_family


@dataclass(frozen=True, eq=False)
class Member:
    """The base or an expert.

    Attributes:
        name: of the expert; `base`.
        path: the directory.
        facts: what it says of itself; None where its files cannot be read.
        checkpoint: its weights; None where they do not fit the live model.
        error: why it cannot take part in a merge, or None.
    """

    name: str
    path: Path
    facts: ModelFacts | None
    checkpoint: Checkpoint | None
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Inspection:
    """What base and experts are like.

    Attributes:
        auto_class: the transformers class that models are seen as,
        live: and what it makes of the base's config.
        base: θ_0, whose facts and checkpoint are there.
        experts: θ_k, those included that do not fit.
        compared: the names of the experts whose weights could be compared, in the order of every geometry.
        parameters: name -> shape of what is merged.
        tensors: the geometry of each parameter.
        groups: of granularity `layer`; none where the model has no blocks.
        density: the share of largest elements that `Geometry.top` is of.
        warnings: what does not stand in the way of a merge, but should be known.
    """

    auto_class: str
    live: str
    base: Member
    experts: list[Member]
    compared: list[str]
    parameters: dict[str, tuple[int, ...]]
    tensors: dict[str, Geometry]
    groups: tuple[Group, ...]
    density: float
    warnings: list[str]

    @property
    def members(self) -> list[Member]:
        """The base, then the experts."""
        return [self.base, *self.experts]

    @property
    def refused(self) -> list[Member]:
        """Those that cannot take part in a merge."""
        return [member for member in self.members if member.error]

    @cached_property
    def whole(self) -> Geometry:
        """The geometry of the model."""
        return reduce(add, self.tensors.values())

    @cached_property
    def clusters(self) -> Clusters | None:
        """Which of many experts changed alike; None where they are few."""
        return find_clusters(self.compared, self.whole.cosines)

    def of(self, group: Group) -> Geometry:
        """The geometry of a group."""
        return reduce(add, (self.tensors[span.parameter] for span in group.spans))


def inspect_sources(
    sources: Sources,
    auto_class: str,
    cache: Path,
    density: float,
    reporter: Progress,
    vocabulary: str = REFUSE,
    allowed: Collection[str] = (),
    pooled: bool = True,
    part: str | None = None,
) -> Inspection:
    """Compare base and experts.

    Args:
        sources: where they are; tasks are not looked at.
        auto_class: the transformers class whose parameters are merged.
        cache: directory that remembers content hashes.
        density: see `geometry.measure`.
        reporter: shows progress.
        vocabulary: what becomes of experts with another number of tokens (`model.vocabulary`).
        allowed: tensors that may be missing or left over (`model.allow_missing`).
        pooled: whether what is scored may look at pooled outputs; heads do not.
        part: the module of the base that experts of another architecture are (`model.part`).

    Raises:
        CheckpointError: the base cannot be read.
        ConfigError: there is no such class.
    """
    facts = read_facts(sources.base)
    with reporter.working("loading the base"):
        live = _load(sources.base, auto_class).with_part(part)
        if vocabulary == UNION:
            live = live.united(sources.base, sources.experts.values())

    opened = partial(live.open, cache=cache, progress=reporter.steps)
    checkpoint = opened(sources.base)
    parameters = {name: shape for name, shape in live.parameters.items() if name not in checkpoint.missing}
    if not parameters:  # there is nothing to compare
        check_base(checkpoint, allowed)
    fitted = partial(opened, vocabulary=vocabulary, base=checkpoint)
    experts = [_member(name, path, fitted) for name, path in sources.experts.items()]
    error, experts = _check(checkpoint, experts, parameters, allowed)
    held = {member.name: member.checkpoint for member in experts if member.checkpoint}
    tensors = measure(checkpoint, list(held.values()), parameters, density, reporter.steps)
    if error is None and (broken := _not_finite(tensors, 0)):
        error = not_finite("the base", checkpoint, broken)
    elif error is None:
        experts = [_check_finite(member, list(held), tensors) for member in experts]
    try:
        groups = make_groups("layer", parameters)
    except SpaceError:  # it has no blocks
        groups = ()
    notes = []
    if error is None:
        fit = {member.name: member.checkpoint for member in experts if member.checkpoint and not member.error}
        places = {name: sources.experts[name] for name in fit}
        notes = family_notes(places, live, checkpoint, fit, parameters, allowed, pooled)
    base, name = Member("base", sources.base, facts, checkpoint, error), type(live.model).__name__
    found = Inspection(auto_class, name, base, experts, list(held), parameters, tensors, groups, density, notes)
    notes += found.clusters.notes() if found.clusters else []
    return found


def _load(path: Path, auto_class: str) -> LiveModel:
    """Return the skeleton of a base that a search could load; what refuses it says so in the words of a search."""
    try:
        live = load_skeleton(path, auto_class)
    except CheckpointError:
        load_model(path, auto_class)
        raise
    load_model(path, auto_class)
    return live


def _member(name: str, path: Path, opened: Callable[[Path], Checkpoint]) -> Member:
    facts = None
    try:
        facts = read_facts(path)
        return Member(name, path, facts, opened(path))
    except CheckpointError as error:
        return Member(name, path, facts, None, str(error))


def _check(
    base: Checkpoint,
    experts: Sequence[Member],
    parameters: Mapping[str, tuple[int, ...]],
    allowed: Collection[str],
) -> tuple[str | None, list[Member]]:
    """Put each refusal of `check_family` to whom it concerns.

    Returns:
        What is wrong with the base, and the experts with their errors.
    """
    try:
        check_base(base, allowed)
    except CheckpointError as error:
        return str(error), list(experts)
    checked = []
    for member in experts:
        try:
            if member.checkpoint:
                check_family(base, {member.name: member.checkpoint}, parameters, allowed)
            checked.append(member)
        except CheckpointError as error:
            checked.append(replace(member, error=str(error)))
    return None, checked


def _check_finite(member: Member, compared: Sequence[str], tensors: Mapping[str, Geometry]) -> Member:
    """Refuse an expert that could be compared, but whose weights are not finite."""
    if member.error or member.checkpoint is None:
        return member
    broken = _not_finite(tensors, 1 + compared.index(member.name))
    return replace(member, error=not_finite(f"expert {member.name}", member.checkpoint, broken)) if broken else member


def _not_finite(tensors: Mapping[str, Geometry], row: int) -> str | None:
    """The first parameter in which a row of the geometry is not finite."""
    return next((name for name, one in tensors.items() if not np.isfinite(one.gram[row, row])), None)
