"""Models by their names on the hub: `owner/name`, or `owner/name@revision` for a branch, a tag or a commit.

In: what a user wrote where a model directory is asked for. Out: a directory; of a name, that of its snapshot in the
hub's cache, with the commit that it is. A directory that is there always wins. What is not in the cache is downloaded
by huggingface_hub; where the hub cannot be reached, or HF_HUB_OFFLINE is set, the cache alone must do. Weights,
settings and tokenizer are taken, and never code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm

from evomerge.errors import CheckpointError
from evomerge.weights import weight_files

NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "README.md")
"""What is downloaded: weights, their index, settings, tokenizer, and the card, which states the licence."""
EARLIER = ("pytorch_model*.bin",)
"""Downloaded as well where there are no safetensors."""
ASIDE = ("*/*.safetensors", "*/*.bin", "*/*.json", "*/*.txt", "*/*.model", "consolidated*")
"""Never downloaded: other forms of the same model, in directories of their own or beside it."""


@dataclass(frozen=True)
class Place:
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


def find_directory(text: str) -> Place:
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
        return Place(Path(text))
    repo, revision = match[1], match[2]
    try:
        path = _snapshot(repo, revision, FILES)
        if not any(path.glob("*.safetensors")):
            path = _snapshot(repo, path.name, (*FILES, *EARLIER))
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
        weight_files(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{text} was found on the hub or in its cache, but cannot be used. {error} If only a part of it was "
            f"downloaded: `hf download {repo} --revision {path.name}`."
        ) from error
    return Place(path, f"{repo}@{path.name}")


def _snapshot(repo: str, revision: str | None, files: tuple[str, ...]) -> Path:
    """Return the directory of a snapshot, whose name is its commit: downloaded, or else from the cache alone."""

    def get(cached: bool) -> Path:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                local_files_only=cached,
                allow_patterns=list(files),
                ignore_patterns=list(ASIDE),
                tqdm_class=_Bar,
            )
        )

    try:
        return get(cached=False)
    except (RepositoryNotFoundError, RevisionNotFoundError, LocalEntryNotFoundError):
        raise  # the cache was looked at, or cannot know better
    except Exception as error:  # a proxy that refuses, a broken certificate, an answer that is none
        if isinstance(error, OSError) and error.errno is not None:
            raise
        try:
            return get(cached=True)
        except LocalEntryNotFoundError:
            raise error from None


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
    if isinstance(error.__cause__, OfflineModeIsEnabled):
        return "it is not in the cache, or not all of it, and HF_HUB_OFFLINE is set"
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    what = next(iter(str(cause).splitlines()), "")
    return f"it is not in the cache, or not all of it, and the hub gives no answer ({type(cause).__name__}: {what})"
