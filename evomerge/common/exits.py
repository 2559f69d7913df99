"""What a user's code may raise to end the whole program, as an error that ends only what it was called for.

In: something to compute that calls code of a user: a fitness, a function of an lm-eval task, a file that is imported.
Out: its result, or an ordinary error. `sys.exit()` raises SystemExit, which no `except Exception` catches: a search
would end without a word, and with status 0 after `sys.exit(0)`. The same holds for GeneratorExit, for asyncio's
CancelledError and whatever else is derived from BaseException. Ctrl-C and a time limit pass. `os._exit` ends the
process at once, and nothing in Python can prevent that.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from evomerge.common.limits import Overdue

T = TypeVar("T")


class Exited(RuntimeError):
    """A user's code raised what would have ended the program."""


def contained(compute: Callable[[], T]) -> T:
    """Return what `compute` returns.

    Raises:
        Exited: it raised SystemExit, or what else is no `Exception`; the message names it.
    """
    try:
        return compute()
    except (Exception, KeyboardInterrupt, Overdue):
        raise
    except BaseException as error:
        code = f" with status {error.code!r}" if isinstance(error, SystemExit) else f": {error}" if str(error) else ""
        raise Exited(f"{type(error).__name__} was raised{code}; raise an Exception that says what is wrong") from error


def line_of(error: BaseException) -> str:
    """Return the line of a file at which its import failed, such as ` in score.py, line 3`; nothing where it never
    began. What cannot be read as Python says its line itself.
    """
    cause = error.__cause__ if isinstance(error, Exited) and error.__cause__ else error
    frames = (frame for frame in traceback.extract_tb(cause.__traceback__) if frame.name == "<module>")
    return next((f" in {Path(frame.filename).name}, line {frame.lineno}" for frame in frames), "")
