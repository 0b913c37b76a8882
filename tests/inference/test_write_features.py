import contextlib
import functools
import os
import shutil
import sqlite3

import jax
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.common import parallel
from imagepiece_jax.data import pictures
from imagepiece_jax.errors import RunError
from imagepiece_jax.inference import feature_store, write_features
from imagepiece_jax.inference.feature_store import read_features
from tests.helpers import tiny_vit
from tests.helpers.picture_files import noise, write_images
from tests.helpers.refused_calls import refused

PHOTOGRAPH_COUNT = 22  # in batches of 4
DAMAGED = (5, 9, 21)


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Let equal models compile once per batch size."""
    programs = {}
    pmap = parallel.pmap

    def compiled(run, **options):
        key = (*run.args, *parallel.local_devices())
        return programs.setdefault(key, pmap(run, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "pmap", compiled)
        yield


@pytest.fixture(scope="module")
def vit():
    return tiny_vit.pretrained(tiny_vit.EVIT)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Paths of noise images; three files are damaged."""
    folder = tmp_path_factory.mktemp("photographs")
    write_images(folder, noise(PHOTOGRAPH_COUNT, tiny_vit.SIDE, tiny_vit.SIDE))
    for number in DAMAGED:
        (folder / f"{number:02}.png").write_bytes(b"nothing %d" % number)
    return pictures.find_images([folder])


@pytest.fixture(scope="module")
def write(vit, photographs):
    def write(file, paths=photographs, **options):
        options = {"batch_size": 4, "patches": True, "threads": 2} | options
        return write_features.write_features(vit, paths, file, **options)

    return write


@pytest.fixture(scope="module")
def written(write, tmp_path_factory):
    """A complete file, and the result of `write_features`."""
    file = tmp_path_factory.mktemp("features") / "whole.sqlite"
    return file, write(file)


def read_maps(file):
    """All photographs' maps, read by SQL alone."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("SELECT map FROM photographs ORDER BY path")
        return np.stack([np.frombuffer(patches, "<f2") for (patches,) in rows])


def assert_close(file, other_file):
    """Files have equal paths, and arrays up to rounding, as batch sizes differ."""
    paths, vectors = read_features(file)
    other_paths, other_vectors = read_features(other_file)
    assert paths == other_paths
    close = {"rtol": 2e-3, "atol": 2e-3}
    np.testing.assert_allclose(vectors, other_vectors, **close)
    np.testing.assert_allclose(read_maps(file), read_maps(other_file), **close)


@pytest.mark.parametrize("logits", [False, True])
def test_rows_have_their_paths_features(vit, photographs, write, tmp_path, logits):
    file = tmp_path / "vectors.sqlite"
    failures = write(file, logits=logits)
    assert [*failures] == [photographs[number] for number in DAMAGED]
    readable = [path for path in photographs if path not in failures]
    expected = imagepiece_jax.features(vit, readable)
    vectors = expected.pooled
    if logits:
        pixels = pictures.as_batch(readable, vit.preprocessing)
        images = vit.config.as_normalized(pixels)
        vectors = tiny_vit.logits(vit.model)(vit.variables, images)
    paths, rows = imagepiece_jax.read_features(file)
    assert paths == readable
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, vectors, rtol=1e-5, atol=1e-5)
    maps = read_maps(file).reshape(expected.patches.shape)
    np.testing.assert_allclose(maps, expected.patches, rtol=2e-3, atol=2e-3)


def test_a_killed_process_is_continued(write, written, tmp_path, caplog, monkeypatch):
    """A kill leaves the file and its log as they are after some batch."""
    killed = tmp_path / "killed"
    killed.mkdir()
    append_rows = feature_store.append_rows
    batches = []

    def copied(*args, **columns):
        append_rows(*args, **columns)
        batches.append(args)
        if len(batches) == 2:
            for file in tmp_path.glob("v.sqlite*"):
                shutil.copy(file, killed)

    with monkeypatch.context() as patch:
        patch.setattr(feature_store, "append_rows", copied)
        write(tmp_path / "v.sqlite")
    paths, vectors = read_features(killed / "v.sqlite")
    assert len(paths) == 7  # of eight photographs one is damaged
    caplog.set_level("INFO")
    assert write(killed / "v.sqlite") == written[1]
    assert f"7 of {PHOTOGRAPH_COUNT} rows exist already" in caplog.text
    np.testing.assert_array_equal(read_features(killed / "v.sqlite")[1][:7], vectors)
    assert_close(killed / "v.sqlite", written[0])
    assert [file.name for file in killed.iterdir()] == ["v.sqlite"]


def test_a_changed_collection_computes_new_rows(write, photographs, tmp_path, caplog):
    """Rows equal those of a new file; kept rows have the same bits."""
    collection = tmp_path / "collection"
    collection.mkdir()
    for path in photographs[:8]:
        shutil.copy(path, collection)

    def find_paths():
        return sorted(os.path.join(collection, name) for name in os.listdir(collection))

    out = tmp_path / "out.sqlite"
    write(out, find_paths())
    _, earlier = read_features(out)
    (collection / "07.png").unlink()
    shutil.copy(photographs[10], collection / "new.png")
    shutil.copy(photographs[11], collection / "04.png")
    # Other bytes but the file's own times, like `cp -p` and rsync.
    status = (collection / "03.png").stat()
    shutil.copyfile(photographs[12], collection / "03.png")
    os.utime(collection / "03.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    # Two files exchange their names; a copy's name is not UTF-8.
    (collection / "00.png").rename(collection / "old")
    (collection / "01.png").rename(collection / "00.png")
    (collection / "old").rename(collection / "01.png")
    shutil.copy(collection / "02.png", os.fsencode(collection) + b"/\xff\n")
    caplog.set_level("INFO")
    failures = write(out, find_paths())
    # Without new.png, 04.png, 03.png, and the damaged 05.png, which is tried again.
    assert "5 of 9 rows exist already" in caplog.text
    assert failures == write(tmp_path / "fresh.sqlite", find_paths())
    paths, vectors = read_features(out)
    fresh_paths, fresh_vectors = read_features(tmp_path / "fresh.sqlite")
    assert paths == fresh_paths
    np.testing.assert_allclose(vectors, fresh_vectors, rtol=1e-5, atol=1e-5)
    is_kept = [any(np.array_equal(row, old) for old in earlier) for row in vectors]
    assert sum(is_kept) == len(paths) - 3


def test_rows_stay_while_their_disk_is_away(write, photographs, tmp_path, caplog):
    disk = tmp_path / "disk"
    disk.mkdir()
    paths = [shutil.copy(path, disk) for path in photographs[:3]]
    write(tmp_path / "v.sqlite", paths)
    _, earlier = read_features(tmp_path / "v.sqlite")
    disk.rename(tmp_path / "away")
    assert write(tmp_path / "v.sqlite", paths) == {}
    assert "3 rows stay" in caplog.text
    np.testing.assert_array_equal(read_features(tmp_path / "v.sqlite")[1], earlier)
    (tmp_path / "away").rename(disk)
    os.unlink(paths[0])
    write(tmp_path / "v.sqlite", paths)
    assert read_features(tmp_path / "v.sqlite")[0] == paths[1:]


def test_rows_are_refused_for_other_files_and_settings(vit, write, written, tmp_path):
    with refused("patches", "made with"):
        write(written[0], patches=False)
    with refused("weights", vit.digest):
        other = vit.with_variables(jax.tree.map(lambda leaf: leaf + 1, vit.variables))
        write_features.write_features(other, [], written[0], patches=True)
    with refused("reduction is tome:macs=0.6, but", "made with tome:macs=0.5"):
        for cost in (0.5, 0.6):  # what was typed, not the counts that it became
            reduced = vit.with_reduction(f"tome:macs={cost}")
            write_features.write_features(reduced, [], tmp_path / "reduced.sqlite")
    foreign_file = tmp_path / "foreign.sqlite"
    foreign_file.write_text("mine")
    for use in (write, read_features):
        with pytest.raises(RunError, match=str(foreign_file)):
            use(foreign_file)
    assert foreign_file.read_text() == "mine"
    with pytest.raises(RunError, match="no.sqlite"):
        read_features(tmp_path / "no.sqlite")


def test_one_process_writes_at_a_time(write, tmp_path, monkeypatch):
    file = tmp_path / "v.sqlite"
    connect = functools.partial(sqlite3.connect, timeout=0)
    monkeypatch.setattr(sqlite3, "connect", connect)
    with feature_store.open_store(file, {"vector": [3]}, "none"):
        for use in (write, read_features):
            with pytest.raises(RunError, match="locked"):
                use(file)
    assert read_features(file)[1].shape == (0, 3)


def test_two_devices_write_equal_rows(write, written, tmp_path, monkeypatch):
    devices = jax.local_devices()[:2]
    assert len(devices) == 2
    monkeypatch.setattr(parallel, "local_devices", lambda process=None: devices)
    monkeypatch.setattr(parallel, "device_count", lambda: 2)
    write(tmp_path / "two.sqlite", batch_size=2)
    assert_close(tmp_path / "two.sqlite", written[0])


def test_numbers_beyond_the_stored_type_have_no_row(vit, photographs, tmp_path):
    params = vit.variables["params"]
    norm = jax.tree.map(lambda leaf: 1e6 * leaf, params["norm"])
    vit = vit.with_variables({"params": params | {"norm": norm}})
    out = tmp_path / "f.sqlite"
    failures = write_features.write_features(vit, photographs[:2], out, patches=True)
    assert [*failures] == photographs[:2]
