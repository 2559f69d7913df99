"""Experts that are a part of the base: a language model for the text side of a model that also sees (`model.part`).

In: the live model, the name of a module within it, and an expert's directory. Out: the expert as a `Checkpoint` by the
parameters of the live model, as if it had been the whole: its own names are read by its own class and put below the
module; a head that stands beside the module in both is the same. All else stays the base's.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.common.names import unknown
from evomerge.models.checkpoint import Checkpoint, open_checkpoint
from evomerge.models.conversions import find_conversions
from evomerge.models.matching import Layout
from evomerge.models.pretrained import empty_model, first_line, frozen, passed_over, read_config, rename_keys
from evomerge.models.vocabulary import read_object

CLASSES = ("AutoModelForCausalLM", "AutoModel")
"""With which an expert is made, in this order."""

if TYPE_CHECKING:
    from evomerge.models.live import LiveModel


def find_part(live: LiveModel, part: str) -> str:
    """Return the full name of a module of a live model.

    Args:
        live: the base.
        part: the name, or the end of it.

    Raises:
        ConfigError: there is no such module with parameters in it.
    """
    owners = {name.rpartition(".")[0] for name in live.parameters}
    known = [name for name, _ in live.model.named_modules()]
    modules = {name for name in known if any(f"{one}.".startswith(f"{name}.") for one in owners)}
    found = sorted((name for name in modules if f".{name}".endswith(f".{part}")), key=len)
    if not part or not found:
        names = sorted({name.rpartition(".")[2] for name in modules if name and name.count(".") < 2})
        raise ConfigError(f"model.part: {unknown('module of the base', part, names)}")
    return found[0]


def is_part(live: LiveModel, path: Path) -> bool:
    """Whether a directory holds a part of a live model, and not a model of the same architecture.

    Args:
        live: the base; where it names no part, nothing is one.
        path: the directory.
    """
    return live.part is not None and read_object(path / "config.json").get("model_type") != live.model.config.model_type


def open_part(live: LiveModel, path: Path, base: Checkpoint, **options: Any) -> Checkpoint:
    """Open an expert that is a part of the base.

    Args:
        live: the base, and which part.
        path: the expert's directory.
        base: θ₀.
        options: those of `open_checkpoint`.

    Raises:
        CheckpointError: it does not fit there.
    """
    try:
        config = read_config(path)
        model = _empty(config)
    except Exception as error:  # of whatever kind the reader of its config raises
        raise CheckpointError(f"transformers cannot make a model of {path}: {first_line(error)}") from error
    part = str(live.part)
    names = _names(model, live, part)
    if not any(ours.startswith(f"{part}.") for ours in names.values()):
        raise CheckpointError(
            f"{path} holds a {type(model).__name__}, which is not the {part} of the base: no parameter has its name "
            f"there. Name another model.part, or an expert of the base's own architecture."
        )
    inner = {ours: own for own, ours in names.items()}
    layout = Layout(
        prefix=model.base_model_prefix,
        tied={inner[alias]: inner[one] for alias, one in live.tied.items() if alias in inner and one in inner},
        own=dict(model.all_tied_weights_keys),
        buffers=frozenset(name for name, _ in model.named_buffers()),
        computed=frozen(model),
        spare=passed_over(model),
        rename=partial(rename_keys, model),
        convert=partial(find_conversions, model),
        tokens=getattr(config.get_text_config(), "vocab_size", None),
    )
    shapes = {own: live.parameters[ours] for own, ours in names.items() if ours in live.parameters}
    found = open_checkpoint(path, shapes, layout, base=base.under(inner), **options)
    lacking = [name for name in live.parameters if name not in inner]
    inside = [name for name in lacking if name.startswith(f"{part}.")]
    outside = len(lacking) - len(inside)
    note = f"is the {part} of the base: {outside} parameters outside of it stay the base's (model.part)"
    found = found.under(names)
    return replace(found, missing=(*found.missing, *inside), notes=(*found.notes, note))


def check_whole(live: LiveModel, found: Checkpoint) -> None:
    """Refuse an expert that shares next to nothing with a base of several parts, where it may be one of them.

    Args:
        live: the base.
        found: the expert, opened as a model of the base's architecture.

    Raises:
        CheckpointError: it is such an expert; the message says what to write.
    """
    own, theirs = getattr(live.model, "config", None), found.config.get("model_type")
    text = own.get_text_config() if isinstance(own, PreTrainedConfig) else own
    if len(found.keys) > 1 or text is own or own is None or theirs in (None, own.model_type):
        return
    inner = next(
        (name for name, one in live.model.named_modules() if name and getattr(one, "config", None) is text), ""
    )
    raise CheckpointError(
        f"{found.path} is a {theirs}, and the base a {own.model_type}, which is made of parts. If the expert is one of "
        f"them, write model.part={inner.rpartition('.')[2] or 'language_model'}: the rest stays the base's."
    )


def _empty(config: Any) -> Any:
    """Return a model of a config without weights, with a language model's head where it has one."""
    for name in CLASSES[:-1]:
        try:
            return empty_model(name, config)
        except ValueError:  # there is no such class for it
            continue
    return empty_model(CLASSES[-1], config)


def _names(model: Any, live: LiveModel, part: str) -> dict[str, str]:
    """Return the expert's own name -> that in the live model, of parameters and aliases that both have."""
    ours = {*live.parameters, *live.tied}
    front, names = f"{model.base_model_prefix}.", {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        below = f"{part}.{name.removeprefix(front)}"
        beside = next((one for one in (name, *(f"{root}.{name}" for root in _above(part))) if one in ours), None)
        if below in ours:
            names[name] = below
        elif beside is not None and not name.startswith(front):
            names[name] = beside
    return names


def _above(part: str) -> list[str]:
    """Return the names of the modules above a module."""
    tokens = part.split(".")
    return [".".join(tokens[:end]) for end in range(1, len(tokens))]
