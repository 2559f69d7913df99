"""Models by their names on the hub: `owner/name`, or `owner/name@revision` for a branch, a tag or a commit.

In: what a user wrote where a model directory is asked for. Out: a directory; of a name, that of its snapshot in the
hub's cache, with the commit that it is. A directory that is there always wins. What is not in the cache is downloaded
by huggingface_hub; where the hub cannot be reached, or HF_HUB_OFFLINE is set, the cache alone must do. Weights are
taken, and all beside them that a merged model takes over (`files_beside.py`), and never code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm

from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.models.adapter_files import check_expert_files, is_adapter
from evomerge.models.files_beside import MODULES, TRAINING, module_folders, sort_files

NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
QUICK = 3.0
"""Seconds in which the hub must answer about a commit whose weights, settings and tokenizer are in the cache."""
NEEDED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
"""What must be in the cache where the hub cannot be asked which files there are."""
EARLIER = ("pytorch_model*.bin",)
"""Needed as well where there are no safetensors."""
ASIDE = ("*/*", ".*", "consolidated*", "*.index.json", *TRAINING)
"""Never needed, or not always: an index that lacks is missed where the weights are opened."""


@dataclass(frozen=True)
class ModelPlace:
    """Where a model is.

    Attributes:
        path: its directory.
        hub: `owner/name@commit`, if it was named by its name on the hub.
    """

    path: Path
    hub: str | None = None


def is_name(text: str) -> bool:
    """Whether a text can only be the name of a model on the hub: it looks like one, and nothing is there."""
    return NAME.fullmatch(text) is not None and not Path(text).exists()


def short_name(text: str) -> str:
    """Return the last part of a directory or of a name on the hub, without the revision."""
    match = NAME.fullmatch(text)
    return Path(match[1] if match and is_name(text) else text).name


def name_directories(paths: Sequence[str]) -> dict[str, str]:
    """Name models by as many of their last parts as tell them apart: `a/checkpoint-9` and `b/checkpoint-9`.

    Args:
        paths: directories, or names on the hub, of which the revision is left out where it tells nothing.

    Returns:
        Paths by name, in the order given.

    Raises:
        ConfigError: one is named twice.
    """
    whole = [Path(os.path.abspath(path)) for path in paths]
    for path in whole:
        if whole.count(path) > 1:
            raise ConfigError(f"{path} is named twice: name each expert once.")
    names = [short_name(path) if is_name(path) else place.name for path, place in zip(paths, whole, strict=True)]
    parts = 0
    while len(set(names)) < len(names):
        parts += 1
        names = ["/".join(place.parts[-parts:]) for place in whole]
    return dict(zip(names, paths, strict=True))


def find_directory(text: str) -> ModelPlace:
    """Return where a model is that a user has named by a directory, or by its name on the hub.

    Args:
        text: as it was written. What is neither there nor looks like a name on the hub is returned as it is; that
            there is nothing is said where it is opened.

    Raises:
        CheckpointError: it looks like a name on the hub, and neither the hub nor its cache gives that model.
        OSError: the cache cannot be written.
    """
    match = NAME.fullmatch(text)
    if match is None or Path(text).exists():
        return ModelPlace(Path(text))
    repo, revision = match[1], match[2]
    try:
        path = _snapshot(repo, revision)
    except Exception as error:  # of whatever kind: of the hub, of the network, of what stands between
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk
        wanted = repo + (f" --revision {revision}" if revision else "")
        raise CheckpointError(
            f"There is no directory {text}, and as the name of a model on the hub it does not help either: "
            f"{_why(error, repo, revision)}. Write the path of a directory; or, where the hub can be reached, `hf "
            f"download {wanted}`, which fills the cache (HF_HUB_CACHE says where it is)."
        ) from error
    try:
        check_expert_files(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{text} was found on the hub or in its cache, but cannot be used. {error} If only a part of it was "
            f"downloaded: `hf download {repo} --revision {path.name}`."
        ) from error
    return ModelPlace(path, f"{repo}@{path.name}")


def _snapshot(repo: str, revision: str | None) -> Path:
    """Return the directory of a snapshot, whose name is its commit: downloaded, or else from the cache alone."""
    held = _complete(repo, revision) if revision and COMMIT.fullmatch(revision) else None
    try:
        return _get(repo, revision, [escape(name) for name in _wanted(repo, revision, QUICK if held else None)])
    except Exception as error:  # a proxy that refuses, a broken certificate, an answer that is none
        if held:
            return held
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk
        try:
            return _cached(repo, revision)
        except LocalEntryNotFoundError:
            raise error from None


def _cached(repo: str, revision: str | None) -> Path:
    """Return the directory of a snapshot in the cache, without asking the hub."""
    path = _get(repo, revision, NEEDED, ASIDE, local_files_only=True)
    if not any(path.glob("*.safetensors")):
        path = _get(repo, path.name, (*NEEDED, *EARLIER), ASIDE, local_files_only=True)
    return path


def _complete(repo: str, commit: str) -> Path | None:
    """Return a snapshot of the cache that holds a whole model or an adapter, or None."""
    try:
        path = _cached(repo, commit)
        check_expert_files(path)
    except Exception:  # whatever it is, the hub is asked
        return None
    if is_adapter(path):
        return path
    rest = ("*token*", "vocab*", "preprocessor_config.json", "processor_config.json")
    return path if (path / "config.json").is_file() and any(next(path.glob(one), None) for one in rest) else None


def _wanted(repo: str, revision: str | None, timeout: float | None = None) -> list[str]:
    """Ask the hub which files a model has, and return those that a merge of it needs or takes over.

    Of two forms of the weights, safetensors are taken, as transformers does.
    """
    about = HfApi().model_info(repo, revision=revision or "main", files_metadata=True, timeout=timeout)  # asked once
    sizes = {file.rfilename: file.size or 0 for file in about.siblings or ()}
    modules = module_folders(_get(repo, revision, [MODULES]) / MODULES) if MODULES in sizes else ()
    found = sort_files(sizes, modules)
    earlier = [name for name in found.weights if name.startswith("pytorch_model")]
    others = [name for name in found.weights if name not in earlier]
    safe = any(name.endswith(".safetensors") and not name.startswith("adapter_") for name in others)
    return [*found.written, *found.taken, *others, *(() if safe else earlier)]


def _get(repo: str, revision: str | None, files: Sequence[str], ignored: Sequence[str] = (), **more: Any) -> Path:
    return Path(
        snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(files),
            ignore_patterns=list(ignored) or None,
            tqdm_class=_Bar,
            **more,
        )
    )


class _Bar(tqdm):
    """huggingface_hub's bar, on a terminal only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"disable": None, **kwargs})


def _why(error: Exception, repo: str, revision: str | None) -> str:
    """Return why a model could not be had."""
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} is there, but has no revision {revision}"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no model {repo}, or you may not read it (for private and gated ones: `hf auth login`)"
    if isinstance(error, OfflineModeIsEnabled) or isinstance(error.__cause__, OfflineModeIsEnabled):
        return "it is not in the cache, or not all of it, and HF_HUB_OFFLINE is set"
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    what = next(iter(str(cause).splitlines()), "")
    return f"it is not in the cache, or not all of it, and the hub gives no answer ({type(cause).__name__}: {what})"
