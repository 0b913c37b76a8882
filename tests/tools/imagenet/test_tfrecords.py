"""Conversion from TFDS's default format; damage is named."""

import io
import json
import os

import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.input.registry import open_source
from tests import tars, tfrecords
from tests.command import call, sentence
from tools import prepare_imagenet as prepare
from tools.imagenet import tfrecords as writing

# What TFDS writes beside its files, as far as it reads it again.
INFO = {
    "fileFormat": "tfrecord",
    "name": "imagenet2012",
    "version": "5.1.0",
    "splits": [
        {"name": "train", "numBytes": "9", "shardLengths": ["2", "2", "1"]},
        {"name": "validation", "numBytes": "9", "shardLengths": ["2"]},
    ],
}

WITHOUT = "has a record of something else at byte 12; allowed: imagenet2012 of TFDS: im"


def images(count, split="train"):
    names = {"train": "n01440764_{}.JPEG", "validation": "ILSVRC2012_val_{:08d}.JPEG"}
    return [
        (names[split].format(i + 1), 7 * i, tars.encoded(tars.photo(i)))
        for i in range(count)
    ]


@pytest.fixture
def prepared(tmp_path):
    """(folder, {name: file}, {split: images}) of a set as TFDS leaves it."""
    splits = {"train": images(5), "validation": images(2, "validation")}
    paths = tfrecords.write(tmp_path / "tfds", splits)
    folder = next(iter(paths.values())).parent
    (folder / "dataset_info.json").write_text(json.dumps(INFO))
    return tmp_path / "tfds", paths, splits


def convert(source, target, *words):
    words = ["--source", source, "--dir", target, "--partial", *words]
    return call(prepare.main, *words)


@pytest.mark.parametrize(
    "inside, processes",
    [("", 0), ("imagenet2012", 0), ("imagenet2012/5.1.0", 0), ("", 2)],
)
def test_one_command_converts(prepared, tmp_path, processes, inside):
    folder, _, splits = prepared
    ended = convert(folder / inside, tmp_path / "new", "--processes", processes)
    assert ended.status == 0, ended
    for split, name in (("train", "train"), ("val", "validation")):
        source = open_source(
            "imagenet2012", split, num_classes=1000, data_dir=tmp_path / "new"
        )
        found = [
            (source.name(i), source.read(i)[1], source.encoded(i))
            for i in range(len(source))
        ]
        assert sorted(found) == sorted(splits[name])  # byte for byte


def test_training_on_tfrecords_names_the_command(prepared, tmp_path):
    folder, _, _ = prepared
    with pytest.raises(InputError) as caught:
        open_source("imagenet2012", "train", num_classes=1000, data_dir=folder)
    assert f"{folder} has no complete array_record files" in str(caught.value)
    assert "tools.prepare_imagenet`, in a clone" in str(caught.value)
    message = sentence(convert(folder, folder))
    assert message == (
        f"--dir {folder} has imagenet2012 in TFRECORD files; --source {folder} with "
        "another --dir converts them"
    )


def flip(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


ENDS = "the file ends in the middle of it"


@pytest.mark.parametrize(
    "damage, place, reason, processes",
    [
        (lambda data: data[:-30], "second", ENDS, 0),
        (lambda data: data + data[:7], "end", ENDS, 0),
        (lambda data: flip(data, 3), 0, "the checksum of its length is wrong", 0),
        (lambda data: flip(data, 500), 0, "the checksum of its data is wrong", 0),
        (lambda data: flip(data, -2), "second", "the checksum of its data is wrong", 0),
    ],
)
def test_damage_is_named(prepared, tmp_path, damage, place, reason, processes):
    folder, paths, splits = prepared
    path = paths["imagenet2012-train.tfrecord-00001-of-00003"]
    data = path.read_bytes()
    path.write_bytes(damage(data))
    if place:  # the first record: 16 bytes around an Example that holds the image
        names = ("file_name", "label", "image")
        name, label, image = splits["train"][2]
        values = dict(zip(names, (name.encode(), label, image), strict=True))
        place = len(data) if place == "end" else len(tfrecords.example(**values)) + 16
    message = sentence(convert(folder, tmp_path / "new", "--processes", processes))
    assert message == (
        f"{path} is damaged in the record at byte {place:,} ({reason}); fetch or "
        "prepare this file again"
    )


def test_missing_files_and_two_versions(prepared, tmp_path):
    folder, paths, _ = prepared
    paths["imagenet2012-train.tfrecord-00001-of-00003"].unlink()
    message = sentence(convert(folder, tmp_path / "new", "--processes", 0))
    assert "has 2 of the 3 TFRECORD files of train, but not number 00001" in message
    older = folder / "imagenet2012" / "5.0.0"
    older.mkdir()
    for name in ("00000-of-00002", "00001-of-00002"):
        (older / f"imagenet2012-train.tfrecord-{name}").write_bytes(b"")
    ended = convert(folder / "imagenet2012", tmp_path / "new", "--processes", 0)
    message = sentence(ended)
    assert "allowed: the folder of one" in message
    assert "5.0.0" in message and "5.1.0" in message


@pytest.mark.parametrize(
    "data, message",
    [
        (tfrecords.example(image=b"x", label=1000, file_name=b"a.JPEG"), WITHOUT),
        (tfrecords.example(label=3), WITHOUT),
        (tfrecords.example(image=b"x", label=3, file_name=b"\xff"), WITHOUT),
        (b"\xff\xff", "in the record at byte 12 (it holds no tf.train.Example)"),
    ],
    ids=["label", "image", "name", "no Example"],
)
def test_other_records_are_refused(prepared, tmp_path, data, message):
    folder, paths, _ = prepared
    next(iter(paths.values())).write_bytes(tfrecords.record(data))
    assert message in sentence(convert(folder, tmp_path / "new", "--processes", 0))


def test_records_are_byte_for_byte_those_of_tfds():
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = tfds.builder("imagenet2012", data_dir=os.devnull).info.features
    serializer = ExampleSerializer(features.get_serialized_info())
    image = tars.encoded(tars.photo(3))
    name = "n01440764_1.JPEG"
    for label in (0, 999):
        values = {"image": io.BytesIO(image), "label": label, "file_name": name}
        message = serializer.get_tf_example(features.encode_example(values))
        expected = message.SerializeToString(deterministic=True)
        assert writing.serialize_example(image, label, name) == expected
