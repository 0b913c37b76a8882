import os
import pathlib
import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data.source import FileSource
from imagepiece_jax.data.sources.digits import read_digits
from imagepiece_jax.data.sources.registry import open_source
from tests.data.test_preprocessing import resize
from tests.helpers.picture_files import write_csv, write_plain
from tests.helpers.refused_calls import refused


def read_labels(source):
    return [source[index].label for index in range(len(source))]


def image_names(source):
    return [source.image_name(index) for index in range(len(source))]


@pytest.fixture
def folder(tmp_path):
    """Two classes; an image's gray level is 10 times its number."""
    images = [f"train/{name}" for name in ("zebra/0.png", "zebra/1.PNG", "zebra/2.png")]
    images += [f"train/{name}" for name in ("ant/0.png", "ant/1.PNG", "ant/2.png")]
    images += ["val/zebra/0.png", "val/ant/0.png"]
    for number, image in enumerate(images):
        write_plain(tmp_path, image, color=(10 * number,) * 3)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    return tmp_path


# digits: scikit-learn documents 178 182 177 183 181 182 181 179 174 180 per class
COUNTS = {
    "train": [142, 146, 142, 146, 145, 146, 145, 143, 139, 144],
    "val": [36, 36, 35, 37, 36, 36, 36, 36, 35, 36],
}


def test_digits_splits_are_stratified_disjoint_and_fixed():
    names = {}
    for split, counts in COUNTS.items():
        source = open_source("digits", split, num_classes=10)
        assert source.class_names == tuple("0123456789")
        labels = read_labels(source)
        assert np.bincount(labels).tolist() == counts
        assert type(labels[0]) is int
        names[split] = image_names(source)
    assert len({*names["train"], *names["val"]}) == 1797
    # Accuracies of different runs and versions need the same split.
    assert zlib.crc32(" ".join(names["val"]).encode()) == 2120015296


def test_digits_are_scikit_learns_enlarged_bicubically():
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = read_digits()
    np.testing.assert_array_equal(pixels, datasets.load_digits().images)
    np.testing.assert_array_equal(labels, datasets.load_digits().target)
    source = open_source("digits", "val", num_classes=10)
    index = int(source.image_name(0).removeprefix("digits/"))
    small = np.round(pixels[index] * 255 / 16)
    truth = resize(resize(small.T, 16).T, 16)  # Pillow too: columns, then rows
    image, label, *_ = source[0]
    assert image.shape == (16, 16, 3)
    assert image.dtype == np.uint8
    assert label == labels[index]
    assert np.abs(image - truth[..., None]).max() <= 1


def test_a_folders_classes_are_sorted_by_name(folder):
    source = open_source(f"folder:{folder}", "train", num_classes=2)
    assert read_labels(source) == [0, 0, 0, 1, 1, 1]  # ant before zebra
    images = np.stack([source[index].pixels for index in range(6)])
    assert images[:, 0, 0, 0].tolist() == [30, 40, 50, 0, 10, 20]
    assert images[0].shape == (16, 16, 3)
    assert source.image_name(4) == str(folder / "train" / "zebra" / "1.PNG")
    (folder / "train" / "ant" / "1.PNG").write_bytes(b"torn")
    damaged = source[1]
    assert damaged.pixels is None and damaged.name in str(damaged.damage)


def test_validation_images_may_be_class_folders_alone(folder):
    whole = open_source(f"folder:{folder}", "val", num_classes=2)
    alone = open_source(f"{folder}/val", "val", num_classes=2)
    assert image_names(alone) == image_names(whole)
    assert read_labels(alone) == read_labels(whole) == [0, 1]
    with pytest.raises(FileNotFoundError, match=f"{folder}/val/train"):
        open_source(f"{folder}/val", "train")
    (folder / "train").rename(folder / "elsewhere")
    assert len(open_source(f"folder:{folder}", "val", num_classes=2)) == 2


@pytest.mark.parametrize(
    "name, split, num_classes, field",
    [
        ("mnist", "val", 2, "no data set"),
        ("folder:", "val", 2, "no data set"),
        ("digits:x", "val", 2, "no data set"),
        ("digits", "test", 10, "split"),
        ("imagenet2012", "val", 10, "num_classes"),
    ],
)
def test_an_unknown_set_or_split_is_refused(name, split, num_classes, field):
    with refused(field):
        open_source(name, split, num_classes=num_classes)


def change_byte(path):
    """Change one byte of a file, not its size; its times stay."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def append_byte(path):
    path.write_bytes(path.read_bytes() + b"0")


@pytest.mark.parametrize(
    "change",
    [
        change_byte,
        append_byte,
        pathlib.Path.unlink,
        lambda path: path.rename(path.with_name("9.png")),
        lambda path: path.rename(path.parent.parent / "ant" / "9.png"),
    ],
)
def test_other_images_change_the_digest(folder, tmp_path_factory, change):
    copy = tmp_path_factory.mktemp("copy") / "set"
    shutil.copytree(folder, copy)
    source = open_source(f"folder:{folder}", "train")
    assert open_source(f"folder:{copy}", "train").digest == source.digest
    assert open_source(f"folder:{folder}", "val").digest != source.digest
    change(copy / "train" / "zebra" / "2.png")
    assert open_source(f"folder:{copy}", "train").digest != source.digest


def test_other_labels_change_the_digest(tmp_path):
    digits = open_source("digits", "val")
    assert digits.digest != open_source("digits", "train").digest
    table = write_csv(tmp_path, digits.images[:2], [4, 0])
    first = open_source(table, "val", num_classes=5).digest
    write_csv(tmp_path, digits.images[:2], [4, 1])
    assert open_source(table, "val", num_classes=5).digest != first


def test_a_digest_reads_a_parts_images_and_few_of_a_large_set(folder):
    full = open_source(f"folder:{folder}", "train")
    part = full.subset([5, 0, 1]).subset([1, 2])
    assert part.digest == full.subset([0, 1]).digest != full.digest
    append_byte(folder / "train" / "zebra" / "2.png")
    changed = open_source(f"folder:{folder}", "train")
    assert changed.subset([0, 1]).digest == part.digest
    assert changed.digest != full.digest
    source = FileSource(folder, ["train/ant/0.png"] * 1000, [0] * 1000, 2)
    read_places = []
    stored_image = source.stored_image
    source.stored_image = lambda place: read_places.append(place) or stored_image(place)
    assert len(source.digest) == 16
    assert len(read_places) == 64
    read_places.sort()  # threads read in any order
    assert (read_places[0], read_places[-1]) == (0, 999)
    assert set(np.diff(read_places)) <= {15, 16}


def test_a_part_is_spread_evenly_over_the_source(folder, tmp_path):
    """It has both classes twice; the first four images would be 3 and 1."""
    full = open_source(f"folder:{folder}", "train")
    part = full.evenly_spaced(4)
    assert (len(full), len(part)) == (6, 4)
    assert part.num_classes == 2
    assert part.class_names == full.class_names
    places = [0, 2, 3, 5]
    assert image_names(part) == [full.image_name(place) for place in places]
    assert read_labels(part) == [full[place].label for place in places]
    assert full.evenly_spaced(6) is full.evenly_spaced(None) is full
    assert full.evenly_spaced(1).image_name(0) == full.image_name(0)
    assert full.subset(range(4)).subset_record != part.subset_record
    assert full.subset_record == {}
    files = [f"{number // 37}/{number % 37}" for number in range(370)]
    source = FileSource(tmp_path, files, np.arange(370) // 37, 10)
    for count in (10, 40, 100):
        labels = source.labels[source.evenly_spaced(count).indices]
        assert set(np.bincount(labels, minlength=10)) == {count // 10}


def test_a_whole_digest_tells_images_of_equal_sizes_apart(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (101, 8, 8, 3), np.uint8)
    names = [f"{number:03}.bmp" for number in range(100)]
    for name, image in zip(names, pixels, strict=False):
        Image.fromarray(image).save(tmp_path / name)

    def open_folder():
        return FileSource(tmp_path, names, [0] * 100)

    before = open_folder()
    sampled_digest = before.digest
    whole = before.subset(range(50)).whole_digest
    assert whole != open_folder().whole_digest
    Image.fromarray(pixels[100]).save(tmp_path / names[2])  # not among the 64 read
    assert open_folder().digest == sampled_digest
    assert open_folder().subset(range(50)).whole_digest != whole
