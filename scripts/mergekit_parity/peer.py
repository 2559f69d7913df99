"""mergekit, in an environment of its own: it needs an older pydantic than others, and is never imported here.

In: a directory for the environment; a YAML that we wrote. Out: the model that mergekit makes of it. The environment has
the same torch as the one that runs this, so that both merge with the same kernels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import yaml

MERGEKIT = "0.1.5"
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
TAIL = 15
"""Lines of a failed program's output to show."""
VERSIONS = """\
import json
from importlib import metadata
print(json.dumps({name: metadata.version(name) for name in ("mergekit", "torch")}))
"""


class PeerError(RuntimeError):
    """The environment cannot be made, or mergekit fails."""


def make_environment(directory: Path) -> None:
    """Make the environment, unless it is there: about 1.6 GB, half of it torch.

    Raises:
        PeerError: something cannot be installed.
    """
    torch = metadata.version("torch")
    if _versions(directory) == {"mergekit": MERGEKIT, "torch": torch}:
        return
    print(f"making an environment with mergekit {MERGEKIT} in {directory}, once", file=sys.stderr)
    if not (directory / "pyvenv.cfg").exists():
        venv.create(directory, with_pip=True)
    wanted = [f"mergekit=={MERGEKIT}", "pydantic<2.12", f"torch=={torch}"]
    quiet = ("--quiet", "--disable-pip-version-check", "-c", str(CONSTRAINTS))
    _run([program(directory, "python"), "-m", "pip", "install", *quiet, *wanted], Path.cwd())


def run_mergekit(directory: Path, config: Path, out: Path) -> None:
    """Merge by `mergekit-yaml`, with paths relative to the YAML's directory.

    Raises:
        PeerError: mergekit fails.
    """
    card = "--no-write-model-card"  # for a card it asks the hub whether it knows the models
    _run([program(directory, "mergekit-yaml"), str(config), str(out), "--quiet", card], config.parent)


def run_mergekit_pytorch(directory: Path, config: Path, out: Path) -> None:
    """Merge by `mergekit-pytorch`, which takes weight files instead of directories and knows no architectures:
    `mergekit-yaml` 0.1.5 fails on every BertModel.

    Raises:
        PeerError: mergekit fails.
    """
    document = yaml.safe_load(config.read_text(encoding="utf-8"))
    if "base_model" in document:
        document["base_model"] += "/model.safetensors"
    for model in document["models"]:
        model["model"] += "/model.safetensors"
    raw = config.with_name("mergekit-pytorch.yaml")
    raw.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    _run([program(directory, "mergekit-pytorch"), str(raw), str(out), "--quiet"], config.parent)


def program(directory: Path, name: str) -> str:
    """Return the path of a program of the environment."""
    folder, suffix = ("Scripts", ".exe") if os.name == "nt" else ("bin", "")
    return str(directory.absolute() / folder / f"{name}{suffix}")


def _versions(directory: Path) -> dict[str, str] | None:
    """What the environment has, or None if it is not there or not complete."""
    try:
        command = [program(directory, "python"), "-c", VERSIONS]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def _run(command: Sequence[str], where: Path) -> None:
    """Run a program on the CPU and without a network of models."""
    surroundings = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    surroundings.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=where, env=surroundings, capture_output=True, text=True)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-TAIL:])
        raise PeerError(f"{Path(command[0]).name} failed with status {done.returncode}:\n{tail}")
