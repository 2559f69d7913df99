"""What a merged model takes over from its base beside the weights, and what people are told of the rest.

In: the directories of base and experts. Out: the files that are copied, and sentences about what is left out, about
modules of a pipeline whose weights are no part of the merge, and about tensors that stay the base's.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.common.names import listed
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.files_beside import MODULES, WEIGHTS, Sorting, fits, module_folders, sort_directory
from evomerge.models.processing import SETTINGS, VOCABULARIES
from evomerge.models.weight_files import weight_files

BASE_CARD = "BASE_README.md"
"""Under which the base's own card is kept: licences are often stated in its text alone."""


@dataclass(frozen=True)
class Beside:
    """What lies beside the weights of a base.

    Attributes:
        base: its directory.
        files: path in a merged model -> path in the base, with `/` between folders.
        notes: sentences about what is left out, or is not merged.
        tokenizer: of the merged model, where it has another one than the base.
    """

    base: Path
    files: dict[str, str]
    notes: tuple[str, ...]
    tokenizer: Any = None

    @property
    def nbytes(self) -> int:
        """The bytes of all files."""
        return sum((self.base / source).stat().st_size for source in self.files.values())

    def copy(self, directory: Path) -> None:
        """Copy the files into a directory; what is a link in the base is a file there."""
        for target, source in self.files.items():
            copy_file(self.base / source, directory / target)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(directory)


def look_beside(base: Path, experts: Mapping[str, Path], merged: Collection[str] = (), tokenizer: Any = None) -> Beside:
    """Return what lies beside the weights of a base.

    Args:
        base: its directory.
        experts: those of the experts by name.
        merged: folders whose weights are merged, and written anew.
        tokenizer: of the merged model, where it has another one.
    """
    found = sort_directory(base)
    files = {name: name for name in found.taken if not (name.split("/")[0] in merged and fits(name, WEIGHTS))}
    if tokenizer is not None:
        files = {name: file for name, file in files.items() if not fits(name, (*VOCABULARIES, *SETTINGS))}
    if "README.md" in found.written:
        files[BASE_CARD] = "README.md"
    return Beside(base, files, (*_left(base, found), *_modules(base, found, experts, merged)), tokenizer)


def unmerged(base: Checkpoint, left: Sequence[str], auto_class: str) -> Iterator[str]:
    """Say which floating tensors of the base are in the merged files as they are, since no parameter was merged there.

    Args:
        base: its weights.
        left: keys that are left out.
        auto_class: the class whose parameters were merged.
    """
    known = {*left, *base.buffers}
    kept = [key for key in base.spare if key not in known]
    if kept:
        yield (
            f"{listed(kept)}: these tensors are the base's, since {auto_class}, which was merged, has no such "
            f"parameters. A class that has them, such as a model with a head, was not scored."
        )


def copy_file(file: Path, target: Path) -> None:
    """Copy a file, or what a link leads to, and make the folders above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def _left(base: Path, found: Sorting) -> Iterator[str]:
    """Say what is left out, by the reason for it."""
    merged = {file.name for file in weight_files(base)}
    spare = [name for name in found.weights if name not in merged]
    for why, names in found.by_reason(dict.fromkeys(spare, "weights")).items():
        yield f"left out ({why}): {listed(names)}"


def _modules(base: Path, found: Sorting, experts: Mapping[str, Path], merged: Collection[str]) -> Iterator[str]:
    """Say which modules of a pipeline have weights that stay the base's, and which are not there."""
    for folder, kind in module_folders(base / MODULES).items():
        files = [name for name in found.taken if name.startswith(f"{folder}/")]
        if not files and not kind.endswith(".Normalize"):  # which has no settings, so no folder that git would keep
            yield f"{MODULES} of the base names {folder}, and there is no such folder: the pipeline will not load"
        elif folder in merged:
            continue
        elif heavy := [name for name in files if fits(name, WEIGHTS)]:
            other = [name for name, path in experts.items() if any(_differ(base / f, path / f) for f in heavy)]
            yield f"{folder} is a module of its own, whose weights are not merged: they are the base's" + (
                f", and {listed(other)} {'has' if len(other) == 1 else 'have'} others" if other else ""
            )


def _differ(file: Path, other: Path) -> bool:
    """Whether two files are there and differ."""
    return other.is_file() and (file.stat().st_size != other.stat().st_size or file.read_bytes() != other.read_bytes())
