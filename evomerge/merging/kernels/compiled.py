"""Compiled kernels by variant: written as text for LLVM, compiled once, and kept on disk for the next process.

In: a `Variant` of a merge. Out: the function. What was compiled lies in the user's cache directory, one file a kernel
behind the hash of what it holds, and may be deleted at any time. A file is named by the hash of its text, of LLVM's
version and of the processor, so that nothing is found where it does not fit; one that is damaged is written again.
One process compiles at a time, so what several want at once is compiled once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from evomerge.common.files import write_atomically
from evomerge.merging.kernels.table import Variant

logger = logging.getLogger(__name__)
_lock = threading.Lock()
PATIENCE = 10.0
"""Seconds to wait for another process that compiles."""


@functools.cache
def available() -> str | None:
    """Return why nothing can be compiled here; None if it can. Said once, by the log."""
    try:
        _machine()
    except Exception as error:  # llvmlite raises whatever its library does on platforms that it does not support
        logger.warning("llvmlite cannot be used here (%s): merges take the plain form, which is slower", error)
        return str(error)
    return None


@functools.cache
def kernel(variant: Variant) -> Callable[..., int]:
    """Return the compiled function of a variant; if it is not on disk yet, the log says that it is compiled."""
    from evomerge.merging.kernels.source import source

    with _lock:  # of two threads that ask for the same one, the second waits
        return function(source(variant, lanes(), tables=lanes() == 32), "merge", 7, f"the merge of {_said(variant)}")


def function(text: str, name: str, arguments: int, what: str) -> Callable[..., int]:
    """Return a compiled function of integers of 64 bits that returns one, and lets go of Python's lock.

    Args:
        text: for LLVM.
        name: of the function.
        arguments: how many.
        what: how the log calls it.
    """
    file = _directory() / f"{_named(text)}.kernel"
    if (found := _read(file)) is None:
        with alone("lock"):
            if (found := _read(file)) is None:
                found = _compile(text, what)
                write_atomically(file, hashlib.sha256(found).digest() + found)
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * arguments)(_loaded(found, name))


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Let no other process of this machine compile meanwhile, or it would compile the same.

    Args:
        name: of the lock, beside the kernels.
    """
    lock = FileLock(_directory() / name)
    try:
        lock.acquire(timeout=PATIENCE)
    except (Timeout, OSError) as error:  # another one hangs, or the file system has no locks
        logger.debug("compiling without a lock: %s", error)
    try:
        yield
    finally:
        lock.release()


def _compile(text: str, what: str) -> bytes:
    import llvmlite.binding as llvm

    logger.info("compiling %s (once on this machine)", what)
    started = time.perf_counter()
    module = llvm.parse_assembly(text)
    module.triple = _machine().triple
    module.data_layout = str(_machine().target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False  # the text has it all
    builder = llvm.create_pass_builder(_machine(), options)
    builder.getModulePassManager().run(module, builder)
    found = _machine().emit_object(module)
    logger.debug("compiled %s in %.2f s", what, time.perf_counter() - started)
    return found


def _loaded(compiled: bytes, name: str) -> int:
    """Return the address of a function of what was compiled; it stays there as long as the process lives."""
    import llvmlite.binding as llvm

    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(compiled))
    engine.finalize_object()
    address = engine.get_function_address(name)
    engine.detach()  # or the memory of the function would be given back with it
    return address


@functools.cache
def _machine() -> Any:
    """Return LLVM's description of this machine."""
    return _target_machine()


def _target_machine() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=cpu, features=features, opt=2, jit=True, codemodel="jitdefault"
    )


def lanes() -> int:
    """Return how many elements a loop takes at a time: two registers of floats."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return 32 if features.get("avx512f") else 16 if features.get("avx") else 8


def _named(text: str) -> str:
    import llvmlite
    import llvmlite.binding as llvm

    machine = (llvmlite.__version__, llvm.llvm_version_info, llvm.get_host_cpu_name(), llvm.get_default_triple())
    features = llvm.get_host_cpu_features().flatten()
    return hashlib.sha256(repr((text, machine, features)).encode()).hexdigest()[:32]


def _read(file: Path) -> bytes | None:
    """Return what was compiled; None if it is not there, or damaged."""
    try:
        held = file.read_bytes()
    except OSError:
        return None
    return held[32:] if held[:32] == hashlib.sha256(held[32:]).digest() else None


def _said(variant: Variant) -> str:
    count = len(variant.rows)
    return f"{count} row{'s' * (count > 1)} in {variant.base} ({variant.form.keep}, {variant.form.join})"


@functools.cache
def _directory() -> Path:
    """Return where kernels lie: the user's cache, or a directory of this process if nothing can be written there."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evomerge" / "kernels"
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    except (OSError, RuntimeError):  # of a user without a home
        pass
    logger.warning("the user's cache cannot be written: kernels are compiled again by every process")
    return Path(tempfile.mkdtemp(prefix="evomerge-kernels-"))
