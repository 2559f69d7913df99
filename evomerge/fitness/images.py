"""Images as items hold them: the bytes of a file (PNG, JPEG ...) as it is, undecoded.

In: what a line of a `.jsonl` file says of an image, a path or a data URI. Out: its bytes; an upright RGB image for a
processor; a data URI to be written. Pillow, the extra `vision`, is imported only where there are images.
"""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from types import ModuleType
from typing import Any

from evomerge.common.errors import ConfigError, SuiteError


def read_image(source: str, folder: Path) -> bytes:
    """Read the bytes of an image, without looking at them.

    Args:
        source: a path, relative to `folder`, or `data:<type>;base64,<bytes>`.
        folder: where the file is that names it.

    Raises:
        SuiteError: there is no such file, it cannot be read or is empty, or the data URI is none.
    """
    if source.startswith("data:"):
        head, _, text = source.partition(",")
        try:
            data = base64.b64decode(text, validate=True) if head.endswith(";base64") else b""
        except binascii.Error:
            data = b""
        if not data:
            raise SuiteError(f"{source[:40]!r} is no image; write data:image/png;base64,<bytes>, or the path of a file")
        return data
    try:
        data = (folder / source).read_bytes()
    except FileNotFoundError:
        raise SuiteError(f"the image {folder / source} does not exist; paths are relative to the .jsonl file") from None
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        raise SuiteError(f"the image {source[:200]!r} cannot be read: {error}; write the path of a file") from None
    if not data:
        raise SuiteError(f"the image {folder / source} is empty; copy it again")
    return data


def decode_image(data: bytes) -> Any:
    """Return an image as a PIL image in RGB, upright, without its transparency (as transformers' `load_image` does).

    Raises:
        ConfigError: Pillow is not installed.
        SuiteError: the bytes are no image that Pillow reads.
    """
    pillow = _pillow()
    try:
        with pillow.Image.open(io.BytesIO(data)) as image:
            return pillow.ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # damaged bytes make its readers raise almost anything
        raise SuiteError(f"no image that Pillow can read: {error}; save it anew as PNG or JPEG") from None


def data_uri(data: bytes) -> str:
    """Write an image as `data:image/png;base64,...`, with the type that its bytes have."""
    with _pillow().Image.open(io.BytesIO(data)) as image:
        return f"data:{image.get_format_mimetype()};base64,{base64.b64encode(data).decode()}"


def _pillow() -> ModuleType:
    try:
        import PIL
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise ConfigError("images need Pillow, which is not installed: pip install 'evomerge[vision]'") from None
    return PIL
