"""A suite: one base, its experts and their tasks, as `scripts/build_suite.py` and `evomerge.demo.pico` write it.

    suite.json   base/   experts/<name>/   heads/<task>.safetensors
    tasks/<task>/{train,search,select,report,unlabeled}.jsonl

`suite.json` is written last, so a directory without it is a build that was interrupted. A head is the frozen
classifier of a task, logits = scale * features @ weight.T + bias. In texts, the features are the normalised mean of the
last hidden states, the weights the embeddings of the class names (the CLIP setting of task arithmetic, Ilharco et al.
2023); in images, both are what a linear probe of the base has.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from evomerge.common.errors import SuiteError
from evomerge.common.files import write_atomically
from evomerge.fitness.heads import POOLINGS, SCALE
from evomerge.fitness.items import Task

FORMAT = 1


@dataclass(frozen=True)
class Suite:
    """A base, experts fine-tuned from it (name -> model directory) and tasks."""

    name: str
    path: Path
    base: Path
    experts: dict[str, Path]
    tasks: dict[str, Task]


def load_suite(path: Path | str) -> Suite:
    """Open a suite directory.

    Items and heads are checked against their recorded hashes; weights only for being there, since whoever opens them
    hashes them anyway.

    Raises:
        SuiteError: the suite is missing, incomplete, of another format, or damaged; the message says how to build it.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest is None:
        what = "is an unfinished suite (no suite.json)" if path.is_dir() and any(path.iterdir()) else "is no suite"
        raise SuiteError(f"{path} {what}: {_how_to_build(path)}")
    if manifest.get("format") != FORMAT:
        raise SuiteError(
            f"{path} has suite format {manifest.get('format')!r}, this version reads {FORMAT}: "
            f"remove the directory, then {_how_to_build(path)}"
        )
    for relative, sha256 in manifest["sha256"].items():
        _check_file(path, relative, sha256)
    tasks = {}
    for name, task in manifest["tasks"].items():
        head = path / task["head"] if task["head"] else None  # language models have none
        tasks[name] = Task(name, path / task["items"], head, task["expert"], tuple(task["classes"]))
    experts = {name: path / relative for name, relative in manifest["experts"].items()}
    return Suite(manifest["name"], path, path / manifest["base"], experts, tasks)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Read `suite.json` of a suite directory; None where there is none.

    Raises:
        SuiteError: it is no JSON object with the keys of a suite.
    """
    try:
        manifest = json.loads((path / "suite.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise SuiteError(f"{path / 'suite.json'} is damaged ({error}): remove it, then {_how_to_build(path)}") from None
    keys = ("format", "name", "base", "experts", "tasks", "sha256")
    lacking = [key for key in keys if not isinstance(manifest, dict) or key not in manifest]
    if lacking:
        raise SuiteError(f"{path / 'suite.json'} lacks {', '.join(lacking)}: remove it, then {_how_to_build(path)}")
    return manifest


def write_head(
    path: Path,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    pooling: str = "mean",
    normalise: bool = True,
    scale: float = SCALE,
) -> None:
    """Write a frozen head: logits = scale * features @ weight.T + bias.

    Args:
        path: the file.
        weight: (C, d), or (C, 2 d) for `cls_mean`: class-name embeddings of unit norm, or a linear probe. A probe of
            standardised features folds mean and deviation into weight and bias.
        bias: (C,); None for none.
        pooling: how hidden states (T, d) become features, one of `POOLINGS`.
        normalise: divide the features of an item by their norm.
        scale: of the logits, without the bias.

    Raises:
        SuiteError: no such pooling.
    """
    if pooling not in POOLINGS:
        raise SuiteError(f"a head has no pooling {pooling!r}; choose one of {', '.join(POOLINGS)}")
    tensors = {"weight": weight.float().contiguous()} | ({} if bias is None else {"bias": bias.float().contiguous()})
    # heads that are normalised do not say it: they are the same bytes as before there were others
    metadata = {"pooling": pooling, "scale": str(scale)} | ({} if normalise else {"normalise": "false"})
    blob = save(tensors, metadata=metadata)
    size = int.from_bytes(blob[:8], "little")
    # the library writes metadata in random order; sorted, the same head is the same bytes and has the same hash
    header = json.dumps(json.loads(blob[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode().ljust(size)
    path.write_bytes(blob[:8] + header + blob[8 + size :])


def write_manifest(path: Path, name: str, tasks: Mapping[str, tuple[str, ...]], training: Mapping[str, Any]) -> None:
    """Finish a suite: hash its files and write `suite.json`, atomically.

    Args:
        path: the suite directory, laid out as above; each task has the expert of its own name.
        name: of the suite.
        tasks: task name -> classes.
        training: whatever is worth recording about how the experts were made.
    """
    files = [file for part in ("base", "experts", "heads", "tasks") for file in sorted((path / part).rglob("*"))]
    manifest = {
        "format": FORMAT,
        "name": name,
        "base": "base",
        "experts": {task: f"experts/{task}" for task in tasks},
        "tasks": {
            task: {
                "items": f"tasks/{task}",
                "head": f"heads/{task}.safetensors",
                "expert": task,
                "classes": list(classes),
            }
            for task, classes in tasks.items()
        },
        "sha256": {file.relative_to(path).as_posix(): _sha256(file) for file in files if file.is_file()},
        "training": dict(training),
    }
    write_atomically(path / "suite.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_file(path: Path, relative: str, sha256: str) -> None:
    file = path / relative
    if not file.is_file():
        raise SuiteError(f"{path} is incomplete: {relative} is missing; remove suite.json, then {_how_to_build(path)}")
    if relative.startswith(("heads/", "tasks/")) and _sha256(file) != sha256:
        raise SuiteError(
            f"{file} is not as it was built (its sha256 differs), so scores would not be comparable: "
            f"remove it and suite.json, then {_how_to_build(path)}"
        )


def _how_to_build(path: Path) -> str:
    """Say which command makes a suite, by its name where suite.json tells it, else by that of its directory."""
    try:
        name = str(json.loads((path / "suite.json").read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, KeyError, TypeError):
        name = path.name
    kind = next((kind for kind in ("vision", "lm") if kind in name), "text")
    return f"build it with `python scripts/build_suite.py {kind} --out {path}`"
