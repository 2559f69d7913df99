"""Whether base and experts can be merged and what they are like, before anything expensive starts.

In: where the models are. Out: an `Inspection`: what each directory says of itself, which experts do not fit and why,
and the geometry of the task vectors. An expert that does not fit costs that expert; the others are compared. No model
is loaded and no task vector is written: the weights are read from their files, block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from itertools import combinations
from operator import add
from pathlib import Path

import numpy as np

from evomerge.checkpoint import Checkpoint, check_base, open_checkpoint
from evomerge.errors import CheckpointError, SpaceError
from evomerge.groups import Group, make_groups
from evomerge.inspection.facts import Facts, read_facts
from evomerge.inspection.geometry import Geometry, measure
from evomerge.live import load_skeleton
from evomerge.progress import Reporter
from evomerge.sources import Sources, cautions
from evomerge.task_vectors import check_family
from evomerge.vocabulary import REFUSE
from evomerge.weights import listed

SAME = 0.98
"""Cosine of two task vectors above which a search can hardly tell them apart."""


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
    facts: Facts | None
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

    def of(self, group: Group) -> Geometry:
        """The geometry of a group."""
        return reduce(add, (self.tensors[span.parameter] for span in group.spans))


def inspect_sources(
    sources: Sources, auto_class: str, cache: Path, density: float, reporter: Reporter, vocabulary: str = REFUSE
) -> Inspection:
    """Compare base and experts.

    Args:
        sources: where they are; tasks are not looked at.
        auto_class: the transformers class whose parameters are merged.
        cache: directory that remembers content hashes.
        density: see `geometry.measure`.
        reporter: shows progress.
        vocabulary: what becomes of experts with another number of tokens (`model.vocabulary`).

    Raises:
        CheckpointError: the base cannot be read.
        ConfigError: there is no such class.
    """
    facts = read_facts(sources.base)
    live = load_skeleton(sources.base, auto_class)

    opened = partial(
        open_checkpoint,
        parameters=live.parameters,
        prefix=live.prefix,
        tied=live.tied,
        cache=cache,
        progress=reporter.steps,
        rename=live.rename,
    )
    checkpoint = opened(sources.base)
    parameters = {name: shape for name, shape in live.parameters.items() if name not in checkpoint.missing}
    if not parameters:  # there is nothing to compare
        check_base(checkpoint)
    fitted = partial(opened, vocabulary=vocabulary, base=checkpoint)
    experts = [_member(name, path, fitted) for name, path in sources.experts.items()]
    error, experts, warnings = _check(checkpoint, experts, parameters)
    held = {member.name: member.checkpoint for member in experts if member.checkpoint}
    tensors = measure(checkpoint, list(held.values()), parameters, density, reporter.steps)
    if error is None and (broken := _not_finite(tensors, 0)):
        error = f"{sources.base}: {broken} of the base is not finite (inf or NaN), so nothing can be merged into it."
    elif error is None:
        experts = [_check_finite(member, list(held), tensors) for member in experts]
    try:
        groups = make_groups("layer", parameters)
    except SpaceError:  # it has no blocks
        groups = ()
    base, name = Member("base", sources.base, facts, checkpoint, error), type(live.model).__name__
    found = Inspection(auto_class, name, base, experts, list(held), parameters, tensors, groups, density, warnings)
    warnings += [*cautions(sources, {}), *_outside(found), *_differences(facts, experts), *_likenesses(found)]
    return found


def _member(name: str, path: Path, opened: Callable[[Path], Checkpoint]) -> Member:
    facts = None
    try:
        facts = read_facts(path)
        return Member(name, path, facts, opened(path))
    except CheckpointError as error:
        return Member(name, path, facts, None, str(error))


def _check(
    base: Checkpoint, experts: Sequence[Member], parameters: Mapping[str, tuple[int, ...]]
) -> tuple[str | None, list[Member], list[str]]:
    """Put each refusal of `check_family` to whom it concerns.

    Returns:
        What is wrong with the base, the experts with their errors, and the warnings.
    """
    try:
        check_base(base)
    except CheckpointError as error:
        return str(error), list(experts), []
    checked, warnings = [], []
    for member in experts:
        try:
            if member.checkpoint:
                warnings += check_family(base, {member.name: member.checkpoint}, parameters)
            checked.append(member)
        except CheckpointError as error:
            checked.append(replace(member, error=str(error)))
    return None, checked, warnings


def _check_finite(member: Member, compared: Sequence[str], tensors: Mapping[str, Geometry]) -> Member:
    """Refuse an expert that could be compared, but whose weights are not finite."""
    if member.error or not (broken := _not_finite(tensors, 1 + compared.index(member.name))):
        return member
    return replace(
        member,
        error=f"{member.path}: {broken} of expert {member.name} is not finite (inf or NaN), so nothing can be merged "
        f"from it. Its training diverged or its file is damaged: take an earlier checkpoint.",
    )


def _not_finite(tensors: Mapping[str, Geometry], row: int) -> str | None:
    """The first parameter in which a row of the geometry is not finite."""
    return next((name for name, one in tensors.items() if not np.isfinite(one.gram[row, row])), None)


def _outside(found: Inspection) -> list[str]:
    """What is in the live model or in the files of all, and yet takes no part in a merge."""
    base, warnings = found.base, []
    if base.checkpoint and base.checkpoint.missing and not base.error:
        warnings.append(
            f"the base holds no {listed(base.checkpoint.missing)}: random in the live model, and not merged; nothing "
            f"that is scored may depend on it"
        )
    others = [set(member.checkpoint.extra) for member in found.experts if member.checkpoint]
    if base.checkpoint and (
        spare := [
            key
            for key in base.checkpoint.extra
            if base.checkpoint.tensors[key].is_floating_point() and any(key in extra for extra in others)
        ]
    ):
        _, ending, task = (base.facts.architecture or "" if base.facts else "").rpartition("For")
        hint = f"AutoModel{ending}{task}" if ending else "a class with a head, such as AutoModelForCausalLM"
        warnings.append(f"{listed(spare)} is no part of {found.live} and is not merged; model.auto_class={hint} has it")
    return warnings


def _differences(base: Facts, experts: Sequence[Member]) -> list[str]:
    """What should be known of experts beside weights and tokens: prompts and licences."""
    warnings, licences = [], {base.licence}
    for name, facts in ((member.name, member.facts) for member in experts if member.facts):
        licences.add(facts.licence)
        if base.template and facts.template and facts.template != base.template:
            warnings.append(f"expert {name} has another chat template than the base: it was tuned on other prompts")
    if len(stated := sorted(licences - {None}, key=str)) > 1:
        warnings.append(f"the licences differ ({', '.join(map(str, stated))}): a merge has to respect all of them")
    return warnings


def _likenesses(found: Inspection) -> list[str]:
    """Experts that are the base, or each other."""
    members = {member.name: member for member in found.experts if not member.error}
    changed, cosines = found.whole.changed, found.whole.cosines
    places = {name: k for k, name in enumerate(found.compared) if name in members}
    warnings = [
        f"expert {name} equals the base in all that is merged: its task vector is zero, and it adds nothing"
        for name, k in places.items()
        if changed[k] == 0
    ]
    norms = found.whole.norms
    for (one, j), (two, k) in combinations(places.items(), 2):
        if cosines[j, k] > SAME:
            warnings.append(
                f"the task vectors of {one} and {two} are nearly the same (cosine {cosines[j, k]:.4f}, norms "
                f"{norms[j]:.4g} and {norms[k]:.4g}): a search can hardly tell their coefficients apart; leave one out"
            )
    return warnings
