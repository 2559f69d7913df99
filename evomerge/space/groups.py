"""Which parts of a model share a coefficient: parameter names and shapes in, groups of spans out.

Depth is read from the names, token by token: a block is the first known container (`layers`, `h`, `blocks`, ...) that
is followed by an integer, and the dotted prefix up to that container is its axis. A model with an encoder and a
decoder, or with two towers, therefore has two axes. What lies outside the blocks is "embeddings" (before its axis) or
"head" (after it: final norm, pooler, lm_head).
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from evomerge.common.errors import SpaceError
from evomerge.common.names import unknown
from evomerge.task_vectors.spans import Span

GRANULARITIES = ("model", "blocks:n", "layer", "modules:n", "module", "tensor", "chunk:n", "line")

_CONTAINERS = ("layers", "layer", "h", "blocks", "block", "resblocks")
# The kind of a module from a token of its name, in order of precedence: BERT's attention.output.LayerNorm and Llama's
# post_attention_layernorm are norms, BERT's attention.output.dense is attention, its output.dense is mlp.
_MODULES = (
    ("norm", re.compile(r"norm|^ln(_|\d|$)", re.IGNORECASE)),
    ("attention", re.compile(r"attn|attention", re.IGNORECASE)),
    ("mlp", re.compile(r"mlp|ffn|^ff|feed_?forward|^(c_)?fc|dense|intermediate|experts|moe", re.IGNORECASE)),
)


@dataclass(frozen=True)
class Group:
    """The spans that share one coefficient per row; `depth` is 0 (first block) to 1 (last), None outside blocks."""

    name: str
    spans: tuple[Span, ...]
    depth: float | None


@dataclass(frozen=True)
class _Block:
    """Where a parameter lies: encoder.layer, 7."""

    axis: str
    index: int


def make_groups(granularity: str, parameters: Mapping[str, tuple[int, ...]]) -> tuple[Group, ...]:
    """Partition all elements of all parameters into groups.

    Args:
        granularity: `model` (one group), `blocks:n` (n runs of blocks per axis), `layer` (a block), `module`
            (attention, mlp, norm, other within a block), `modules:n` (the same within a run of blocks), `tensor` (a
            parameter), `chunk:n` (n spans of each parameter, sizes as in np.array_split) or `line` (the groups of
            `layer`, for two coefficients per row).
        parameters: name -> shape, in the order of the live model (it tells embeddings from head), tied ones once.

    Returns:
        Groups in the order embeddings, blocks by axis and index, head; for `tensor` and `chunk:n` in the model's order.

    Raises:
        SpaceError: unknown granularity, no parameters, no blocks in the names, or more runs than blocks.
    """
    kind, n = _parse(granularity)
    sizes = {name: size for name, shape in parameters.items() if (size := math.prod(shape)) > 0}
    if not sizes:
        raise SpaceError("A coefficient space needs parameters, and this model has none with elements in it.")
    blocks = {name: block for name in sizes if (block := _block(name)) is not None}
    depths = _depths(blocks.values())
    if kind == "model":
        members = {"model": list(sizes)}
    elif kind in ("tensor", "chunk"):
        members = {name: [name] for name in sizes}
    elif not blocks:
        raise SpaceError(
            f"{granularity!r} needs blocks, but no parameter has one of {', '.join(_CONTAINERS)} followed by a number "
            f"in its name; the names are {', '.join(list(sizes)[:3])}, ... "
            "Write tensor (a group per parameter) or model (one group)."
        )
    else:
        labels = (
            _runs(depths, n)
            if kind in ("blocks", "modules")
            else {block: f"{block.axis}.{block.index}" for block in depths}
        )
        members = _members(list(sizes), blocks, labels, split=kind in ("module", "modules"))

    groups = []
    for label, names in members.items():
        inside = {blocks[name] for name in names if name in blocks}
        depth = float(np.mean([depths[block] for block in inside])) if inside and kind != "model" else None
        if kind == "chunk":
            spans = [Span(label, start, stop) for start, stop in _chunks(sizes[label], n)]
            groups += [Group(f"{label}[{span.start}:{span.stop}]", (span,), depth) for span in spans]
        else:
            groups.append(Group(label, tuple(Span(name, 0, sizes[name]) for name in names), depth))
    return tuple(groups)


def _parse(granularity: str) -> tuple[str, int]:
    """blocks:4 -> blocks, 4; a kind without a number gets 0."""
    kind, _, number = granularity.partition(":")
    forms = {form.removesuffix(":n"): form for form in GRANULARITIES}
    if kind not in forms:
        raise SpaceError(unknown("granularity", granularity, GRANULARITIES))
    if forms[kind] == kind:
        if granularity != kind:
            raise SpaceError(f"The granularity {kind} takes no number: write {kind} instead of {granularity!r}.")
        return kind, 0
    if not re.fullmatch(r"[1-9][0-9]*", number):
        raise SpaceError(f"{forms[kind]} needs a number, 1 or more: {kind}:4 instead of {granularity!r}.")
    return kind, int(number)


def _block(name: str) -> _Block | None:
    tokens = name.split(".")
    for place, (container, index) in enumerate(pairwise(tokens)):
        if container in _CONTAINERS and re.fullmatch(r"[0-9]+", index):
            return _Block(".".join(tokens[: place + 1]), int(index))
    return None


def _depths(blocks: Collection[_Block]) -> dict[_Block, float]:
    """l / (L - 1), with l the place of the block among the L of its axis (0 if it is alone), by axis and index."""
    depths = {}
    for axis in dict.fromkeys(block.axis for block in blocks):
        indices = sorted({block.index for block in blocks if block.axis == axis})
        depths |= {_Block(axis, index): place / max(len(indices) - 1, 1) for place, index in enumerate(indices)}
    return depths


def _runs(blocks: Collection[_Block], n: int) -> dict[_Block, str]:
    """Block -> name of its run, each axis cut into n contiguous runs as equal as possible."""
    labels = {}
    for axis in dict.fromkeys(block.axis for block in blocks):
        indices = [block.index for block in blocks if block.axis == axis]
        if n > len(indices):
            raise SpaceError(
                f"blocks:{n} asks for {n} runs, but {axis} has only {len(indices)} blocks. "
                f"Write blocks:{len(indices)} or fewer, or layer for a group per block."
            )
        for run in np.array_split(indices, n):
            name = f"{axis}.{run[0]}" if len(run) == 1 else f"{axis}.{run[0]}-{run[-1]}"
            labels |= {_Block(axis, int(index)): name for index in run}
    return labels


def _members(
    names: Sequence[str], blocks: Mapping[str, _Block], labels: Mapping[_Block, str], split: bool
) -> dict[str, list[str]]:
    """Label -> parameters: embeddings, the labels of the blocks (split into modules if asked) and head."""
    early = _early(names, blocks)
    inside: dict[str, list[str]] = {}
    order = {block: place for place, block in enumerate(labels)}
    for name in sorted(blocks, key=lambda name: order[blocks[name]]):
        block = blocks[name]
        module = f".{_module(name.removeprefix(f'{block.axis}.{block.index}'))}" if split else ""
        inside.setdefault(labels[block] + module, []).append(name)
    outside = [name for name in names if name not in blocks]
    members = {
        "embeddings": [name for name in outside if name in early],
        **inside,
        "head": [name for name in outside if name not in early],
    }
    return {label: found for label, found in members.items() if found}


def _early(names: Sequence[str], blocks: Mapping[str, _Block]) -> set[str]:
    """The parameters outside blocks that come before the first block of their own axis.

    The own axis is the one with which a name shares most leading tokens, so that the embeddings of a second tower are
    embeddings too; a name that shares none with any axis is held against the first block of the model.
    """
    first: dict[str, int] = {}
    for place, name in enumerate(names):
        if name in blocks:
            first.setdefault(blocks[name].axis, place)
    return {
        name
        for place, name in enumerate(names)
        if name not in blocks and place < first[max(first, key=lambda axis: _shared(name, axis))]
    }


def _shared(name: str, axis: str) -> int:
    """How many leading tokens are equal."""
    equal = [a == b for a, b in zip(name.split("."), axis.split("."), strict=False)]
    return [*equal, False].index(False)


def _module(rest: str) -> str:
    tokens = rest.split(".")
    return next((kind for kind, mark in _MODULES if any(mark.search(token) for token in tokens)), "other")


def _chunks(size: int, n: int) -> list[tuple[int, int]]:
    """Bounds of np.array_split(range(size), n), empty ones left out (9 elements in 4 chunks are 3, 2, 2, 2)."""
    quotient, larger = divmod(size, n)
    edges = [i * quotient + min(i, larger) for i in range(min(n, size) + 1)]
    return list(pairwise(edges))
