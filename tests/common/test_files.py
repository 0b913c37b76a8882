import itertools
import json
import os
import subprocess

import pytest

from imagepiece_jax.common import files
from imagepiece_jax.errors import RunError
from imagepiece_jax.weights.folder_files import list_input_files
from tests.helpers.refused_calls import refused


def test_a_lock_keeps_other_processes_out_and_leaves_no_file(tmp_path):
    folder = tmp_path / "new" / "run"
    with files.locked_folder("out", folder):
        with refused("out ", "is in use by another process"):
            files.locked_folder("out", folder).__enter__()
    assert not [*tmp_path.iterdir()]
    with files.locked_folder("out", folder):
        (folder / "run.json").touch()
    assert [*folder.iterdir()] == [folder / "run.json"]


def read_texts(folder):
    """{file: text} of all files below a folder, also hidden ones."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    files.replace_file(path, b"old")
    with pytest.raises(KeyboardInterrupt), files.replacement_file(path) as new:
        new.write_bytes(b"ne")
        raise KeyboardInterrupt
    assert read_texts(tmp_path) == {"file": "old"}


def test_a_file_is_on_disk_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    """Else a machine that stops would leave an empty file."""
    path = tmp_path / "file"
    files.replace_file(path, b"old")

    def fsync(descriptor):
        assert os.pread(descriptor, 9, 0) == b"newer"
        assert path.read_bytes() == b"old"
        raise OSError("disk is full")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunError, match=r"file cannot be written \(disk is full\)"):
        files.replace_file(path, b"newer")
    assert read_texts(tmp_path) == {"file": "old"}


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "file"
    with files.replacement_file(path) as new:  # while another process does the same
        files.replace_file(path, "theirs")
        new.write_text("ours")
    assert read_texts(tmp_path) == {"file": "ours"}


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_replacement_restores_a_links_folder(tmp_path, monkeypatch, failing):
    def write_folder(text):
        with files.replacement_folder(tmp_path / "link") as new:
            (new / "file").write_text(text)

    (tmp_path / "link").symlink_to(tmp_path / "disk" / "target")
    write_folder("old")
    rename = os.rename
    calls = itertools.count(1)

    def fail_once(*names):
        if next(calls) == failing:
            raise KeyboardInterrupt
        rename(*names)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(KeyboardInterrupt):
        write_folder("new")
    assert read_texts(tmp_path / "disk") == {"target/file": "old"}


def test_nonfinite_numbers_are_null_in_json(tmp_path):
    value = {"a": [float("nan"), 1.5], "b": float("-inf"), "c": "NaN"}
    files.write_json(tmp_path / "a.json", value)
    read_back = json.loads((tmp_path / "a.json").read_text())
    assert read_back == {"a": [None, 1.5], "b": None, "c": "NaN"}


def test_the_umask_decides_modes(tmp_path):
    """safetensors 0.8 excludes other users."""
    before = os.umask(0o027)
    try:
        with files.replacement_folder(tmp_path / "folder") as new:
            (new / "file").touch(0o600)
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")]
    assert modes == [0o750, 0o640]


def test_git_revision_of_tracked_code_only(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.check_output(command, text=True).strip()

    (tmp_path / "errors.py").write_text("1\n")
    monkeypatch.setattr(files, "PACKAGE_FOLDER", tmp_path)
    git("init", "-q")
    assert files.git_revision() is None  # another repository than this code's
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    git("tag", "-a", "v1", "-m", "tag")
    revision = git("rev-parse", "HEAD")
    assert files.git_revision() == revision
    (tmp_path / "errors.py").write_text("2\n")
    assert files.git_revision() == revision + "-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert files.git_revision() is None  # no git installed


def test_unwritable_files_and_inputs_are_refused_before_the_work(tmp_path):
    (tmp_path / "folder.json").mkdir()
    names = ["config.json", "classes.json", "labels.json"]
    for name in names:
        (tmp_path / name).touch()

    def check(name, inputs=()):
        files.check_writable("json", tmp_path / name, [".json", ".jsonl"], inputs)

    check("B.JSON")
    check("labels.json")
    for name in ("no/a.json", "folder.json", "labels.json/b.json"):
        with refused("cannot be written"):
            check(name)
    with refused("must end in .json or .jsonl"):
        check("panda.jpg")
    for name in names:
        with refused(f"{name} is an input of this"):
            check(name, list_input_files(tmp_path, f"csv:{tmp_path}/labels.json"))
