"""The written data set is TFDS's imagenet2012, and nothing unfinished passes for it."""

import itertools
import multiprocessing
import os
import shutil
import threading
import time
from collections import namedtuple

import pytest

from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.input.registry import open_source
from tests import tars
from tests.training.test_full_disk import full_disk
from tools.imagenet import scan, writer
from tools.imagenet.scan import Entry

tfds = pytest.importorskip("tensorflow_datasets")
hashing = pytest.importorskip("tensorflow_datasets.core.hashing")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(entries of tars, {name: bytes} of what they hold)"""
    train, val = tars.images()
    source = tars.write_tars(tmp_path_factory.mktemp("tars"), train, val)
    data = {}
    for files in (*train.values(), val):
        data |= {name: d for name, d in files.items()}
    return scan.find(source, partial=True), data


def test_number_and_order_of_files_are_those_of_tfds():
    """TFDS's full set has 1,024 files for training and 64 for validation."""
    sizes = {"train": (2048, 72_000_000), "validation": (500, 13_500_000)}
    for split, (number, size) in sizes.items():
        entries = [Entry(f"{i}.JPEG", 0, "x", 0, size) for i in range(number)]
        files = writer.plan(split, entries)
        count = {"train": 1024, "validation": 64}[split]
        assert len(files) == count
        assert list(files)[5] == (
            f"imagenet2012-{split}.array_record-00005-of-{count:05d}"
        )
        in_order = []
        for rows in files.values():
            in_order += rows
        hashed = hashing.Hasher(split).hash_key
        assert in_order == sorted(entries, key=lambda entry: hashed(entry.name))
        lengths = {len(rows) for rows in files.values()}
        assert max(lengths) - min(lengths) <= 1


def test_two_images_of_one_name_are_refused():
    entries = [Entry("a.JPEG", k, f"train/{k}/a.JPEG", 0, 9) for k in (1, 2)]
    with pytest.raises(InputError, match=r"a\.JPEG") as error:
        writer.plan("train", entries)
    assert all(entry.file in str(error.value) for entry in entries)


def as_tfds_reads(folder, split):
    """[(name, label, encoded bytes)] by TFDS alone."""
    builder = tfds.builder("imagenet2012", data_dir=folder, file_format="array_record")
    rows = builder.as_data_source(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    return [(r["file_name"].decode(), int(r["label"]), r["image"]) for r in rows]


def test_tfds_reads_the_set_record_for_record(small, tmp_path):
    found, data = small
    note = writer.write(found, tmp_path)
    for split, entries in found.items():
        hashed = hashing.Hasher(split).hash_key
        ordered = sorted(entries, key=lambda entry: hashed(entry.name))
        truth = [(entry.name, entry.label, data[entry.name]) for entry in ordered]
        assert as_tfds_reads(tmp_path, split) == truth
    folder = tmp_path / "imagenet2012" / "5.1.0"
    lengths = {"train": 9, "validation": 4}
    sizes = {k: note["splits"].pop(k)[2] for k in lengths}
    assert all(0 < sizes[k] - sum(e.size for e in found[k]) < 1000 for k in lengths)
    facts = writer.AS_BY_TFDS | {"classes": {"train": 3, "validation": 4}}
    assert note == {"folder": str(folder), "splits": {}, **facts}
    assert sorted(path.name for path in folder.iterdir()) == [
        "dataset_info.json",
        "features.json",
        "imagenet2012-train.array_record-00000-of-00001",
        "imagenet2012-validation.array_record-00000-of-00001",
        "label.labels.txt",
        "metadata.json",
    ]


def test_small_images_are_noted(small, tmp_path, caplog):
    """In the set itself, and in the log of whoever reads it."""
    note = writer.write(small[0], tmp_path, short_side=40)
    assert (note["short_side"], note["quality"], note["reencoded"]) == (40, 92, 13)
    source = open_source("imagenet2012", "val", num_classes=1000, data_dir=tmp_path)
    assert source.read(0)[0].shape == (40, 50, 3)  # of 48 x 60
    assert "but shrunk to short side 40" in caplog.text
    names = [name for name, _, _ in as_tfds_reads(tmp_path, "train")]
    (files,) = writer.plan("train", small[0]["train"]).values()
    assert names == [entry.name for entry in files]  # the order of the original files


def files_of(folder):
    return {
        path.name: path.read_bytes()
        for path in (folder / "imagenet2012" / "5.1.0").iterdir()
    }


def test_a_stopped_run_resumes_with_the_missing_files(small, tmp_path, monkeypatch):
    full = tmp_path / "whole"
    parts = tmp_path / "parts"
    writer.write(small[0], full)
    write_records = writer.write_records
    written = []

    def second_stops(path, rows):
        written.append(path.name)
        if len(written) == 2:
            path.write_bytes(b"torn")
            raise KeyboardInterrupt
        write_records(path, rows)

    monkeypatch.setattr(writer, "write_records", second_stops)
    with pytest.raises(KeyboardInterrupt):
        writer.write(small[0], parts)
    assert writer.existing(parts) is None
    with pytest.raises(InputError, match="has no complete array_record"):
        open_source("imagenet2012", "train", num_classes=1000, data_dir=parts)
    calls = []
    writer.write(small[0], parts, advance=lambda *args, **of: calls.append((args, of)))
    assert calls == [((9,), {"before": True}), ((4,), {})]
    splits = [name.split(".")[0].split("-")[1] for name in written]
    assert splits == ["train", "validation", "validation"]
    assert files_of(parts) == files_of(full)


def refuses(message, *arguments, **options):
    with pytest.raises(InputError, match=message) as caught:
        writer.write(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_an_unfinished_set_resumes_with_its_settings(small, tmp_path, monkeypatch):
    def stop(path, rows):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writer, "write_records", stop)
        with pytest.raises(KeyboardInterrupt):
            writer.write(small[0], tmp_path)
    message = "5.1.0.* has an unfinished set with --short_side 0; give the options"
    refuses(message, small[0], tmp_path, short_side=40)
    other = small[0] | {"train": small[0]["train"][1:]}
    refuses("has an unfinished set of other images", other, tmp_path)
    assert writer.write(small[0], tmp_path)["splits"]["train"][0] == 9


def test_space_is_asked_for_before_anything_is_written(small, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    entries = itertools.chain(*small[0].values())
    needed = sum(entry.size for entry in entries)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed))
    refuses("of free space; allowed: .* for the rest", small[0], tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1.02 * needed))
    assert writer.write(small[0], tmp_path)
    # 0.4 bytes for each of 40 * 53 pixels, where that is less than the files have
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(13 * 850))
    refuses("free space", small[0], tmp_path / "other", short_side=40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(13 * 870))
    assert writer.write(small[0], tmp_path / "other", short_side=40)


def test_a_full_disk_keeps_what_is_finished(small, tmp_path):
    message = "cannot be written .*the same command resumes"
    with full_disk(room=5000), pytest.raises(RunError, match=message):
        writer.write(small[0], tmp_path)
    assert writer.existing(tmp_path) is None
    assert writer.write(small[0], tmp_path)


@pytest.fixture
def many(tmp_path):
    """101 images in a file, of which `write_file(damaged)` damages one or two."""
    good = tars.encoded(tars.photo(0, 16, 16))
    bad = b"torn".ljust(9)
    path = tmp_path / "images"
    size = len(good)

    def write_file(damaged):
        images = [bad.ljust(size) if i in damaged else good for i in range(101)]
        path.write_bytes(b"".join(images))

    names = [f"n01440764_{i}.JPEG" for i in range(101)]
    entries = [Entry(n, 0, str(path), i * size, size) for i, n in enumerate(names)]
    return {"train": entries}, write_file


def test_damaged_images_are_left_out_and_named(many, tmp_path, caplog):
    found, write_file = many
    write_file({7})
    note = writer.write(found, tmp_path)
    name = "n01440764_7.JPEG"
    assert note["splits"]["train"][0] == 100
    assert note["left_out"] == [name]
    message = f"{name} cannot be read (no known image format): left out"
    assert message in caplog.text
    names = {row[0] for row in as_tfds_reads(tmp_path, "train")}
    assert names == {entry.name for entry in found["train"]} - {name}


def test_many_damaged_images_stop_the_run_until_they_are_replaced(many, tmp_path):
    found, write_file = many
    write_file({7, 60})
    refuses("2 of 101 images cannot be read, more than 1%", found, tmp_path)
    assert writer.existing(tmp_path) is None
    write_file({})
    note = writer.write(found, tmp_path)
    assert note["splits"]["train"][0] == 101
    assert note["left_out"] == []


def test_a_worker_that_dies_ends_the_run(tmp_path):
    """It waits for bytes that never come, until it is killed."""
    os.mkfifo(tmp_path / "pipe")
    found = {"train": [Entry("a.JPEG", 0, str(tmp_path / "pipe"), 0, 9)]}
    others = set(multiprocessing.active_children())  # of tests before, still ending

    def kill():
        while not (ours := set(multiprocessing.active_children()) - others):
            time.sleep(0.01)
        ours.pop().kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(RunError, match="a worker process has died.*fewer --processes"):
        writer.write(found, tmp_path, workers=1)
    thread.join()
    end = time.monotonic() + 5  # two threads wait for it: which hears first is open
    while set(multiprocessing.active_children()) - others:
        assert time.monotonic() < end
        time.sleep(0.01)
