"""Splits, class names and errors of a CSV file."""

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data.csv_table import read_csv
from imagepiece_jax.data.sources import open_source
from imagepiece_jax.errors import InputError


@pytest.fixture
def images(tmp_path):
    """a.png to f.png, each of its own gray level."""
    (tmp_path / "images").mkdir()
    for level, name in enumerate("abcdef"):
        pixels = np.full((4, 4, 3), 10 * level, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def written(folder, text, columns="filename,label,split"):
    """set.csv with rows such as "a,0,train"; names are those of images without .png."""
    rows = [f"images/{row.replace(',', '.png,', 1)}" for row in text.split()]
    path = folder / "set.csv"
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def levels(path, split):
    source = open_source(f"csv:{path}", split)
    return [int(source.read(i)[0][0, 0, 0]) for i in range(len(source))]


def refused(path, message, split="val", num_classes=None):
    with pytest.raises(InputError, match=message) as caught:
        read_csv(path, split, num_classes)
    assert "\n" not in str(caught.value)


def test_no_image_is_in_both_splits(images):
    path = written(images, "a,0,train b,1,val c,1,train d,0,val e,1,train")
    assert levels(path, "train") == [0, 20, 40]
    assert levels(path, "val") == [10, 30]
    for split in ("train", "val"):
        assert open_source(f"csv:{path}", split).num_classes == 2


def test_without_a_split_there_are_test_images_alone(images):
    path = written(images, "a,0 b,1", "filename,label")
    assert levels(path, "val") == [0, 10]
    message = (
        "has no column 'split', so its images can only be tested on; to train, add "
    )
    refused(path, message + "the column, with train or val in every row", "train")


@pytest.mark.parametrize("split", ["test", "", "Train", "validation"])
def test_other_splits_are_refused(images, split):
    path = written(images, f"a,0,train b,0,{split}")
    refused(path, f"set.csv line 3: split is '{split}'; allowed: train, val")


def test_a_split_needs_images(images):
    path = written(images, "a,0,train b,1,train")
    refused(path, "has no row with split 'val'")
    refused(written(images, "a,0,val"), "has no row with split 'train'", "train")


@pytest.mark.parametrize(
    "rows, message",
    [
        ("a,0,train a,0,val", "must not be in both train and val"),
        ("a,0,val b,0,train ../images/a,0,train", "must not be in both train and val"),
        ("a,0,train ../linked/a,0,val", "must not be in both train and val"),
        ("a,0,train b,0,val b,0,val", "a test image must count once"),
        ("a,0,train c,0,val a,1,train", "its labels differ, 0 and 1"),
    ],
)
def test_an_image_that_is_named_again(images, rows, message):
    (images / "linked").symlink_to(images / "images")
    path = written(images, rows)
    for split in ("train", "val"):
        refused(path, rf"names '.*' again \(line [23]\); .*{message}", split)


def test_training_may_see_an_image_more_often(images):
    path = written(images, "a,0,train b,0,val a,0,train")
    assert levels(path, "train") == [0, 0]


def test_a_class_without_training_images(images):
    path = written(images, "a,0,train b,1,val c,2,train")
    message = "has no training image with label 1; each of the 3 classes needs some"
    refused(path, message, "train")
    assert levels(path, "val") == [10]
    path = written(images, "a,0,train b,1,val c,1,train")
    refused(path, "has no training image with label 2; .* 5 classes", "train", 5)


def test_blanks_line_ends_commas_and_byte_order_mark_change_nothing(images):
    text = (
        "\ufefffilename, label , split, class\r\nimages/a.png, 1, train, big cat \r\n"
        "images/b.png,0 ,val,ant,\r\n\r\nimages/c.png,1, val ,big cat"
    )
    path = images / "set.csv"
    path.write_bytes(text.encode())
    table = read_csv(path, "val")
    assert table == (["images/b.png", "images/c.png"], [0, 1], 2, ("ant", "big cat"))


@pytest.mark.parametrize("label", ["1_0", "²", "٣", "+1", "1e0", "1" * 10])
def test_a_label_is_plain_digits(images, label):
    refused(written(images, f"a,{label},val"), "line 2: label is .*whole numbers")


@pytest.mark.parametrize(
    "rows, message",
    [
        ("a,0,cat b,0,dog", "line 3: class is 'dog' for label 0, but 'cat' in line 2"),
        ("a,0,cat b,1,", "line 3: class is ''; allowed: a name in every row"),
        ("a,0,cat b,1", "line 3: class is ''"),
        ("a,0,cat,black", "line 2 has more fields than the 3 columns; text with a com"),
    ],
)
def test_class_names_that_do_not_fit(images, rows, message):
    refused(written(images, rows, "filename,label,class"), message)


def test_a_column_that_is_there_twice(images):
    path = written(images, "a,0,1", "filename,label,label")
    refused(path, "set.csv has more than one column 'label'")


def test_labels_may_share_a_name(images):
    """ImageNet's cranes are a bird and a machine."""
    path = written(images, "a,0,crane b,1,crane", "filename,label,class")
    assert read_csv(path, "val").class_names == ("crane", "crane")


def test_labels_that_are_not_read(images):
    """Of training images alone; what is tested on has a label and its class."""
    path = written(
        images,
        "a,,train, b,cat,train,x c,5,train, c,7,train, d,1,val,bee e,0,val,ant",
        "filename,label,split,class",
    )
    refused(path, "line 2: label is ''")
    table = read_csv(path, "train", num_classes=3, labeled=False)
    assert table.labels == [-1] * 4 and table.num_classes == 3
    tested = read_csv(path, "val", labeled=False)
    assert tested.labels == [1, 0] and tested.class_names == ("ant", "bee")
    path = written(images, "a,,train b,,val")
    with pytest.raises(InputError, match="line 3: label is ''"):
        read_csv(path, "train", labeled=False)
    path = written(images, "a,,train a,1,val")
    with pytest.raises(InputError, match="must not be in both train and val"):
        read_csv(path, "train", labeled=False)
