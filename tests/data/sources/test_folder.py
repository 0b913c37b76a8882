"""Which files of a folder are images, and which of its folders are splits."""

import os
import pathlib
import socket
import unicodedata

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.data.sources.folder import list_images, split_folders, train_folder
from imagepiece_jax.data.sources.registry import open_source
from imagepiece_jax.errors import InputError

IMAGE = Image.fromarray(np.zeros((4, 4, 3), np.uint8))


def make(root, *files):
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        IMAGE.save(path)


SYSTEM = ("@eaDir", "#recycle", "__MACOSX", ".thumbnails", "lost+found")
SYSTEM += ("$RECYCLE.BIN", "System Volume Information", "@eadir")


def test_what_no_person_means_is_left_out_and_counted(tmp_path, capsys, caplog):
    for split in ("train", "val"):
        make(tmp_path, f"{split}/ant/a.jpg", f"{split}/bee/b.jpg")
        make(tmp_path, *(f"{split}/{name}/x.jpg" for name in SYSTEM))
        make(tmp_path, *(f"{split}/ant/{name}/x/x.jpg" for name in SYSTEM))
        make(tmp_path, f"{split}/bee/._b.jpg")
        (tmp_path / split / "bee" / "Thumbs.db").touch()
    images, left_out = list_images(tmp_path, "train")
    assert images == ["train/ant/a.jpg", "train/bee/b.jpg"]
    assert len(left_out) == 2 * len(SYSTEM) + 2
    for split in ("train", "val"):
        caplog.clear()
        source = open_source(f"{tmp_path}", split, num_classes=2)
        assert (len(source), source.class_names) == (2, ("ant", "bee"))
        [record] = caplog.records
        assert f"{2 * len(SYSTEM) + 1} more" in record.getMessage()
    assert len(as_source(tmp_path / "train")) == 2
    assert capsys.readouterr().out.count("left out") == 1


def test_pipes_and_sockets_are_no_images(tmp_path, monkeypatch):
    """A link to nothing is an image that cannot be read: somebody meant it."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "a.jpg", "folder.jpg/b.jpg")
    os.mkfifo("pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("pipe.jpg")
    (tmp_path / "null.jpg").symlink_to(os.devnull)
    (tmp_path / "gone.jpg").symlink_to("nothing.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        images, left_out = list_images(tmp_path)
    assert images == ["a.jpg", "empty.jpg", "gone.jpg", "loop.jpg", "folder.jpg/b.jpg"]
    assert left_out == ["link.jpg", "null.jpg", "pipe.jpg", "socket.jpg"]
    source = as_source(["a.jpg", "pipe.jpg", "null.jpg", "empty.jpg"])
    assert [source[index].readable for index in range(4)] == [True] + 3 * [False]
    assert source.size(1) is None
    assert len(source.digest) == 16
    os.mkfifo("list.txt")
    for images in ("list.txt", "csv:list.txt"):
        with pytest.raises(OSError, match="regular file"):
            as_source(images)


def test_a_folder_that_cannot_be_read_is_left_out(tmp_path, monkeypatch):
    """As a class it is an error."""
    make(tmp_path, "val/ant/a.jpg", "val/bee/b.jpg")
    scandir = os.scandir

    def refusing(path):
        if os.fspath(path).endswith("bee"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert list_images(tmp_path) == (["val/ant/a.jpg"], ["val/bee"])
    with pytest.raises(PermissionError):
        open_source(f"{tmp_path}", "val")


@pytest.mark.parametrize(
    "files, labeled, unlabeled",
    [
        *(
            (("train/a/1.jpg", f"{name}/a/1.jpg", "test/a/1.jpg"), name, name)
            for name in ("val", "valid", "validation", "dev")
        ),
        (("train/a/1.jpg", "test/a/1.jpg"), "test", "test"),
        (("train/a/1.jpg", "valid/a/1.jpg", "more/1.jpg"), "valid", "valid"),
        (("train/a/1.jpg", "test/1.jpg"), "test", "test"),
        # classes
        (("train/1.jpg", "bus/1.jpg"), None, None),
        (("train/1.jpg", "test/1.jpg", "bus/1.jpg"), None, None),
        (("train/a/1.jpg", "bus/1.jpg"), None, None),
        (("train/1.jpg", "test/1.jpg"), None, "test"),
        (("train/1.jpg", "test/1.jpg", "1.jpg"), None, None),
        (("train/a/1.jpg", "test/a/1.jpg", "1.jpg"), "test", "test"),
        (("trainer/1.jpg", "train/1.jpg"), None, None),
        (("Train/1.jpg", "bus/1.jpg"), None, None),
        # Nothing is guessed.
        (("Train/a/1.jpg", "Valid/a/1.jpg"), InputError, InputError),
        (("train/a/1.jpg", "validation_set/a/1.jpg"), InputError, InputError),
        (("training/1.jpg", "testing/1.jpg"), None, InputError),
        (("train/a/1.jpg", "val/a/1.jpg", "dev/a/1.jpg"), InputError, InputError),
    ],
)
def test_splits_and_classes_of_one_name(tmp_path, files, labeled, unlabeled):
    make(tmp_path, *files)
    for is_labeled, val in ((True, labeled), (False, unlabeled)):
        if val is InputError:
            with pytest.raises(InputError, match="split"):
                split_folders(tmp_path, is_labeled)
        elif val is None:
            assert split_folders(tmp_path, is_labeled) == {}
        else:
            expected = {"train": "train", "val": val}
            assert split_folders(tmp_path, is_labeled) == expected


def test_a_class_called_train_is_measured_on(tmp_path):
    make(tmp_path, "val/bus/1.jpg", "val/train/1.jpg", "val/test/1.jpg")
    make(tmp_path, "train/bus/2.jpg", "train/train/2.jpg", "train/test/2.jpg")
    for name in (tmp_path, tmp_path / "val"):
        source = open_source(f"{name}", "val", class_names=("train", "bus", "test"))
        assert source.labels.tolist() == [1, 2, 0]
    assert len(as_source(tmp_path / "val")) == 3
    source = as_source(tmp_path)
    assert {source.name(index)[-5:] for index in range(3)} == {"2.jpg"}


@pytest.mark.parametrize(
    "others", [("valid",), ("test",), ("valid", "test"), ("more",)]
)
def test_only_train_is_learned_from(tmp_path, others, capsys):
    make(tmp_path, "train/a/1.jpg", *(f"{name}/a/2.jpg" for name in others))
    source = as_source(tmp_path)
    assert [source.name(index) for index in range(len(source))] == [
        f"{tmp_path}/train/a/1.jpg"
    ]
    assert "images in train are used" in capsys.readouterr().out
    (tmp_path / "train").rename(tmp_path / "apart")
    if others != ("more",):
        with pytest.raises(InputError, match="learn"):
            train_folder(tmp_path)


def test_a_set_of_train_alone_is_measured_on_nothing(tmp_path):
    make(tmp_path, "train/a/1.jpg", "held_back/a/2.jpg")
    assert len(open_source(f"{tmp_path}", "train")) == 1
    with pytest.raises(InputError, match="val/CLASS"):
        open_source(f"{tmp_path}", "val")


@pytest.mark.parametrize("other", ["Valid", "eval", "validation_set", "valid-images"])
def test_test_does_not_stand_in_for_a_split_of_another_name(tmp_path, other):
    for split in ("train", "test", other):
        make(tmp_path, f"{split}/ant/a.jpg", f"{split}/bee/b.jpg")
    with pytest.raises(InputError, match=other):
        split_folders(tmp_path, labeled=True)


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Valid", "annotations"),
        ("TRAIN", "TEST", "docs"),
        ("train", "Valid", "annotations"),
        ("training_set", "test_set", "docs"),
    ],
)
def test_splits_of_other_names_beside_another_folder(tmp_path, names):
    make(tmp_path, *(f"{name}/ant/a.jpg" for name in names[:2]))
    (tmp_path / names[2]).mkdir()
    for labeled in (False, True):
        with pytest.raises(InputError, match="split"):
            split_folders(tmp_path, labeled)


@pytest.mark.parametrize("other", ["valley", "trailer", "testudo"])
def test_a_class_may_begin_as_a_split_does(tmp_path, other):
    make(tmp_path, "train/a.jpg", f"{other}/b.jpg")
    assert split_folders(tmp_path) == {}


@pytest.mark.parametrize("names", [["caf\u00e9", "dog"], ["\u00e9a", "eb", "zz"]])
@pytest.mark.parametrize("is_known", [False, True])
def test_classes_of_both_splits_may_differ_in_the_form_of_unicode(
    tmp_path, names, is_known
):
    """Those of train decide the labels, whatever the order of those of val is."""
    for split, form in (("train", "NFC"), ("val", "NFD")):
        folders = [unicodedata.normalize(form, name) for name in names]
        make(tmp_path, *[f"{split}/{folder}/a.jpg" for folder in folders])
    order = names if is_known else sorted(names)
    for split in ("train", "val"):
        source = open_source(
            f"{tmp_path}",
            split,
            num_classes=len(names),
            class_names=names if is_known else None,
        )
        found = {}
        for place, label in enumerate(source.labels.tolist()):
            folder = pathlib.Path(source.name(place)).parent.name
            found[unicodedata.normalize("NFC", folder)] = label
        assert found == {name: label for label, name in enumerate(order)}
