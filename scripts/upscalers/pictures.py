"""The pictures that an upscaler is scored on: emoji of 64 × 64 pixels, made half as large and saved as JPEG.

In: the emoji of the vision suite. Out: an item for every picture and quality, and how near a network comes to the
picture that there was before, in decibels: 10 · log10(1 / mean squared error).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from suite_builder.packages import exclusive, fetch
from suite_builder.vision_readers import read_emoji
from suite_builder.vision_tasks import CATEGORIES, TWEMOJI
from torch import Tensor, nn

import evomerge as em
from upscalers.network import MARGIN

BATCH = 16
SPLITS = {"search": 0.4, "select": 0.2, "report": 0.4}
"""Which share of the pictures guides the search, chooses the winner, and judges it: the same pictures in every task."""


def emoji(cache: Path, count: int, seed: int = 0) -> np.ndarray:
    """Return `count` emoji, drawn by the seed: (count, 64, 64, 3), bytes."""
    with exclusive(cache):
        directory = fetch(TWEMOJI, cache)
    if directory is None:
        raise SystemExit("The emoji come as a package of npm, and there is no npm here: install it.")
    rows = read_emoji(directory, CATEGORIES)
    return np.stack([rows[row].content for row in np.random.default_rng(seed).permutation(len(rows))[:count]])


def tasks_of(pictures: np.ndarray, qualities: dict[str, int]) -> dict[str, em.Splits]:
    """Return the items of a task for each JPEG quality: `picture@quality`."""
    ends = np.cumsum([round(share * len(pictures)) for share in SPLITS.values()])[:-1]
    parts = dict(zip(SPLITS, np.split(np.arange(len(pictures)), ends), strict=True))
    return {
        task: em.items({split: [f"{number}@{quality}" for number in numbers] for split, numbers in parts.items()})
        for task, quality in qualities.items()
    }


def fitness_of(pictures: np.ndarray) -> Callable[[nn.Module, Sequence[em.Item]], list[float]]:
    """Return the function that scores a network: decibels for each item."""

    def decibels(model: nn.Module, items: Sequence[em.Item]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(items), BATCH):
            pairs = [pair_of(item.text, pictures) for item in items[start : start + BATCH]]
            small, large = (torch.stack(side) for side in zip(*pairs, strict=True))
            with torch.inference_mode():
                made = model(nn.functional.pad(small, (MARGIN,) * 4, mode="replicate")).clamp(0, 1)
            scores += (-10 * torch.log10(((made - large) ** 2).mean((1, 2, 3)))).tolist()
        return scores

    return decibels


def pair_of(item: str, pictures: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return an item's small picture as its JPEG shows it (3, 32, 32), and the large one (3, 64, 64), from 0 to 1."""
    number, quality = map(int, item.split("@"))
    large = Image.fromarray(pictures[number])
    file = BytesIO()
    large.resize((large.width // 2, large.height // 2), Image.Resampling.BOX).save(file, "JPEG", quality=quality)
    with Image.open(file) as small:
        return tensor_of(small), tensor_of(large)


def tensor_of(image: Image.Image) -> Tensor:
    """Return an image as numbers from 0 to 1: (3, height, width)."""
    return torch.from_numpy(np.array(image, np.float32).transpose(2, 0, 1) / 255)
