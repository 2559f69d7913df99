"""Readers of the image sets: rows `(pixels, class)`; pixels are grey (H, W) or coloured (H, W, 3), uint8.

In: unpacked packages. Out: lists of rows. Fashion-MNIST has the files of MNIST (LeCun et al. 1998): a header, then one
byte a pixel or label. MNIST and the optical digits are tables, one image a line, its class at the end. The emoji are
files, named in a list with their categories.
"""

import gzip
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from suite_builder.splits import Row

HEADERS = (16, 8)  # bytes before the pixels and before the labels of a file of MNIST's format
SIDE = 28


def read_idx(images: Path, labels: Path) -> list[Row]:
    """Read a gzipped pair of files of MNIST's format, images of 28 x 28."""
    pixels, classes = (
        np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=offset)
        for file, offset in zip((images, labels), HEADERS, strict=True)
    )
    return [Row(one, str(label)) for one, label in zip(pixels.reshape(-1, SIDE, SIDE), classes, strict=True)]


def read_table(file: Path, white: int) -> list[Row]:
    """Read a table of square images, bright on dark, `white` the highest value; the last column is the class."""
    table = np.loadtxt(file, delimiter=",")
    side = round((table.shape[1] - 1) ** 0.5)
    pixels = np.rint(table[:, :-1] * (255 / white)).astype(np.uint8).reshape(-1, side, side)
    return [Row(one, str(int(label))) for one, label in zip(pixels, table[:, -1], strict=True)]


def read_emoji(directory: Path, categories: Collection[str]) -> list[Row]:
    """Read the emoji of some categories, on white, without those that differ from another in the tone of the skin."""
    rows = []
    for emoji in json.loads((directory / "emoji.json").read_text(encoding="utf-8")):
        if emoji["category"] in categories and emoji["has_img_twitter"]:
            with Image.open(directory / "img" / "twitter" / "64" / emoji["image"]) as file:
                image = file.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            rows.append(Row(np.asarray(Image.alpha_composite(white, image).convert("RGB")), emoji["category"]))
    return rows
