"""Files that are there as a whole or not at all.

In: a path and its new text. Out: the file, replaced in one step: whoever reads it meanwhile, or after a crash, finds
the old text or the new one, never a half.
"""

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the content of a file in one step; if that fails, the file is as it was and nothing else is left behind.

    Text is written in UTF-8, its line ends as they are. The file gets the mode of a new file (0o666 less the umask).

    Raises:
        OSError: it cannot be written, for example because the disk is full or the directory does not exist.
    """
    content = content.encode("utf-8") if isinstance(content, str) else content
    partial = path.with_name(f".partial-{secrets.token_hex(8)}")  # in the same directory: a rename crosses no disks
    try:
        with partial.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())  # before the rename, or a power cut may leave the new name with no content
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
