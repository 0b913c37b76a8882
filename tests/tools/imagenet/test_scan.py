"""Finding ImageNet's images with their labels, and errors that name what is wrong."""

import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from tests import tars
from tools.imagenet import scan


def test_labels_are_those_of_every_other_framework():
    names = scan.class_names()
    labels = scan.validation_labels()
    # Keras's imagenet_class_index.json: tench, Shetland sheepdog, toilet tissue
    places = {0: "n01440764", 230: "n02105855", 999: "n15075141"}
    assert {i: names[i] for i in places} == places
    assert len(set(names)) == 1000
    # Caffe's val.txt begins so
    assert labels[:11] == [65, 970, 230, 809, 516, 57, 334, 415, 674, 332, 109]
    assert np.bincount(labels).tolist() == [50] * 1000


def bytes_of(entry):
    with open(entry.file, "rb") as file:
        return file.read()[entry.start : entry.start + entry.size]


def contents(found):
    """{split: {name: (label, bytes)}} of what `find` returns."""
    return {
        split: {entry.name: (entry.label, bytes_of(entry)) for entry in entries}
        for split, entries in found.items()
    }


LABELS = {"n01440764": 0, "n02105855": 230, "n15075141": 999}


def truth(train, val):
    labels = dict(zip(sorted(val), [65, 970, 230, 809], strict=True))
    trained = {}
    for wnid, files in train.items():
        trained |= {name: (LABELS[wnid], data) for name, data in files.items()}
    tested = {name: (labels[name], data) for name, data in val.items()}
    return {"train": trained, "validation": tested}


def test_tars_are_read_where_they_lie(tmp_path):
    train, val = tars.images()
    counted = []
    source = tars.write_tars(tmp_path, train, dict(reversed(val.items())))
    found = scan.find(source, partial=True, advance=counted.append)
    assert contents(found) == truth(train, val)
    assert sum(counted) == 13


@pytest.mark.parametrize("flat", [True, False])
def test_folders_are_read_like_tars(tmp_path, flat):
    """val as ImageNet is downloaded elsewhere, and as PyTorch's users sort it."""
    train, val = tars.images()
    files = {}
    for wnid in train:
        files |= {f"train/{wnid}/{n}": d for n, d in train[wnid].items()}
    for name, data in val.items():
        wnid = scan.class_names()[truth(train, val)["validation"][name][0]]
        files[f"val/{name}" if flat else f"val/{wnid}/{name}"] = data
    for name, data in files.items() | {("train/n01440764/notes.txt", b"")}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert contents(scan.find(tmp_path, partial=True)) == truth(train, val)


def refused(source, partial=True):
    with pytest.raises(InputError) as error:
        scan.find(source, partial)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_complete_set_is_one_of_the_known_size(tmp_path, monkeypatch):
    train, val = tars.images(val=3)
    source = tars.write_tars(tmp_path, train, val)
    error = refused(source, partial=False)
    assert f"{source / tars.TRAIN} has 9 images of 3" in error
    small = {"train": (tars.TRAIN, "train", 9), "validation": (tars.VAL, "val", 3)}
    monkeypatch.setattr(scan, "SPLITS", small)
    monkeypatch.setattr(scan, "NUM_CLASSES", 3)
    counts = {split: len(found) for split, found in scan.find(source).items()}
    assert counts == {"train": 9, "validation": 3}
    tars.write_tars(tmp_path, train, tars.images(val=2)[1])
    assert str(source / tars.VAL) in refused(source, partial=False)


def test_partial_sets_must_be_asked_for(tmp_path):
    source = tars.write_tars(tmp_path, *tars.images())
    (tmp_path / tars.TRAIN).unlink()
    assert tars.TRAIN in refused(source, partial=False)
    assert list(scan.find(source, partial=True)) == ["validation"]
    (tmp_path / tars.VAL).unlink()
    for folder in (source, tmp_path / "gone"):
        error = refused(folder)
        assert error.startswith(f"--source {folder} ")
        assert tars.TRAIN in error
        assert tars.VAL in error


def outer(name, inside):
    """A training tar of one class with one image."""
    return tars.tar({name: tars.tar({inside: b"x"})})


FIRST_VAL = "ILSVRC2012_val_00000001.JPEG"
TENCHES = "n01440764.tar"


@pytest.mark.parametrize(
    "name, content, value, hint",
    [
        (tars.TRAIN, outer("n01440764.zip", "n01440764_1.JPEG"), "n01440764.zip", ""),
        (tars.TRAIN, outer("n99999999.tar", "n99999999_1.JPEG"), "n99999999.tar", ""),
        (tars.TRAIN, outer(FIRST_VAL, ""), FIRST_VAL, ""),
        (tars.TRAIN, outer(TENCHES, "n02105855_1.JPEG"), "n02105855_1.JPEG", ""),
        (tars.TRAIN, outer(TENCHES, "cat.png"), "cat.png", ""),
        (tars.VAL, tars.tar({"n01440764_1.JPEG": b"x"}), "n01440764_1.JPEG", ""),
        *(
            (tars.VAL, tars.tar({name: b"x"}), name, FIRST_VAL)
            for name in ("ILSVRC2012_val_00050001.JPEG", TENCHES)
        ),
        (tars.VAL, tars.tar({}), None, "no image"),
        (tars.VAL, None, None, "Is a directory"),
        ("val", None, None, "no image"),
        ("train", b"x", None, "Not a directory"),
        ("train/ant", None, "ant", "config.data.name=folder:"),
    ],
)
def test_other_content_is_refused(tmp_path, name, content, value, hint):
    path = tmp_path / name
    if content is None:
        path.mkdir(parents=True)
    else:
        path.write_bytes(content)
    error = refused(tmp_path)
    assert value is None or f"has {value!r}" in error
    assert name.partition("/")[0] in error
    assert hint in error


@pytest.mark.parametrize("name", [tars.TRAIN, tars.VAL])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7])
def test_truncated_tars(tmp_path, name, share):
    source = tars.write_tars(tmp_path, *tars.images())
    data = (source / name).read_bytes().rstrip(b"\0")
    (source / name).write_bytes(data[: int(share * len(data))])
    error = refused(source)
    assert str(source / name) in error
    assert "complete tar file" in error
