"""The same candidates by mergekit's own planner and executor, in an environment of its own, with nothing written.

In: the models, a method and its number of experts. Out: seconds, from inputs in the page cache to merged tensors in
memory. Every expert has one weight and one density for all tensors, the simplest that mergekit can be asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import yaml
from mergekit_parity.peer import PeerError, make_environment, program

from merge_bench.models import BASE

NAMES = {"linear": "task_arithmetic", "ties": "ties", "dare_ties": "dare_ties"}
"""Of the methods that are compared."""
TIMES = {"ties": 1}
"""How often each is merged, if not `USUALLY`: mergekit takes minutes for it."""
USUALLY = 5
THEIRS = """\
import json, sys, time
import yaml
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.io.tasks import LoaderCache, ReturnTensor
from mergekit.merge import _model_out_config
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner

config = MergeConfiguration.model_validate(yaml.safe_load(open(sys.argv[1])))
options, seconds = MergeOptions(quiet=True), []
for _ in range(int(sys.argv[2])):
    started = time.perf_counter()
    architecture = get_architecture_info(config, options)
    cache = LoaderCache()
    cache.setup(options=options)
    out = _model_out_config(config, architecture, trust_remote_code=False)
    planner = MergePlanner(config, architecture, options=options, out_model_config=out)
    planner._plan()  # as plan_in_memory does, in which pydantic refuses the tasks
    targets = [
        ReturnTensor.model_construct(weight_info=weight, tensor_task=task, dtype=config.out_dtype)
        for weight, task in planner._tensors
    ]
    merged = [value for _, value in Executor(targets, math_device="cpu", storage_device="cpu").run(quiet=True)]
    seconds.append(time.perf_counter() - started)
print(json.dumps(seconds))
"""
"""What runs there."""


def seconds_of(environment: Path, models: Path, method: str, rows: int) -> list[float]:
    """Return the seconds of each merge by mergekit.

    Args:
        environment: where mergekit is installed; made if missing.
        models: directory of the base and the experts.
        method: one of `NAMES`.
        rows: number of experts.

    Raises:
        PeerError: mergekit cannot be installed, or fails.
    """
    make_environment(environment)
    several = {"weight": 0.4} if method == "linear" else {"weight": 0.4, "density": 0.5}
    document = {
        "merge_method": NAMES[method],
        "base_model": str(models / BASE),
        "models": [{"model": str(models / str(k)), "parameters": several} for k in range(rows)],
        "parameters": {"normalize": False},
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    config = models / f"mergekit-{method}.yaml"
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    command = [program(environment, "python"), "-c", THEIRS, str(config), str(TIMES.get(method, USUALLY))]
    surroundings = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    surroundings.pop("PYTHONPATH", None)
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=surroundings)
    if done.returncode:
        raise PeerError(f"mergekit failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
