"""Whether base and experts are whole: which parameters of the live model they lack, and what they hold beyond it.

In: `Checkpoint`s. Out: nothing, or a refusal that names the tensors, and the setting that lets them pass. A pooler may
be missing: many encoders come without.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from evomerge.common.errors import CheckpointError
from evomerge.common.names import listed
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.matching import allows, is_pooler


def check_base(base: Checkpoint, allowed: Collection[str] = ()) -> None:
    """Refuses a base whose files lack parameters of the live model or hold others; only a pooler may be missing.

    A parameter that no file holds was made up at load: transformers initialises heads that a checkpoint lacks, and θ₀
    would not be what the files say.

    Args:
        base: θ₀.
        allowed: names and patterns of tensors that may be left over (`model.allow_missing`).

    Raises:
        CheckpointError: parameters other than a pooler's are missing, or a tensor is unknown.
    """
    lost = [name for name in base.missing if name not in base.computed and not is_pooler(name)]
    if lost:
        raise CheckpointError(
            f"{base.path}: no file holds {listed(lost)} of the live model"
            + (f", and no parameter of the live model takes {listed(base.spare)} of the files" if base.spare else "")
            + ". Where that is a head which the base lacks, load the base as its own class, or headless with"
            " model.auto_class=AutoModel; else the files are not whole: download or save them again."
        )
    _check_known(base, "the base", allowed)


def check_expert(name: str, expert: Checkpoint, base: Checkpoint, allowed: Collection[str] = ()) -> None:
    """Refuses an expert that lacks parameters which the base has, or holds others; only a pooler may be missing.

    Args:
        name: who it is, for the message.
        expert: θ_k.
        base: θ₀.
        allowed: names and patterns of parameters that may be missing, and of tensors that may be left over.

    Raises:
        CheckpointError: a parameter other than a pooler's is missing, or a tensor is unknown.
    """
    lost = [one for one in (*expert.missing, *expert.untied) if one in base.keys or one in expert.untied]
    lost = [one for one in lost if not is_pooler(one) and not allows(allowed, one)]
    if lost:
        raise CheckpointError(
            f"{name} ({expert.path}) lacks {listed(lost)}, which the base has"
            + (f"; it holds {listed(expert.spare)}, which no parameter takes" if expert.spare else "")
            + ". It would be merged in part only. Take the whole model, in float32, bfloat16 or float16 and under the"
            f" names of its class. If you mean it, write {allowing(lost)}: the task vector is then zero there."
        )
    _check_known(expert, name, allowed)


def _check_known(checkpoint: Checkpoint, who: str, allowed: Collection[str]) -> None:
    if stray := [key for key in checkpoint.stray if not allows(allowed, key)]:
        raise CheckpointError(
            f"{who} ({checkpoint.path}) holds {listed(stray)}, which the live model does not have: its config.json is"
            " of another model than its files (more layers, quantised matrices), or it is of another architecture than"
            f" the base. Without these tensors it is not the model that was trained. If you mean it, write"
            f" {allowing(stray)}: they are then left out."
        )


def allowing(names: Sequence[str]) -> str:
    """The setting that lets tensors be missing or left over, as the command line takes it."""
    return (
        "'model.allow_missing=[" + ",".join(f'"{name}"' for name in names[:3]) + ("]'" if len(names) < 4 else ",...]'")
    )
