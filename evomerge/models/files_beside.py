"""The files of a model beside its weights: which a merged model takes over, and which are downloaded from a hub.

In: the files of a directory or of a repository, by name and size. Out: a `Sorting` of them. All is taken over that is
neither weights nor code: settings, vocabularies, templates, licences, in folders too. A folder that holds weights is
another form of the model (onnx/) or another model, and left as a whole, unless `modules.json` of sentence-transformers
names it: then it belongs to the pipeline, weights and all. What is left out has a reason, which people are told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

LARGE = 1 << 28
"""Bytes of a file of unknown kind that is rather weights than a vocabulary: the largest of those have 40 MiB."""
MODULES = "modules.json"
WEIGHTS = (
    *(
        "*.safetensors",
        "*.bin",
        "*.pt",
        "*.pth",
        "*.ckpt",
        "*.ckpt[.-]*",
        "*.h5",
        "*.msgpack",
        "*.onnx",
        "*.onnx_data*",
    ),
    *("*.onnx.data", "*.gguf", "*.ggml", "*.ot", "*.tflite", "*.mlmodel", "*.npz", "*.npy", "*.pte", "*.pkl"),
    *("*.pickle", "*.joblib", "*.params", "*.pdparams", "*.nemo", "*.mar", "*.engine", "*.index.json"),
    *("openvino_model*.xml", "adapter_config.json"),
)
"""Weights of whatever library, and what only stands for weights: an index, a graph, the settings of an adapter."""
OWN = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json", "pytorch_model.bin.index.json", "adapter_*")
"""Those at the top that transformers may load."""
CONSOLIDATED = "consolidated*"
"""The same weights once more, in the names of those who trained them."""
CODE = ("*.py", "*.pyc", "*.ipynb", "*.sh", "*.so", "*.dll", "*.dylib", "*.js", "*.bat")
TRAINING = (
    *("training_args.*", "optimizer*.pt", "optimizer*.bin", "scheduler.pt", "scheduler.bin", "rng_state*"),
    *("trainer_state.json", "*_results.json", "events.out.tfevents*", "mergekit_config.y*ml"),
)
"""What tells how the base was made, and would be said of the merged model."""
TRAINING_FOLDERS = ("checkpoint-*", "global_step*", "runs", "logs", "wandb")
WRITTEN = ("config.json", "README.md", "BASE_README.md", "recipe.yaml", "merge.json")
"""What a merged model has of its own."""
DOCUMENTS = (
    *(
        "*.md",
        "*.rst",
        "*.pdf",
        "*.bib",
        "*.cff",
        "licen[cs]e*",
        "copying*",
        "notice*",
        "use_policy*",
        "acceptable_use*",
    ),
    *("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "*.mp4"),
)
"""What people read and no model: it makes no inputs."""
REASONS = {
    "weights": "weights of another form, or of another model",
    "code": "code",
    "training": "how the base was made",
    "hidden": "hidden",
    "large": f"larger than {LARGE >> 20} MiB and of no known kind",
    "unreadable": "a link to nowhere, or no file",
}


@dataclass(frozen=True)
class Sorting:
    """What becomes of the files of a model directory; each by its path in it, with `/` between folders.

    Attributes:
        taken: those that a merged model takes over as they are.
        weights: those that may be weights that transformers loads, and their index.
        written: those that a merged model writes anew.
        left: those that are left out, and folders of them (with `/` at the end) -> why, a key of `REASONS`.
    """

    taken: tuple[str, ...]
    weights: tuple[str, ...]
    written: tuple[str, ...]
    left: dict[str, str]

    def by_reason(self, more: Mapping[str, str]) -> dict[str, list[str]]:
        """Return what is left out by the reason, in words.

        Args:
            more: what is left out beside `left`, in the same form.
        """
        found: dict[str, list[str]] = {}
        for name, why in {**self.left, **more}.items():
            found.setdefault(REASONS[why], []).append(name)
        return found


def sort_files(sizes: Mapping[str, int | None], modules: Collection[str] = ()) -> Sorting:
    """Sort the files of a model.

    Args:
        sizes: path of each, with `/` between folders -> its bytes; None where it cannot be read.
        modules: the folders that its `modules.json` names.
    """
    outside = [name for name in sizes if "/" in name and not _within(name, modules)]
    heavy = {name.split("/")[0] for name in outside if fits(name, WEIGHTS)}
    taken, weights, written, left = [], [], [], {}
    for name, size in sorted(sizes.items()):
        folder, nested, _ = name.partition("/")
        if hidden := _hidden(name):
            left[hidden] = "hidden"
        elif size is None:
            left[name] = "unreadable"
        elif fits(name, CODE):
            left[name] = "code"
        elif _within(name, modules):
            taken.append(name)
        elif nested and fits(folder, TRAINING_FOLDERS):
            left[f"{folder}/"] = "training"
        elif nested and folder in heavy:
            left[f"{folder}/"] = "weights"
        elif name in WRITTEN:
            written.append(name)
        elif fits(name, TRAINING):
            left[name] = "training"
        elif not nested and fits(name, OWN) and not fits(name, (CONSOLIDATED,)):
            weights.append(name)
        elif fits(name, WEIGHTS):
            left[name] = "weights"
        elif size > LARGE:
            left[name] = "large"
        else:
            taken.append(name)
    return Sorting(tuple(taken), tuple(weights), tuple(written), left)


def sort_directory(directory: Path) -> Sorting:
    """Sort the files of a model directory."""
    return sort_files(files_of(directory), module_folders(directory / MODULES))


def inputs_of(directory: Path) -> list[str]:
    """Return the files beside the weights that may make inputs of texts and images: vocabularies, merges, templates.

    Documents do not; nor do the modules of sentence-transformers, which come after the model.
    """
    folders = module_folders(directory / MODULES)
    return [
        name for name in sort_directory(directory).taken if not fits(name, DOCUMENTS) and not _within(name, folders)
    ]


def files_of(directory: Path) -> dict[str, int | None]:
    """Return the files in a directory and its folders with their sizes. Links are followed, and never in a circle.

    Of a hidden folder, the folder alone is named.
    """
    found: dict[str, int | None] = {}
    open_ones = {os.path.realpath(directory)}
    for root, folders, names in os.walk(directory, followlinks=True):
        here = Path(root).relative_to(directory)
        hidden = [name for name in folders if name.startswith(".")]
        found |= {f"{(here / name).as_posix()}/": 0 for name in hidden}
        kept = []
        for name in sorted(set(folders) - set(hidden)):
            real = os.path.realpath(os.path.join(root, name))
            if real not in open_ones:
                open_ones.add(real)
                kept.append(name)
        folders[:] = kept
        for name in names:
            file = Path(root, name)
            found[(here / name).as_posix()] = file.stat().st_size if file.is_file() else None
    return found


def module_folders(file: Path) -> dict[str, str]:
    """Return the folders that a `modules.json` of sentence-transformers names, with the class of each; none if there is
    none that can be read.

    Args:
        file: the `modules.json`.
    """
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    modules = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    paths = {row["path"].strip("/"): str(row.get("type")) for row in modules if isinstance(row.get("path"), str)}
    return {path: kind for path, kind in paths.items() if path.strip(".")}


def fits(name: str, patterns: Collection[str]) -> bool:
    """Whether a file's own name, in whatever case, fits one of these patterns."""
    own = name.split("/")[-1].lower()
    return any(fnmatchcase(own, pattern) for pattern in patterns)


def _within(name: str, folders: Collection[str]) -> bool:
    return any(name.startswith(f"{folder}/") for folder in folders)


def _hidden(name: str) -> str | None:
    """Return the hidden file or folder that a file is, or lies in."""
    parts = name.split("/")
    for i, part in enumerate(parts):
        if part.startswith("."):
            return "/".join(parts[: i + 1]) + ("/" if i < len(parts) - 1 else "")
    return None
