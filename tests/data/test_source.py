import pathlib
import shutil
import zlib

import numpy as np
import pytest

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
    source = open_source("digits", "val")
    index = int(source.image_name(0).removeprefix("digits/"))
    small = np.round(pixels[index] * 255 / 16)
    truth = resize(resize(small.T, 16).T, 16)  # Pillow too: columns, then rows
    assert source[0].label == labels[index]
    assert source[0].pixels.shape == (16, 16, 3)
    assert np.abs(source[0].pixels - truth[..., None]).max() <= 1


def test_a_folders_classes_are_sorted_by_name(folder):
    source = open_source(f"folder:{folder}", "train", num_classes=2)
    assert read_labels(source) == [0, 0, 0, 1, 1, 1]  # ant before zebra
    levels = [source[index].pixels[0, 0, 0] for index in range(6)]
    assert levels == [30, 40, 50, 0, 10, 20]
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


def test_unknown_sets_splits_and_classes_are_refused():
    for name in ("mnist", "digits:x"):
        with refused(name, "no data set"):
            open_source(name, "val")
    with refused("split"):
        open_source("digits", "test")
    with refused("num_classes"):
        open_source("imagenet2012", "val", num_classes=2)


def change_byte(path):
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def rename(path):
    path.rename(path.with_name("9.png"))


@pytest.mark.parametrize("change", [change_byte, pathlib.Path.unlink, rename])
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


def test_a_parts_digest_depends_on_its_images_alone(folder):
    full = open_source(f"folder:{folder}", "train")
    part = full.subset([5, 0, 1]).subset([1, 2])
    assert part.digest == full.subset([0, 1]).digest != full.digest
    change_byte(folder / "train" / "zebra" / "2.png")
    changed = open_source(f"folder:{folder}", "train")
    assert changed.subset([0, 1]).digest == part.digest
    assert changed.digest != full.digest


def test_a_digest_reads_few_images_and_a_whole_digest_all(folder, monkeypatch):
    # Images 0, 2 and 5.
    monkeypatch.setattr("imagepiece_jax.data.source.SAMPLED_IMAGES", 3)
    before = open_source(f"folder:{folder}", "train")
    digests = before.digest, before.whole_digest
    change_byte(folder / "train" / "ant" / "1.PNG")
    after = open_source(f"folder:{folder}", "train")
    assert after.digest == digests[0]
    assert after.whole_digest != digests[1]


def test_a_part_is_spread_evenly_over_the_source(folder):
    """It has both classes twice; the first four images would be 3 and 1."""
    full = open_source(f"folder:{folder}", "train")
    part = full.evenly_spaced(4)
    assert (len(full), len(part)) == (6, 4)
    assert part.class_names == full.class_names
    places = [0, 2, 3, 5]
    assert image_names(part) == [full.image_name(place) for place in places]
    assert read_labels(part) == [full[place].label for place in places]
    assert full.evenly_spaced(6) is full.evenly_spaced(None) is full
    assert full.subset(range(4)).subset_record != part.subset_record
    assert full.subset_record == {}
