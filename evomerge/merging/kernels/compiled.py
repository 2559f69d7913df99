"""Compiled kernels by variant: written as text, compiled by numba once, and kept on disk for the next process.

In: a `Variant` of a merge; nothing for the products of a gradient. Out: the function. The text lies in the user's cache
directory, and numba keeps what it compiled beside it, by processor; both may be deleted at any time. A text is named by
its hash, which covers everything that it calls.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evomerge.common.files import write_atomically
from evomerge.merging.kernels.source import source
from evomerge.merging.kernels.table import Variant

logger = logging.getLogger(__name__)
_lock = threading.Lock()


@functools.cache
def available() -> str | None:
    """Return why numba cannot be used here; None if it can. Said once, by the log."""
    try:
        import evomerge.merging.kernels.bits  # noqa: F401
    except Exception as error:  # numba raises whatever its parts do on platforms that it does not support
        logger.warning("numba cannot be used here (%s): merges take the plain form, which is slower", error)
        return str(error)
    return None


def kernel(variant: Variant) -> Callable[..., Any]:
    """Return the compiled function of a variant; one that is not on disk yet takes some seconds, which the log says."""
    with _lock:  # of two threads that ask for the same one, the second waits
        return _compiled(source(variant), "merge", f"the merge of {_said(variant)}")


def products() -> Callable[..., Any]:
    """Return the compiled function of `dots.py`, in the same way."""
    with _lock:
        text = Path(__file__).with_name("dots.py").read_text(encoding="utf-8")
        return _compiled(text, "products", "the products of a gradient")


@functools.cache
def _compiled(text: str, function: str, what: str) -> Callable[..., Any]:
    from evomerge.merging.kernels import bits, draw

    name = hashlib.sha256((text + inspect.getsource(bits) + inspect.getsource(draw)).encode()).hexdigest()[:32]
    file = _directory() / f"evomerge_kernel_{name}.py"
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        write_atomically(file, text)
    if not list((file.parent / "__pycache__").glob(f"{file.stem}.{function}-*.nbi")):
        logger.info("compiling %s (once on this machine, some seconds)", what)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:  # not of a file that ends in .py
        raise ImportError(file)
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)  # numba looks for it by its name
    spec.loader.exec_module(module)
    return getattr(module, function)


def _said(variant: Variant) -> str:
    count = len(variant.rows)
    return f"{count} row{'s' * (count > 1)} in {variant.base} ({variant.form.keep}, {variant.form.join})"


@functools.cache
def _directory() -> Path:
    """Return where texts lie: the user's cache, or a directory of this process if nothing can be written there."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evomerge" / "kernels"
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    except (OSError, RuntimeError):  # of a user without a home
        pass
    logger.warning("the user's cache cannot be written: kernels are compiled again by every process")
    return Path(tempfile.mkdtemp(prefix="evomerge-kernels-"))
