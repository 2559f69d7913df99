"""Whether what a model says are numbers: nothing that is computed of anything else is a score.

In: a live model, while a fitness runs it. Out: `NotFinite` where a row of its logits, or of its hidden states, holds a
NaN or has no finite largest value. Single entries of -inf are legal, since models mask tokens with them. Results alone
do not tell: the largest of many NaN is the first, so a model that says nothing but NaN is right on one question in
four. Positions that the attention mask calls padding are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.common.errors import NotFinite

WHAT = "its logits are not finite (NaN, or a row without a finite largest value), and no number made of them is a score"
"""What is wrong with a model that is refused here."""


@contextmanager
def watched(model: Any) -> Iterator[None]:
    """Look at everything that a model says within the block, be it run as a whole or without its head, by whomever.

    Raises:
        NotFinite: at the end of the block, where something was not finite.
    """
    watch = _Watch()
    parts = {id(part): part for part in (model, getattr(model, "base_model", None)) if isinstance(part, nn.Module)}
    hooks = [part.register_forward_hook(watch, with_kwargs=True) for part in parts.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if watch.bad:
        raise NotFinite(WHAT)


@contextmanager
def named(who: str) -> Iterator[None]:
    """Say which model it is that gives no numbers.

    Raises:
        NotFinite: the block found that it does not.
    """
    try:
        yield
    except NotFinite as error:
        raise NotFinite(f"{who}: {error}") from error


class _Watch:
    """A forward hook that remembers whether it has seen what is not finite, without waiting for an accelerator."""

    def __init__(self) -> None:
        self._bad: dict[torch.device, Tensor] = {}

    @property
    def bad(self) -> bool:
        return any(bool(bad) for bad in self._bad.values())

    @torch.no_grad()
    def __call__(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        decodes = getattr(getattr(module, "config", None), "is_encoder_decoder", False)
        mask = kwargs.get("decoder_attention_mask" if decodes else "attention_mask")
        for said in _tensors(output):
            fine = said.amax(-1).isfinite()  # the largest is NaN where one is
            if isinstance(mask, Tensor) and mask.dim() == fine.dim() == 2 and _covers(mask, fine):
                fine = fine | (mask[:, -fine.shape[1] :] == 0).to(fine.device)
            bad = ~fine.all()
            self._bad[bad.device] = bad | self._bad.get(bad.device, bad)


def _covers(mask: Tensor, positions: Tensor) -> bool:
    """Whether a mask says of all positions whether they are padding: of images beside texts it does not."""
    return len(mask) in (1, len(positions)) and mask.shape[1] >= positions.shape[1]


def _tensors(output: Any) -> list[Tensor]:
    """Return what stands in a model's output, without a loss, which is one number, and without inner states."""
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else [output]
    return [
        each
        for each in values
        if isinstance(each, Tensor) and each.is_floating_point() and each.dim() > 1 and each.numel()
    ]
