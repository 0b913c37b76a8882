import pathlib
import unicodedata

import pytest

from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.data.source import VALIDATION_NAMES
from imagepiece_jax.data.sources.folder import find_split_folders
from imagepiece_jax.data.sources.registry import open_source
from tests.helpers.picture_files import write_plain
from tests.helpers.refused_calls import refused


def test_system_files_are_left_out_and_counted(tmp_path, capsys, caplog):
    for split in ("train", "val"):
        write_plain(tmp_path, f"{split}/ant/a.jpg", f"{split}/bee/b.jpg")
        for name in ("@eaDir", "__MACOSX", ".thumbnails"):
            write_plain(tmp_path, f"{split}/{name}/x.jpg", f"{split}/ant/{name}/x.jpg")
        write_plain(tmp_path, f"{split}/bee/._b.jpg")
        (tmp_path / split / "bee" / "Thumbs.db").touch()
        source = open_source(f"{tmp_path}", split, num_classes=2)
        assert (len(source), source.class_names) == (2, ("ant", "bee"))
        assert "6 without ending, 1 .jpg, 1 .db" in caplog.records[-1].getMessage()
    assert len(as_source(tmp_path / "train")) == 2
    assert "1 .db left out" in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    with refused(f"folder {tmp_path / 'none'}", "holds no images"):
        as_source(tmp_path / "none")


def test_a_class_may_have_subfolders(tmp_path):
    """Like torchvision and timm; the class folder's own images come first."""
    places = ["0.png", "b/2.png", "b/deep/3.png", "a/1.png", ".hidden/4.png"]
    zebra = write_plain(tmp_path / "val" / "zebra", *places, "5.jpg/6.png")
    write_plain(tmp_path / "val" / "ant", "0.png")
    (zebra / "b" / "again").symlink_to(zebra)
    (zebra / "gone.png").symlink_to("nothing.png")  # unreadable
    source = open_source(f"folder:{tmp_path}", "val")
    names = ["0.png", "gone.png", "5.jpg/6.png", "a/1.png", "b/2.png", "b/deep/3.png"]
    paths = [source.image_name(index) for index in range(1, 7)]
    assert paths == [str(zebra / name) for name in names]
    assert source.labels.tolist() == [0, 1, 1, 1, 1, 1, 1]


# (folders with an image each, the evaluated split: labeled, unlabeled)
SPLITS = [
    *((f"train/a {name}/a test/a", name, name) for name in VALIDATION_NAMES),
    ("train/a test/a", "test", "test"),
    ("train/a test", "test", "test"),
    ("train test", None, "test"),
    # classes
    ("train test bus", None, None),
    ("train/a bus", None, None),
    ("train test .", None, None),
    ("Train bus", None, None),
]


@pytest.mark.parametrize("folders, labeled, unlabeled", SPLITS)
def test_splits_and_classes_of_one_name(tmp_path, folders, labeled, unlabeled):
    write_plain(tmp_path, *(f"{name}/1.jpg" for name in folders.split()))
    for is_labeled, val in ((True, labeled), (False, unlabeled)):
        expected = {"train": "train", "val": val} if val else {}
        assert find_split_folders(tmp_path, is_labeled) == expected
    write_plain(tmp_path, "val/a/1.jpg", "valid/a/1.jpg")
    with refused("has both val and valid"):
        find_split_folders(tmp_path, labeled=True)


def test_both_splits_need_the_same_classes(tmp_path):
    write_plain(tmp_path, "train/ant/1.jpg", "train/bee/1.jpg", "val/ant/1.jpg")
    for split in ("train", "val"):
        with refused(tmp_path, "class 'bee' in one split"):
            open_source(f"{tmp_path}", split)


def test_linked_splits_are_refused(tmp_path):
    write_plain(tmp_path, "train/a/1.jpg")
    (tmp_path / "val").symlink_to("train")
    with refused("the same folder in both splits"):
        open_source(f"{tmp_path}", "val")


def test_a_class_may_be_called_train(tmp_path):
    for split in ("train", "val"):
        names = ("bus", "train", "test")
        write_plain(tmp_path, *(f"{split}/{name}/1.jpg" for name in names))
    for name in (tmp_path, tmp_path / "val"):
        source = open_source(f"{name}", "val", class_names=("train", "bus", "test"))
        assert source.labels.tolist() == [1, 2, 0]


def test_unlabeled_images_are_those_of_train(tmp_path, capsys):
    write_plain(tmp_path, "train/a/1.jpg", "valid/a/2.jpg", "test/a/2.jpg")
    source = as_source(tmp_path)
    assert (len(source), source.image_name(0)) == (1, f"{tmp_path}/train/a/1.jpg")
    assert "images in train are used" in capsys.readouterr().out
    (tmp_path / "train").rename(tmp_path / "apart")
    with pytest.raises(FileNotFoundError, match="train"):
        as_source(tmp_path)


@pytest.mark.parametrize("names", [["caf\u00e9", "dog"], ["\u00e9a", "eb", "zz"]])
@pytest.mark.parametrize("is_known", [False, True])
def test_splits_may_differ_in_unicode_form(tmp_path, names, is_known):
    """The train split's folders decide the labels, not the val split's order."""
    for split, form in (("train", "NFC"), ("val", "NFD")):
        folders = [unicodedata.normalize(form, name) for name in names]
        write_plain(tmp_path, *[f"{split}/{folder}/a.jpg" for folder in folders])
    order = names if is_known else sorted(names)
    known_names = names if is_known else None
    for split in ("train", "val"):
        source = open_source(f"{tmp_path}", split, class_names=known_names)
        label_of_class = {}
        for place, label in enumerate(source.labels.tolist()):
            folder = pathlib.Path(source.image_name(place)).parent.name
            label_of_class[unicodedata.normalize("NFC", folder)] = label
        assert label_of_class == {name: label for label, name in enumerate(order)}
