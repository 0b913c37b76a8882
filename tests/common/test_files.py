"""Atomic writes and locks."""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import signal
import socket
import subprocess
from unittest import mock

import pytest

from imagepiece_jax.common import files
from imagepiece_jax.common.files import (
    FolderLock,
    check_writable,
    replace_file,
    replacing,
    replacing_folder,
)
from imagepiece_jax.deploy.weights.runs import own_files
from imagepiece_jax.errors import InputError, RunError
from tests.command import start
from tests.refused import refused


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_no_other_process(
    tmp_path, monkeypatch, caplog, code
):
    error = OSError(code, os.strerror(code))
    monkeypatch.setattr(fcntl, "flock", mock.Mock(side_effect=error))
    with FolderLock("out", tmp_path):
        pass
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"cannot be locked ({os.strerror(code)}): two processes that" in said


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with refused("out", "file cannot be written: nothing can"):
        FolderLock("out", tmp_path / "file").__enter__()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with refused("out", "run cannot be written: nothing can"):
        FolderLock("out", tmp_path / "run").__enter__()


def test_a_folder_belongs_to_one_process_and_is_left_as_it_was(tmp_path):
    folder = tmp_path / "new" / "run"
    with FolderLock("out", folder):
        with pytest.raises(InputError, match="^out .* is in use by another process"):
            FolderLock("out", folder).__enter__()
    assert not [*tmp_path.iterdir()]
    with FolderLock("out", folder):
        (folder / "run.json").touch()
    assert [*folder.iterdir()] == [folder / "run.json"]


KILLED = """
import os, signal, sys
from imagepiece_jax.common.files import FolderLock
with FolderLock("out", sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_keeps_nobody_out(tmp_path):
    assert start("-c", KILLED, tmp_path, imported=True).status == -signal.SIGKILL
    assert [*tmp_path.iterdir()] == [tmp_path / ".lock"]
    with FolderLock("out", tmp_path):
        pass
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_vanishes_or_is_replaced_is_noticed(tmp_path):
    folder = tmp_path / "run"
    with FolderLock("out", folder) as lock:
        assert lock.is_there()
        folder.rename(tmp_path / "away")
        assert not lock.is_there()
        folder.mkdir()
        assert not lock.is_there()
        folder.rmdir()
        (tmp_path / "away").rename(folder)
        assert lock.is_there()


def special(tmp_path, kind):
    """A path that is there and no file: its name says what it is."""
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    elif kind == "link to a device":
        path.symlink_to("/dev/null")
    return path if kind != "device" else pathlib.Path("/dev/null")


KINDS = ("folder", "fifo", "socket", "device", "link to a device")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_and_stays(tmp_path, kind):
    path = special(tmp_path, kind)
    before = path.lstat()
    there = sorted(tmp_path.iterdir())
    reason = "Is a directory" if kind == "folder" else "Is a device or a pipe"
    with pytest.raises(InputError, match=rf"out .* cannot be written \({reason}\)"):
        check_writable("out", path, [".json"])
    with pytest.raises(RunError, match=rf"cannot be written \({reason}\)"):
        replace_file(path, "text")
    after = path.lstat()
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize("exists", [True, False])
def test_the_target_of_a_link_is_replaced_and_not_the_link(tmp_path, exists):
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "target"
    link = tmp_path / "link"
    if exists:
        target.write_text("old and longer")
    link.symlink_to(target)
    check_writable("json", link, None)
    replace_file(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["link", "target", "there"]
    link.unlink()
    link.symlink_to(tmp_path / "no" / "such")
    with pytest.raises(InputError, match="cannot be written"):
        check_writable("out", link, [".json"])


def test_a_write_that_stops_halfway_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    replace_file(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as new:
        new.write_bytes(b"ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_disk_before_it_takes_the_place_of_the_old_one(
    tmp_path, monkeypatch
):
    """A machine that stops between the two would leave an empty file."""
    path = tmp_path / "file"
    replace_file(path, b"old")

    def fsync(descriptor):
        assert os.pread(descriptor, 9, 0) == b"newer"
        assert path.read_bytes() == b"old"
        raise OSError("disk is full")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunError, match=r"file cannot be written \(disk is full\)"):
        replace_file(path, b"newer")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_neighbors_and_permissions_stay(tmp_path):
    path = tmp_path / "file"
    neighbor = tmp_path / "file.tmp"
    for mine in (path, neighbor):
        mine.write_text("mine")
    path.chmod(0o640)
    check_writable("out", path, [""])
    with replacing(path) as new:  # while another process does the same
        replace_file(path, "theirs")
        new.write_text("ours")
    assert path.read_text() == "ours"
    assert path.stat().st_mode & 0o777 == 0o640
    assert neighbor.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def put(folder, text):
    """Replace a folder by one with a file."""
    with replacing_folder(folder) as new:
        (new / "file").write_text(text)


def texts(folder):
    """{file: text} below a folder, links to folders followed, hidden ones too."""
    files = []
    for top, _, names in os.walk(folder, followlinks=True):
        files += [os.path.join(top, name) for name in names]
    return {
        os.path.relpath(file, folder): pathlib.Path(file).read_text() for file in files
    }


@pytest.mark.parametrize(
    "error, raised",
    [
        (OSError(errno.EIO, "Input/output error"), RunError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_folder_that_cannot_be_replaced_is_put_back(
    tmp_path, monkeypatch, error, raised, failing, when
):
    """A failure in the first or in the second rename, which was done or was not."""
    path = tmp_path / "model"
    rename = os.replace
    calls = []
    put(path, "old")

    def broken(*names):
        calls.append(names)
        if len(calls) != failing or when == "after":
            rename(*names)
        if len(calls) == failing:
            raise error

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(raised):
        put(path, "new")
    found = texts(tmp_path)
    if failing == 2 and when == "after":  # it has taken its place
        assert found.pop("model/file") == "new"
        assert list(found.values()) == ["old"]
    else:
        assert found == {"model/file": "old"}
        assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_cannot_be_put_back_is_kept(tmp_path, monkeypatch, caplog):
    """Another process makes one of the same name between the two renames."""
    path = tmp_path / "model"
    rename = os.replace
    put(path, "old")

    def meanwhile(source, target):
        if target == path:
            path.mkdir()
            (path / "theirs").write_text("theirs")
        rename(source, target)

    monkeypatch.setattr(os, "replace", meanwhile)
    with pytest.raises(RunError, match="cannot be written .Directory not empty"):
        put(path, "new")
    (kept,) = re.findall(rf"was in {path} is now in {tmp_path}/(\S+):", caplog.text)
    assert texts(tmp_path) == {f"{kept}/file": "old", "model/theirs": "theirs"}


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "model"
    with (
        pytest.raises(RunError, match="cannot be written .Directory not empty"),
        replacing_folder(path) as new,
    ):
        (new / "file").write_text("new")
        path.mkdir()
        (path / "theirs").write_text("theirs")
    assert texts(tmp_path) == {"model/theirs": "theirs"}


@pytest.mark.parametrize("exists", [True, False])
def test_the_folder_that_a_link_names_is_replaced(tmp_path, exists):
    target = tmp_path / "disk" / "target"
    link = tmp_path / "link"
    target.parent.mkdir()
    if exists:
        put(target, "old")
    link.symlink_to(target)
    put(link, "new")
    assert link.is_symlink()
    assert texts(target) == {"file": "new"}
    assert [p.name for p in target.parent.iterdir()] == ["target"]
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(RunError, match="cannot be written"):
        put(link, "new")


def git(folder, *words):
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.check_output([*command, *words], text=True).strip()


def test_git_revision_of_tracked_code_only(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    (package / "errors.py").write_text("1\n")
    monkeypatch.setattr(files, "PACKAGE", package)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert files.git_revision() is None
    git(tmp_path, "init", "-q")
    assert files.git_revision() is None  # another repository, but not this code's
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "tag")
    revision = git(tmp_path, "rev-parse", "HEAD")
    assert files.git_revision() == revision
    (package / "errors.py").write_text("2\n")
    assert files.git_revision() == revision + "-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert files.git_revision() is None  # no git installed


# (flag, endings of its files, file that is there, what is said of it)
REPLACED = [
    ("json", [".json"], "panda.jpg", "only .json files are replaced"),
    ("json", [".json"], "result", "only .json files are replaced"),
    ("json", [".json"], "Result.JSON", None),
    ("json", [".json", ".jsonl"], "rows.jsonl", None),
    ("json", [".json", ".jsonl"], "a.md", "only .json and .jsonl files are replaced"),
    ("times", ["", ".jsonl"], "times", None),
    ("out", None, "model.onnx", None),
]


@pytest.mark.parametrize("flag, endings, name, said", REPLACED)
def test_a_result_replaces_only_what_may_be_one(tmp_path, flag, endings, name, said):
    path = tmp_path / name
    check_writable(flag, path, endings)
    path.touch()
    expected = contextlib.nullcontext()
    if said:
        start = re.escape(f"{flag} {path} already exists, and ")
        expected = pytest.raises(InputError, match=f"{start}.*{said}")
    with expected:
        check_writable(flag, path, endings)


def test_files_of_the_run_that_is_read_are_not_replaced(tmp_path):
    for name in ("config.json", "classes.json", "run.json"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(InputError, match=f"json .*{name} is read by this"):
            check_writable("json", tmp_path / name, [".json"], own_files(tmp_path))
    check_writable("json", tmp_path / "result.json", [".json"], own_files(tmp_path))


def test_a_folder_is_checked_and_not_made(tmp_path, monkeypatch):
    files.check_folder("out", tmp_path / "a" / "b")
    files.check_folder("out", tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with refused("out", "cannot be written"):
            files.check_folder("out", path)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with refused("out", "cannot be written"):
        files.check_folder("out", tmp_path / "a")
