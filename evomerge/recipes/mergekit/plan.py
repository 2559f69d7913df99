"""Which slice of a merge YAML each tensor belongs to, and where its layer lies there: mergekit 0.1.5's planner.

In: a `Document`, and names and shapes of the model's parameters. Out: a `Place` for each of them. What lies before the
layers (embeddings) is planned with the first slice and what lies behind them (final norm, head) with the last, both at
the beginning of its gradients: so with a gradient the head gets the number of the first layer. Slices that reorder,
repeat or drop layers make another model, and are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from evomerge.common.errors import ConfigError, SpaceError
from evomerge.recipes.mergekit.document import Document, Origin, Settings, Slice
from evomerge.space.groups import make_groups

HEAD = "head"
INFERRED = (
    "mergekit has no table of this architecture and plans what lies behind the layers with the first slice, as it does "
    "what lies before them"
)
KNOWN = re.compile(
    r"^(Apertus|Arcee|Baichuan|Cohere2?|Exaone|Falcon|GPTBigCode|GPTNeoX|Gemma[23]?|Glm4(Moe)?|Granite|GraniteMoeHybrid"
    r"|InternLM2|Lfm2|LLaMa|Llama|Mamba|Mistral|Mixtral|Olmo2|Phi|Phi3|Phi3Small|Qwen[23]|Qwen3Moe|Solar|StableLm"
    r"|StableLMEpoch|Starcoder2)ForCausalLM$|^(GPT2|JAIS|QWen)LMHeadModel$|^(Bert|DistilBert|Roberta)Model$"
    r"|^(Bert|DistilBert|Roberta)For(MaskedLM|SequenceClassification|TokenClassification)$"
    r"|^(GPT2|Llama)ForSequenceClassification$|^BertForMultipleChoice$"
)
"""Architectures of which mergekit 0.1.5 knows what lies behind the layers."""


@dataclass(frozen=True)
class Place:
    """Where a tensor is in a merge.

    Attributes:
        part: the slice.
        t: where its layer lies in it, 0 to 1.
        names: all names that mergekit may know it by.
    """

    part: Slice
    t: float
    names: tuple[str, ...]

    def scopes(self, document: Document, source: Origin | None = None) -> Iterator[Settings]:
        """Yield the settings that count for it, or for a source of it, the nearest first."""
        if source is not None:
            yield source.settings
        yield self.part.settings
        yield from document.scopes


def make_plan(
    document: Document,
    parameters: Mapping[str, tuple[int, ...]],
    keys: Mapping[str, str],
    architecture: str,
) -> dict[str, Place]:
    """Return the place of every parameter.

    Args:
        document: the YAML.
        parameters: name -> shape, in the order of the live model.
        keys: name -> key in the base's files.
        architecture: as config.json names it.

    Raises:
        ConfigError: the layers of the slices are not those of the model, each once and in order.
    """
    layers = _layers(parameters)
    count = _counted(document, layers)
    parts = [(part, at, _length(part, count)) for part in document.slices for at in range(_length(part, count))]
    known = KNOWN.match(architecture) is not None
    last = document.slices[-1 if known else 0]
    if last is not document.slices[-1]:
        document.notes.add(None, INFERRED)
    found = {}
    for name in parameters:
        names = (name,) if known or keys[name] == name else (name, keys[name])
        axis, index, number = layers.get(name, (None, 0, 0))
        if axis is None:
            found[name] = Place(last if index else document.slices[0], 0.0, names)
        elif len(document.slices) == 1:
            found[name] = Place(document.slices[0], index / (number - 1) if number > 1 else 1.0, names)
        else:
            part, at, length = parts[index]
            found[name] = Place(part, at / (length - 1) if length > 1 else 1.0, names)
    return found


def _layers(parameters: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str | None, int, int]]:
    """Name -> axis of its layer, its index and how many there are; no axis outside layers, 1 behind them and 0 before.

    A model without layers in its names has all before them.
    """
    try:
        groups = make_groups("layer", parameters)
    except SpaceError:
        return {}
    axes: dict[str, list[int]] = {}
    for group in groups:
        if group.depth is not None:
            axis, _, index = group.name.rpartition(".")
            axes.setdefault(axis, []).append(int(index))
    found: dict[str, tuple[str | None, int, int]] = {}
    for group in groups:
        axis, _, index = group.name.rpartition(".")
        place = (None, int(group.name == HEAD), 0)
        if group.depth is not None:
            place = (axis, axes[axis].index(int(index)), len(axes[axis]))
        found |= {span.parameter: place for span in group.spans}
    return found


def _counted(document: Document, layers: Mapping[str, tuple[str | None, int, int]]) -> int:
    """Return how many layers the model has, if the slices are these, each once and in order."""
    axes = {axis: number for axis, _, number in layers.values() if axis is not None}
    if document.slices[0].sources[0].layers is None:
        return max(axes.values(), default=0)
    if len(axes) != 1:
        raise ConfigError(
            f"line {document.slices[0].line}: slices are of one row of layers, and this model has "
            f"{len(axes)} ({', '.join(map(str, axes)) or 'none'}): write `models` in place of `slices`."
        )
    count, wanted = next(iter(axes.values())), 0
    for part in document.slices:
        ranges = {source.layers for source in part.sources}
        start, stop = next(iter(ranges)) or (0, 0)
        if len(ranges) > 1 or start != wanted or stop <= start or stop > count:
            shown = ", ".join(f"{source.model} {list(source.layers or ())}" for source in part.sources)
            raise ConfigError(
                f"line {part.line}: this slice has layers {shown}, and the next layer of the merged model is "
                f"{wanted} of {count}. A slice that moves, repeats or leaves out layers stacks them into another "
                f"model. evomerge merges models of one architecture, each layer with the same layer of the others: "
                f"stack with mergekit's passthrough."
            )
        wanted = stop
    if wanted != count:
        raise ConfigError(
            f"line {document.slices[-1].line}: the slices end with layer {wanted - 1}, and the models have {count} "
            f"layers. Fewer layers make another model, which evomerge does not build: stack with mergekit's "
            f"passthrough."
        )
    return count


def _length(part: Slice, count: int) -> int:
    start, stop = part.sources[0].layers or (0, count)
    return stop - start
