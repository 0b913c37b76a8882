import pytest

from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.data.sources.registry import open_source
from tests.helpers.picture_files import write_plain
from tests.helpers.refused_calls import refused

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


def open_table(path, split="val", num_classes=None):
    return open_source(f"csv:{path}", split, num_classes=num_classes)


def gray_levels(source):
    return [int(source[i].pixels[0, 0, 0]) for i in range(len(source))]


@pytest.mark.parametrize(
    "rows, train, val, val_split",
    [
        ("a,0,train b,1,val c,1,train d,0,val", [0, 20], [10, 30], "val"),
        ("a,0,train b,0,val a,0,train", [0, 0], [10], "val"),
        ("a,0,train b,-1,test c,0,validation", [0], [20], "validation"),
        ("a,0,train b,0,test", [0], [10], "test"),
    ],
)
def test_no_image_is_in_both_splits(images, rows, train, val, val_split):
    path = write_table(images, rows)
    source = open_table(path)
    assert (gray_levels(source), source.split) == (val, val_split)
    assert gray_levels(open_table(path, "train")) == train
    # The labels of both splits count.
    assert open_table(path, "train").num_classes == source.num_classes


def test_all_rows_are_validation_images_without_a_column_split(images):
    path = write_table(images, "a,0 b,1", NO_SPLIT)
    assert gray_levels(open_table(path)) == [0, 10]
    with refused(path, "has no row with split 'train'"):
        open_table(path, "train")
    path = write_table(images, "a,0,train b,1,val c,1,train")
    with refused("no row with split 'train' and label 2"):
        open_table(path, "train", num_classes=5)


NO_LABELS = ("1_0", "²", "+1", "1e0", "1.0", "-1", "5", "", "1" * 10)


@pytest.mark.parametrize(
    "columns, rows, message",
    [
        *((NO_SPLIT, f"a,4 b,{label}", "line 3: label is ") for label in NO_LABELS),
        (SPLIT, "a,4,val b,0,tests", "line 3: split is 'tests'"),
        (NO_SPLIT, "a,4 g,0", "line 3: filename is 'images/g.png'"),
        (NAMED, "a,4,cat b,4,dog", "line 3: class is 'dog', not 'cat'"),
        (SPLIT, "a,0,train a,0,val", "in lines 2 and 3"),
        (SPLIT, "a,0,val b,0,train ../images/a,0,train", "in lines 2 and 4; only"),
        (SPLIT, "a,0,train c,0,val a,1,train", "in lines 2 and 4"),
        (SPLIT, "a,0,train b,0,val b,0,val", "in lines 3 and 4"),
        (SPLIT, "a,0,valid b,0,val", "has both val and valid"),
        (NO_SPLIT, "a,0,1", "line 2: it has more fields than"),
        ("file,label", "a,0", "one must be 'filename'"),
        ("filename,label,label", "a,0,1", "none twice"),
    ],
)
def test_wrong_tables_are_refused(images, columns, rows, message):
    path = write_table(images, rows, columns)
    with refused(path, message):
        open_table(path, num_classes=5)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_blanks_line_ends_commas_and_excels_encodings_change_nothing(images, encoding):
    text = (
        "filename, label , split, class\r\nimages/a.png, 1, train, big cat \r\n"
        "images/b.png,0 ,val,f\u00fcr,\r\n\r\nimages/c.png,1, val ,big cat"
    )
    path = images / "set.csv"
    path.write_bytes(text.encode(encoding))
    table = open_table(path)
    assert table.files.tolist() == [b"images/b.png", b"images/c.png"]
    assert table.labels.tolist() == [0, 1]
    assert table.class_names == ("f\u00fcr", "big cat")


@pytest.mark.parametrize(
    "columns, rows, expected",
    [
        ("filename", "a, b, c,", [0, 10, 20]),
        (NO_SPLIT, "a,-1 b, c,cat", [0, 10, 20]),
        ("filename,split", "a,train b,val c,train", [0, 20]),
        (SPLIT, "a,-1,train b,-1,val c,,test", [0]),
    ],
)
def test_unlabeled_reading_needs_no_labels(images, columns, rows, expected):
    path = write_table(images, rows, columns)
    source = as_source(f"csv:{path}")
    assert gray_levels(source) == expected
    assert {*source.labels.tolist()} == {-1}
    with refused(path, "label"):
        open_table(path)
