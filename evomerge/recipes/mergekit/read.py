"""A merge YAML of mergekit as a recipe: the way in for people who have one.

In: the text of a YAML, and where it lies. Out: a recipe of the models that it names, with the coefficients that
mergekit 0.1.5 would take for every tensor, and what else should be known. What evomerge cannot do as it says is
refused, with its line, before weights are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.common.errors import CheckpointError, ConfigError, SpaceError
from evomerge.common.names import listed
from evomerge.common.progress import Progress
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.hub import ModelPlace, find_directory, name_directories
from evomerge.models.live import LiveModel, load_skeleton
from evomerge.models.vocabulary import UNION
from evomerge.models.weight_files import read_json
from evomerge.models.weights import dtype_name, first_dtype
from evomerge.recipes.mergekit.chat import choose_template
from evomerge.recipes.mergekit.document import Document, Reference, read_document
from evomerge.recipes.mergekit.methods import NEARLY, Peer, peer_named
from evomerge.recipes.mergekit.numbers import Reader, by_group, fewest_groups
from evomerge.recipes.mergekit.plan import make_plan
from evomerge.recipes.mergekit.tokens import check_tokens, choose_vocabulary, read_tokens
from evomerge.recipes.recipe import Recipe, Source
from evomerge.space.groups import make_groups
from evomerge.task_vectors.family import auto_class_of

IN_FLOAT32 = ("linear", "slerp")
"""Methods with which mergekit computes in float32, whatever dtype says."""
ROUNDED = (
    "mergekit would compute every step in the 16 bits of dtype; evomerge computes in float32 and rounds the result "
    "once, as mergekit does with dtype: float32 and out_dtype"
)
GRANULARITIES = ("model", "layer", "module", "tensor")
"""From the coarsest; the first that can express a YAML is taken."""


@dataclass(frozen=True)
class Told:
    """What a YAML stands for.

    Attributes:
        recipe: the same as a recipe.
        notes: what should be known, with lines.
    """

    recipe: Recipe
    notes: list[str]


def read_mergekit(text: str, beside: Path, reporter: Progress) -> Told:
    """Read a merge YAML and the models that it names.

    Args:
        text: the YAML.
        beside: the directory in which it lies; models are looked for from the working directory, then from there.
        reporter: is told what goes on.

    Raises:
        ConfigError: it says what evomerge cannot do; the message names the line.
        CheckpointError: a model is not there, is damaged, or does not belong with the others.
    """
    document = read_document(text)
    peer = peer_named(document.method.text())
    if isinstance(peer, str):
        raise document.method.error(peer)
    base, models = _taking_part(document, peer)
    places = {model: _find(model, beside) for model in dict.fromkeys([base, *models])}
    names = name_directories([model.place for model in models])
    experts = dict(zip(names, models, strict=True))
    live = skeleton_of(places[base].path)
    paths = {model: place.path for model, place in places.items()}
    known = {} if document.tokenizer is None else read_tokens(paths)
    vocabulary = choose_vocabulary(document, base, known, paths)
    if vocabulary == UNION:
        live = _united(live, document, paths[base], [paths[model] for model in models])
    check_tokens(document, live, base, known, paths[base])
    template = choose_template(document, paths[base], {name: paths[one] for name, one in experts.items()})
    ours, opened = _opened(live, places, base, experts, vocabulary, reporter)
    shapes = {name: shape for name, shape in live.parameters.items() if name not in ours.missing}
    architecture = next(iter(ours.config.get("architectures") or ()), "")
    plan = make_plan(document, shapes, ours.keys, architecture)
    read = Reader(document, peer, experts, plan, shapes).read()
    held = document.dtype or dtype_name(first_dtype(ours.tensors))
    if peer.name in NEARLY:
        document.notes.add(None, NEARLY[peer.name])
    if peer.name not in IN_FLOAT32 and held in ("bfloat16", "float16"):
        document.notes.add(None, ROUNDED)
    members = {name: _members(name, shapes) for name in GRANULARITIES}
    groups = {name: [list(found) for found in each.values()] for name, each in members.items() if each}
    granularity = fewest_groups(read.values, groups)
    recipe = Recipe(
        base=Source(str(places[base].path), ours.sha256, places[base].hub),
        experts={
            name: Source(str(places[one].path), opened[name].sha256, places[one].hub) for name, one in experts.items()
        },
        method=read.method,
        transform=read.transform,
        granularity=granularity,
        coefficients=by_group(read.values, {group: names[0] for group, names in members[granularity].items()}),
        auto_class=live.auto_class,
        vocabulary=vocabulary,
        union=live.union and live.union.digest,
        template=template,
        dtype=document.out_dtype or document.dtype,
    )
    return Told(recipe, document.notes.said)


def _taking_part(document: Document, peer: Peer) -> tuple[Reference, list[Reference]]:
    """Return the base, and the models whose weights are merged.

    Raises:
        ConfigError: there is no base, or not the number of models that the method takes.
    """
    models, base = document.models, document.base
    for model in models:
        model.check_adapter(base or models[0].without())
    if base and base.lora:
        raise ConfigError(f"line {base.line}: {base} is an adapter, and a base is a whole model: fold it in first.")
    if peer.base == "listed":
        if base and base not in models:
            lacks, gains = (", and it has no weight", " with a weight") if peer.each else ("", "")
            raise ConfigError(
                f"line {base.line}: mergekit's {peer.name} counts base_model as one of the models{lacks}: list it in "
                f"`models`{gains}, or leave base_model out."
            )
        return base or models[0].without(), models
    if peer.base == "deltas" and base is None:
        experts, base = models, models[0].without()
    elif base is None:
        raise document.method.error(f"{peer.name} needs a base_model, to which the others are differences")
    else:
        experts = [model for model in models if model != base]
    takes = {"slerp": 1, "nuslerp": 2}.get(peer.name, len(experts))
    if len(experts) != takes or not experts:
        raise document.method.error(
            f"{peer.name} merges {'the base and one other model' if takes == 1 else 'two models'}, and there are "
            f"{len(experts)} besides the base ({listed([str(one) for one in experts])})"
            if experts
            else "there is nothing but the base to merge"
        )
    return base, experts


def _find(model: Reference, beside: Path) -> ModelPlace:
    """Return where a model is: from here, from where the YAML lies, or on the hub."""
    text, revision = model.path, model.revision
    if model.lora:
        text, _, revision = model.lora.partition("@")
    path = Path(text).expanduser()
    place = next((place for place in (path, beside / path) if place.exists()), None)
    if place and revision:
        raise ConfigError(
            f"line {model.line}: {text} is a directory, which has no revision {revision}: name the directory alone. A "
            f"path with @ in it is written {{model: {{path: ...}}}}."
        )
    return ModelPlace(place) if place else find_directory(model.place)


def skeleton_of(path: Path) -> LiveModel:
    """Return the base's names and shapes, as of the class that it was saved from."""
    architecture = str((read_json(path / "config.json").get("architectures") or [""])[0])
    headless = "For" not in architecture and "LMHead" not in architecture
    return load_skeleton(path, "AutoModel" if headless else auto_class_of(architecture) or "AutoModel")


def _united(live: LiveModel, document: Document, base: Path, experts: Sequence[Path]) -> LiveModel:
    """Return the skeleton with rows for the tokens of all models."""
    try:
        return live.united(base, experts)
    except CheckpointError as error:
        line = document.tokenizer or document.method
        raise line.error(str(error).rstrip(".")) from error


def _opened(
    live: LiveModel,
    places: Mapping[Reference, ModelPlace],
    base: Reference,
    experts: Mapping[str, Reference],
    vocabulary: str,
    reporter: Progress,
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    with reporter.bars(), reporter.working("reading the models"):
        ours = live.open(places[base].path, progress=reporter.steps)
        fit = {"progress": reporter.steps, "vocabulary": vocabulary, "base": ours}
        return ours, {name: live.open(places[one].path, **fit) for name, one in experts.items()}


def _members(granularity: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """Return the parameters of each group; nothing where a model has no such groups."""
    try:
        groups = make_groups(granularity, shapes)
    except SpaceError:
        return {}
    return {group.name: [span.parameter for span in group.spans] for group in groups}
