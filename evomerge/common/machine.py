"""On what kind of machine numbers are computed: with equal fingerprints, the same search asks bit-equal points.

Out: a flat dictionary for the header of the trial log; no clocks, paths or addresses. CPU features choose numpy's and
torch's kernels, the BLAS kernel chooses the order of sums in CMA-ES, threads cut the work, and the C library and the
Python libraries change their arithmetic between versions.
"""

from __future__ import annotations

import os
import platform
import resource
from importlib import metadata
from pathlib import Path

import numpy as np


def fingerprint() -> dict[str, str | int | list[str]]:
    """Return the kind of this machine, as this process sees it."""
    import threadpoolctl  # these two only here: who asks for the memory needs neither
    import torch

    blas = sorted(
        {f"{info['internal_api']} {info.get('architecture', '')}".strip() for info in threadpoolctl.threadpool_info()}
    )
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip(),
        "cpu_features": list(np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])),  # pyright: ignore[reportOptionalSubscript, reportCallIssue]
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "blas": blas,
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": metadata.version("scipy"),
        "numba": metadata.version("numba"),
        "llvmlite": metadata.version("llvmlite"),
        "cma": metadata.version("cma"),
        "optuna": metadata.version("optuna"),
    }


ROOM = 0.1
"""The share of a device's memory that is left to the passes of a model."""
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says how much memory a container or a job of a scheduler may have, in either version."""


def memory_limit() -> int:
    """Return the bytes that this process may have: of the machine, of its container or job, of its address space."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if (soft := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        limits.append(soft)
    for path in CGROUPS:
        if path.is_file() and (text := path.read_text(encoding="utf-8").strip()).isdigit():  # "max": no limit
            limits.append(int(text))
    return min(limits)
