"""What items become before they reach a model: tokens or pixels, and batches of them.

In: the processor of the live model, and items. Out: encodings, and the inputs of a forward pass made of some of them.
Texts are tokenised once. Images are decoded and scaled when they are first asked for, and kept while there is room:
at 224 x 224 an image takes 11 ms and then 0.6 MB (float32), where ViT-S/14 runs 87 ms on the same two CPU cores; on an
accelerator, encoding anew for every candidate would cost more than the model does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.image_processing_base import ImageProcessingMixin

from evomerge.common.errors import ConfigError, SuiteError
from evomerge.fitness.images import decode_image
from evomerge.fitness.items import Item

ROOM = 2**30
"""Bytes of pixels that are kept of a split; beyond, images are encoded whenever they are used."""


class Encoder(Protocol):
    """Turns items into inputs of a model; see the module's docstring."""

    def encode(self, items: Sequence[Item]) -> list[Any]:
        """Return an encoding for each item, once; whatever `collate` needs."""
        ...

    def length(self, encoding: Any) -> int:
        """Return the length by which batches are sorted, so that little is padded."""
        ...

    def collate(self, encodings: Sequence[Any]) -> dict[str, Tensor]:
        """Return the inputs of one forward pass, each (n, ...), on the CPU."""
        ...


class Texts:
    """Tokens, padded on the right.

    Args:
        tokenizer: of the live model.
        max_length: texts are cut to so many tokens, or to what the model allows.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._length = min(max_length, tokenizer.model_max_length)
        self._padding = {"input_ids": tokenizer.pad_token_id or 0}

    def encode(self, items: Sequence[Item]) -> list[dict[str, Tensor]]:
        """Return what the tokenizer gives for each text: token ids and masks, each (T,).

        Raises:
            SuiteError: a text has no tokens.
        """
        encoded = self._tokenizer([item.text for item in items], truncation=True, max_length=self._length)
        for item, tokens in zip(items, encoded["input_ids"], strict=True):
            if not tokens:
                raise SuiteError(
                    f"The text {item.text!r:.40} has no tokens, so a model says nothing of it: take it out."
                )
        return [{name: torch.tensor(values[i]) for name, values in encoded.items()} for i in range(len(items))]

    def length(self, encoding: Mapping[str, Tensor]) -> int:
        """Return the number of tokens."""
        return len(encoding["input_ids"])

    def collate(self, encodings: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Pad to the longest, (n, T)."""
        return {
            name: nn.utils.rnn.pad_sequence(
                [encoding[name] for encoding in encodings],
                batch_first=True,
                padding_value=self._padding.get(name, 0),
            )
            for name in encodings[0]
        }


class Images:
    """Pixels, each image as the processor makes it by itself.

    Args:
        processor: the image processor of the live model.
        room: bytes of pixels to keep.
    """

    def __init__(self, processor: Any, room: int = ROOM) -> None:
        self._processor = processor
        self._room = room
        self._kept: dict[str, dict[str, Tensor]] = {}  # content -> its pixels

    def encode(self, items: Sequence[Item]) -> list[Item]:
        """Return the items themselves: their pixels are made when they are asked for."""
        return list(items)

    def length(self, encoding: Item) -> int:
        """Return 0: nothing is padded, and items stay in their order."""
        return 0

    def collate(self, encodings: Sequence[Item]) -> dict[str, Tensor]:
        """Stack what the processor gives: pixels (n, 3, H, W), float32.

        Raises:
            ConfigError: the processor gives images of several sizes.
            SuiteError: an image cannot be decoded.
        """
        pixels = [self._pixels(item) for item in encodings]
        shapes = sorted({tuple(one["pixel_values"].shape) for one in pixels})
        if len(shapes) > 1:
            raise ConfigError(
                f"The image processor of the base gives images of several sizes, like {shapes[0]} and {shapes[-1]}, "
                f"which make no batch: let it crop or resize to one size (do_center_crop, crop_size or size in the "
                f"base's preprocessor_config.json)."
            )
        return {name: torch.stack([one[name] for one in pixels]) for name in pixels[0]}

    def _pixels(self, item: Item) -> dict[str, Tensor]:
        if (known := self._kept.get(item.content)) is not None:
            return known
        try:
            image = decode_image(item.image)
        except SuiteError as error:
            raise SuiteError(f"The image of the item {item.id} is {error}") from None
        made = {name: values[0] for name, values in self._processor(images=[image], return_tensors="pt").items()}
        size = sum(values.nbytes for values in made.values())
        if size <= self._room:
            self._room -= size
            self._kept[item.content] = made
        return made


def make_encoder(processor: Any, max_length: int) -> Encoder:
    """Return what turns items into inputs.

    Args:
        processor: of the live model: a tokenizer or an image processor.
        max_length: of a text, in tokens.
    """
    return Images(processor) if isinstance(processor, ImageProcessingMixin) else Texts(processor, max_length)


def check_kind(processor: Any, items: Mapping[str, Sequence[Item]]) -> None:
    """Refuse texts for a model of images, and images for a model of texts.

    Args:
        processor: of the live model.
        items: by task.

    Raises:
        ConfigError: a task holds what the model does not take.
    """
    images = isinstance(processor, ImageProcessingMixin)
    for task, chosen in items.items():
        if any(bool(item.image) != images for item in chosen):
            holds, base = ("texts", "images") if images else ("images", "texts")
            raise ConfigError(
                f"The task {task} holds {holds}, but the base is a model of {base}: a line of its items needs "
                f"`{base[:-1]}`, or this task another base."
            )
