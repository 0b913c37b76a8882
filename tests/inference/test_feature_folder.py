"""Folders of features: kept rows, recomputed rows, and errors."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from imagepiece_jax.common import files
from imagepiece_jax.common.files import write_json
from imagepiece_jax.data import pictures
from imagepiece_jax.inference import feature_folder
from tests.helpers.feature_folders import (
    PHOTOGRAPH_COUNT,
    assert_folders_close,
    load_arrays,
    read_folder,
)
from tests.helpers.refused_calls import refused

pytestmark = pytest.mark.usefixtures("extractors_compiled_once")


def make_unfinished(whole, folder, rows):
    """Make a killed process's folder with `rows` counted rows.

    It also has half a row and half a line.
    """
    new = folder / ".new"
    shutil.copytree(whole, new)
    for name in ("paths.txt", "damaged.csv"):
        (new / name).unlink()
    info = json.loads((new / "info.json").read_text())
    write_json(new / "info.json", info | {"rows": None})
    (new / ".0123.tmp").touch()
    for file in new.glob("*.npy"):
        array = np.load(file)
        np.save(file, array[:rows])
        with open(file, "ab") as opened:
            opened.write(array[rows].tobytes()[::2])
    records = (new / "files.jsonl").read_bytes().splitlines(keepends=True)
    records = b"".join(records[: rows + 1])
    (new / "files.jsonl").write_bytes(records[:-9])


@pytest.mark.parametrize("rows", [0, 4, 20])
def test_a_killed_process_is_continued(write, written, tmp_path, computed, rows):
    whole, result = written
    make_unfinished(whole, tmp_path / "killed", rows)
    assert write(tmp_path / "killed") == result
    assert computed[-1] == PHOTOGRAPH_COUNT - rows
    killed = read_folder(tmp_path / "killed")
    for name, expected in read_folder(whole).items():
        if not name.endswith(".npy"):
            assert killed[name] == expected
    whole_arrays = load_arrays(whole)
    for name, rows_of_killed in load_arrays(tmp_path / "killed").items():
        np.testing.assert_array_equal(rows_of_killed[:rows], whole_arrays[name][:rows])
    assert_folders_close(tmp_path / "killed", whole)


def test_what_a_kill_left_out_may_be_gone(
    write, photographs, written, tmp_path, computed
):
    folder = tmp_path / "killed"
    make_unfinished(written[0], folder, 4)
    for _ in range(2):
        assert write(folder, photographs[:4]).shapes["pooled"][0] == 4
    assert computed[-2:] == [0, 0]
    rows = np.load(folder / "pooled.npy")
    np.testing.assert_array_equal(rows, np.load(written[0] / "pooled.npy")[:4])


def replace_and_keep_times(path, other):
    """Give a file other bytes but its own times, like `cp -p` and rsync."""
    status = path.stat()
    shutil.copyfile(other, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def change_everything(folder, others):
    (folder / "00.png").unlink()
    shutil.copy(others[0], folder / "03.png")
    shutil.copy(others[1], folder / "-.png")


def move_file(folder, others):
    (folder / "inside").mkdir()
    (folder / "00.png").rename(folder / "inside" / "later.png")


def swap_files(folder, others):
    first, second = (folder / name for name in ("00.png", "01.png"))
    both = first.read_bytes(), second.read_bytes()
    assert len(both[0]) == len(both[1])
    second.write_bytes(both[0])
    first.write_bytes(both[1])


# {change: (function of a folder and new photographs, rows to compute)}
CHANGES = {
    "nothing": (lambda folder, others: None, 0),
    "new last": (lambda folder, others: shutil.copy(others[0], folder), 1),
    "times kept": (
        lambda folder, others: replace_and_keep_times(folder / "03.png", others[0]),
        1,
    ),
    "touched": (lambda folder, others: os.utime(folder / "03.png", (1, 1)), 0),
    "moved": (move_file, 0),
    "swapped": (swap_files, 0),
    "mended": (lambda folder, others: shutil.copy(others[0], folder / "05.png"), 1),
    "damaged": (lambda folder, others: (folder / "02.png").write_bytes(b"?"), 1),
    "all at once": (change_everything, 2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_collection_recomputes_only_missing_rows(
    write, photographs, collection, tmp_path, computed, change
):
    """Rows equal those of a new folder.

    Kept rows have the same bits.
    """
    change_folder, num_missing = CHANGES[change]
    out = tmp_path / "out"
    write(out, pictures.find_images([collection]))
    before = read_folder(out)
    rows = load_arrays(out)
    digests = {}
    for row, line in enumerate((out / "files.jsonl").read_text().splitlines()):
        digests[json.loads(line)[4]] = row
    change_folder(collection, photographs[6:])
    paths = pictures.find_images([collection])
    result = write(out, paths)
    assert computed[-1] == num_missing
    assert result == write(tmp_path / "fresh", paths)
    for name in ("paths.txt", "damaged.csv", "info.json", "files.jsonl"):
        assert read_folder(out)[name] == read_folder(tmp_path / "fresh")[name]
    lines = (out / "files.jsonl").read_text().splitlines()
    kept = [digests.get(json.loads(line)[4], -1) for line in lines]
    assert_folders_close(out, tmp_path / "fresh")
    for name, arrays in load_arrays(out).items():
        for row, earlier in enumerate(kept):
            if earlier >= 0:
                np.testing.assert_array_equal(arrays[row], rows[name][earlier])
    if change == "nothing":
        assert read_folder(out) == before


@pytest.mark.parametrize("form", ["relative", "link", "dots"])
def test_a_path_is_its_file(write, collection, tmp_path, computed, monkeypatch, form):
    write(tmp_path / "out", pictures.find_images([collection]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(collection)
    words = {"relative": "collection", "link": tmp_path / "link"}
    words["dots"] = f"{collection}/../collection/"
    monkeypatch.setattr(feature_folder, "read_and_record", lambda path: 1 / 0)
    paths = pictures.find_images([words[form]])
    write(tmp_path / "out", paths)
    assert computed[-1] == 0
    assert (tmp_path / "out" / "paths.txt").read_text().splitlines() == paths


def test_removed_rows_are_counted(write, collection, tmp_path, capsys):
    paths = pictures.find_images([collection])
    write(tmp_path / "out", [*map(pathlib.Path, paths)])
    capsys.readouterr()
    write(tmp_path / "out", paths[:2])
    assert "4 rows are removed" in capsys.readouterr().err
    write(tmp_path / "out", paths[:2])
    assert "leave" not in capsys.readouterr().err


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", range(0, 15, 3))
def test_a_kill_while_replacing_leaves_no_mixed_set(
    write, photographs, collection, tmp_path, monkeypatch, call
):
    """One set is whole, or paths.txt is absent. The next call completes the set."""
    out = tmp_path / "out"
    write(out, pictures.find_images([collection]))
    old = np.load(out / "pooled.npy").copy()
    old_paths = (out / "paths.txt").read_bytes()
    (collection / "00.png").unlink()
    shutil.copy(photographs[7], collection / "-.png")
    paths = pictures.find_images([collection])
    calls = []

    def killing(rename):
        def killed(*args):
            calls.append(args)
            if len(calls) > call:
                raise Killed
            return rename(*args)

        return killed

    with monkeypatch.context() as patch:
        for name in ("rename", "replace"):
            patch.setattr(os, name, killing(getattr(os, name)))
        with pytest.raises(Killed):
            write(out, paths)
    if (out / "paths.txt").exists() and (out / "paths.txt").read_bytes() == old_paths:
        np.testing.assert_array_equal(np.load(out / "pooled.npy"), old)
    write(out, paths)
    write(tmp_path / "fresh", paths)
    assert_folders_close(out, tmp_path / "fresh")
    assert (out / "paths.txt").read_text().splitlines() == paths
    assert not [*out.glob(".[!l]*")]


def test_rows_are_counted_as_they_are_written(write, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_folder, "FLUSH_SECONDS", 0.0)
    counted = []
    append = feature_folder.FeatureFolder.append_rows

    def failing(folder, *values):
        append(folder, *values)
        counted.append(len(np.load(tmp_path / "f" / ".new" / "pooled.npy")))
        if len(counted) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(feature_folder.FeatureFolder, "append_rows", failing)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "f", batch_size=4)
    write(tmp_path / "f", batch_size=8)
    assert counted == [4, 8, 16, 22]


DAMAGES = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"0"),
    "other": lambda file: np.save(file, np.zeros((PHOTOGRAPH_COUNT, 10), np.float16).T),
    "empty": lambda file: file.write_bytes(b""),
    "removed": lambda file: file.unlink(),
}


@pytest.mark.parametrize("change", DAMAGES)
def test_rows_that_are_not_there_are_computed_again(write, written, tmp_path, change):
    folder = tmp_path / "changed"
    shutil.copytree(written[0], folder)
    DAMAGES[change](folder / "logits.npy")
    assert write(folder) == written[1]
    again = read_folder(folder)
    wanted = read_folder(written[0])
    for name in ("paths.txt", "info.json", "damaged.csv"):
        assert again[name] == wanted[name]
    assert_folders_close(folder, written[0])


@pytest.mark.parametrize("line", [None, b"", b"[]", b'[["a"], 1, 2, 3, "d"]'])
def test_a_record_that_was_edited_is_no_row(write, written, tmp_path, computed, line):
    """Only its photograph is computed; a missing line recomputes all."""
    folder = tmp_path / "edited"
    shutil.copytree(written[0], folder)
    lines = (folder / "files.jsonl").read_bytes().split(b"\n")
    lines[3:4] = [] if line is None else [line]
    (folder / "files.jsonl").write_bytes(b"\n".join(lines))
    assert write(folder) == written[1]
    assert computed[-1] == (PHOTOGRAPH_COUNT if line is None else 1)
    assert_folders_close(folder, written[0])
    want = load_arrays(written[0])
    for name, rows in load_arrays(folder).items():
        others = np.delete(want[name], 3, 0)
        np.testing.assert_array_equal(np.delete(rows, 3, 0), others)


def test_foreign_folders_are_refused(write, tmp_path):
    def check(*texts):
        with refused(*texts):
            write(tmp_path)

    (tmp_path / "notes.txt").touch()
    check("folder", f"{tmp_path} holds notes.txt")
    (tmp_path / "notes.txt").unlink()
    (tmp_path / ".DS_Store").touch()  # a system's file
    for text in ("{}", '{"made_by": 5, "rows": 1}', '{"made_by": {}}'):
        (tmp_path / "info.json").write_text(text)
        check("folder", f"{tmp_path} holds info.json")
    (tmp_path / "info.json").unlink()
    for name in ("paths.txt", "pooled.npy", "damaged.csv"):
        (tmp_path / name).write_text("mine")
        check("folder", f"{tmp_path} holds {name}")
        (tmp_path / name).unlink()
    with files.locked_folder("folder", tmp_path):
        check("folder", tmp_path, "in use by another process")


def test_a_first_run_killed_before_its_record_is_continued(tmp_path):
    """It left an empty `.new`; a `.new` with foreign files is refused."""
    (tmp_path / ".new").mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / ".new" / ".info.json.1.tmp").touch()
    feature_folder.check_feature_folder(tmp_path)
    (tmp_path / ".new" / "notes.txt").touch()
    with refused("holds .new"):
        feature_folder.check_feature_folder(tmp_path)
