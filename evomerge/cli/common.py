"""What all verbs share: how a mistake, a signal or a full disk is told to a person instead of a traceback."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from evomerge.common.errors import EvomergeError

SIGNALLED = 128
"""Added to the number of the signal that ended a command: its exit status, as shells have it."""
REASON = "error.txt"
"""In the directory of a run of a sweep that was refused or failed: why."""


@contextmanager
def explained(safe: str) -> Iterator[None]:
    """End the program with one clear line on standard error where an error has a message for the user.

    Args:
        safe: what a person should know whose command was stopped, or ran out of disk.
    """
    try:
        yield
    except EvomergeError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail(f"Stopped. {safe}", status=SIGNALLED + signal.SIGINT)
    except BrokenPipeError:
        raise SystemExit(141) from None  # whoever read the output has seen enough
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = "There is no room left on the disk" if full else error.strerror or str(error)
        fail(f"{what}{where}. {safe}")


def fail(message: str, status: int = 2) -> NoReturn:
    """Print a message and end the program."""
    print(f"evomerge: {message}", file=sys.stderr)
    raise SystemExit(status)
