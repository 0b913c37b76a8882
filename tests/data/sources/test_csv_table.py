import re

import pytest

from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.data.sources.csv_table import open_csv
from imagepiece_jax.data.sources.registry import open_source
from imagepiece_jax.errors import InputError
from tests.helpers.picture_files import write_plain

SPLIT = "filename,label,split"
NO_SPLIT = "filename,label"
NAMED = "filename,label,class"


@pytest.fixture
def images(tmp_path):
    """a.png to f.png, of six gray levels."""
    for level, name in enumerate("abcdef"):
        write_plain(tmp_path, f"images/{name}.png", color=(10 * level,) * 3)
    return tmp_path


def write_table(folder, text, columns=SPLIT):
    """Write set.csv from rows such as "a,0,train"; names get .png."""
    rows = [f"images/{row.replace(',', '.png,', 1)}" for row in text.split()]
    path = folder / "set.csv"
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def gray_levels(source):
    return [int(source[i].pixels[0, 0, 0]) for i in range(len(source))]


def levels(path, split):
    return gray_levels(open_source(f"csv:{path}", split))


def refused(path, message, split="val", num_classes=None):
    with pytest.raises(InputError, match=message) as caught:
        open_csv(path, split, num_classes)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_no_image_is_in_both_splits(images):
    path = write_table(images, "a,0,train b,1,val c,1,train d,0,val e,1,train")
    assert levels(path, "train") == [0, 20, 40]
    assert levels(path, "val") == [10, 30]
    for split in ("train", "val"):
        assert open_source(f"csv:{path}", split).num_classes == 2
    assert levels(write_table(images, "a,0,train b,0,val a,0,train"), "train") == [0, 0]
    path = write_table(images, "a,0 b,1", NO_SPLIT)
    assert levels(path, "val") == [0, 10]
    refused(path, "has no row with split 'train'", "train")
    path = write_table(images, "a,0,train b,1,val c,1,train")
    assert levels(path, "val") == [10]
    refused(path, "no row with split 'train' and label 2", "train", 5)


NO_LABELS = ("1_0", "²", "+1", "1e0", "1.0", "-1", "5", "", "1" * 10)


@pytest.mark.parametrize(
    "columns, rows, field, value",
    [
        *((SPLIT, f"b,0,{split}", "split", split) for split in ("tests", "", "Train")),
        *((NO_SPLIT, f"b,{label}", "label", label) for label in NO_LABELS),
        (NO_SPLIT, "b", "label", ""),
        (NO_SPLIT, "g,0", "filename", "images/g.png"),
        (NO_SPLIT, "folder,0", "filename", "images/folder.png"),
        (NAMED, "b,4,dog", "class", "dog"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(images, columns, rows, field, value):
    """Line 2 has another class for label 4."""
    (images / "images" / "folder.png").mkdir()
    first = {SPLIT: "a,4,val", NO_SPLIT: "a,4", NAMED: "a,4,cat"}[columns]
    path = write_table(images, f"{first} {rows}", columns)
    refused(path, f"line 3: {field} is .*{re.escape(repr(value))}", num_classes=5)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    "rows, lines",
    [
        ("a,0,train a,0,val", "2 and 3"),
        ("a,0,val b,0,train ../images/a,0,train", "2 and 4"),
        ("a,0,train b,0,val b,0,val", "3 and 4"),
        ("a,0,train c,0,val a,1,train", "2 and 4"),
    ],
)
def test_contradicting_rows_are_refused(images, split, rows, lines):
    path = write_table(images, rows)
    refused(path, f"names '.*' in lines {lines}; .*may repeat", split)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"file,label\nimages/a.png,0\n", "one must be 'filename'"),
        (b"", "one must be 'filename'"),
        (b"filename,label\nimages/a.png,0,1\n", "line 2: it has more fields than"),
        (b"filename,label,label\na.png,0,1\n", "'label', 'label'.*none twice"),
        (b"filename,label\n", "has no row with split 'val'"),
        (b"\xff\xfe\x00\x00\x81", "codec can't decode"),
    ],
)
def test_a_file_that_is_no_table_is_refused(images, content, message):
    (images / "set.csv").write_bytes(content)
    refused(images / "set.csv", message)


def test_blanks_line_ends_commas_and_byte_order_mark_change_nothing(images):
    text = (
        "\ufefffilename, label , split, class\r\nimages/a.png, 1, train, big cat \r\n"
        "images/b.png,0 ,val,ant,\r\n\r\nimages/c.png,1, val ,big cat"
    )
    path = images / "set.csv"
    path.write_bytes(text.encode())
    table = open_csv(path, "val")
    assert table.files.tolist() == [b"images/b.png", b"images/c.png"]
    assert (table.labels.tolist(), table.class_names) == ([0, 1], ("ant", "big cat"))
    # ImageNet's cranes are a bird and a machine.
    path = write_table(images, "a,0,crane b,1,crane", NAMED)
    assert open_csv(path, "val").class_names == ("crane", "crane")


def test_a_test_split_serves_without_a_validation_split(images):
    for name in ("val", "valid", "validation"):
        path = write_table(images, f"a,0,train b,-1,test c,0,{name}")
        assert levels(path, "train") == [0]
        assert (levels(path, "val"), open_csv(path, "val").split) == ([20], name)
    path = write_table(images, "a,0,train b,0,test")
    assert (levels(path, "val"), open_csv(path, "val").split) == ([10], "test")
    refused(write_table(images, "a,0,valid b,0,val"), "has both val and valid")
    refused(write_table(images, "a,0,train a,0,test b,0,val"), "in lines 2 and 3")


@pytest.mark.parametrize(
    "columns, rows, expected",
    [
        ("filename", "a b c", [0, 10, 20]),
        (NO_SPLIT, "a,-1 b, c,cat", [0, 10, 20]),
        ("filename,split", "a,train b,val c,train", [0, 20]),
        (SPLIT, "a,-1,train b,-1,val c,,test", [0]),
        (SPLIT, "a,0,train a,1,train", [0, 0]),
    ],
)
def test_unlabeled_reading_needs_no_labels(images, columns, rows, expected):
    words = [row if "," in row else f"{row}," for row in rows.split()]
    path = write_table(images, " ".join(words), columns)
    source = as_source(f"csv:{path}")
    assert gray_levels(source) == expected
    assert {*source.labels.tolist()} == {-1}
    if "0," not in rows:
        refused(path, "label", "train" if "split" in columns else "val")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_table_may_have_excels_encodings(images, encoding):
    text = "filename,label,class\r\nimages/a.png,0,f\u00fcr\r\n"
    if encoding == "utf-16-le":
        text = f"\ufeff{text}"
    (images / "set.csv").write_bytes(text.encode(encoding))
    assert open_csv(images / "set.csv", "val").class_names == ("f\u00fcr",)
