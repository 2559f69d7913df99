import errno
import os

import pytest

from evomerge.common.files import write_atomically


def test_the_text_is_written_as_it_is_and_replaces_the_old_one(tmp_path):
    file = tmp_path / "a.json"
    for text in ("old\n", "zwölf\r\nlines\n", ""):
        write_atomically(file, text)
        assert file.read_bytes() == text.encode("utf-8")
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_is_that_of_a_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "a", "text")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_keeps_the_old_text_and_leaves_nothing_behind(tmp_path, monkeypatch, step, error):
    def fail(*arguments):
        raise error

    write_atomically(tmp_path / "a", "old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "a", "new")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_what_is_no_text_in_utf_8_makes_no_file(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "a", "\udc80")
    assert not os.listdir(tmp_path)


def test_the_content_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: steps.append((os.fstat(fd).st_size, fsync(fd))))
    monkeypatch.setattr(os, "replace", lambda *paths: steps.append(("named", replace(*paths))))
    write_atomically(tmp_path / "a", "seven b")
    assert [step for step, _ in steps] == [7, "named"]
