"""A merged model put on the hub, as `owner/name`.

In: a name, who may see it, and a directory. Out: a model there, with its address. Everything that may be refused is
refused before the merge: no token, an owner that one may not write for, a repository that is there with other files or
seen by others than one said. Nothing is overwritten; an upload that was cut off goes on when the command is run again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

from evomerge.common.errors import CheckpointError, ConfigError, EvomergeError
from evomerge.models.hub import NAME

OWN = ".gitattributes"
"""What the hub itself puts into a new repository."""


@dataclass(frozen=True)
class Upload:
    """A repository that a model is sent to.

    Attributes:
        name: owner/name.
        private: whether only its owner may see it.
        record: the file of a merged model that tells which merge it is.
    """

    name: str
    private: bool = True
    record: str = "merge.json"

    def check(self, directory: Path) -> None:
        """Refuse what cannot be sent.

        Args:
            directory: where the model will be; or is, where an upload goes on.

        Raises:
            ConfigError: it is no name, there is no token, the owner is somebody else, or the repository is there and
                seen by others, or with other files.
        """
        owner, match = self.name.split("/")[0], NAME.fullmatch(self.name)
        if match is None or match[2]:
            raise ConfigError(f"--push {self.name} is no name on the hub: write --push owner/name.")
        with self._asking():
            api = HfApi()
            who = api.whoami()
            mine = [who["name"], *(each["name"] for each in who.get("orgs", ()))]
            if owner not in mine:
                raise ConfigError(f"--push {self.name}: you are {', '.join(mine)} on the hub; write one as the owner.")
            try:
                found = api.model_info(self.name)
            except RepositoryNotFoundError:
                return
            if bool(found.private) != self.private:
                said, other = ("private", "--private") if found.private else ("public", "--public")
                raise ConfigError(f"--push {self.name}: this repository is there and {said}: write {other} as well.")
            files = [file.rfilename for file in found.siblings or () if file.rfilename != OWN]
            if files and not self._is_begun(directory, files):
                raise ConfigError(
                    f"--push {self.name}: this repository holds {files[0]} already, and nothing is overwritten: write "
                    f"another name."
                )

    def send(self, directory: Path) -> str:
        """Send a directory, make the repository where there is none, and return its address.

        Raises:
            CheckpointError: it cannot be sent; what has been sent need not be sent again.
        """
        with self._asking(f" {directory} is whole: run the same command again."):
            api = HfApi()
            place = api.create_repo(self.name, private=self.private, exist_ok=True)
            api.upload_folder(repo_id=self.name, folder_path=directory, commit_message="Merged with evomerge")
            return str(place)

    def _is_begun(self, directory: Path, files: list[str]) -> bool:
        """Whether a repository holds nothing but a part of this very merge."""
        ours = directory / self.record
        if not ours.is_file() or not all((directory / file).is_file() for file in files):
            return False
        theirs = self.record in files and HfApi().hf_hub_download(self.name, self.record)
        return not theirs or Path(theirs).read_bytes() == ours.read_bytes()

    @contextmanager
    def _asking(self, more: str = "") -> Iterator[None]:
        """Say what is wrong where the hub does not do what it is asked for."""
        try:
            yield
        except EvomergeError:
            raise
        except LocalTokenNotFoundError as error:
            raise ConfigError(f"--push {self.name} needs a token of the hub: run `hf auth login` first.") from error
        except OfflineModeIsEnabled as error:
            raise ConfigError(f"--push {self.name} needs the hub, and HF_HUB_OFFLINE is set: unset it.") from error
        except Exception as error:  # of whatever kind: of the hub, of the network, of what stands between
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise CheckpointError(f"--push {self.name}: {said.rstrip('.')}.{more}") from error
