"""hf:FOLDER: parquet files like the Hugging Face hub's, read by `datasets`."""

import os
import shutil

import pytest
from PIL import Image

datasets = pytest.importorskip("datasets")

from imagepiece_jax.data.batches import Batches  # noqa: E402
from imagepiece_jax.data.preprocessing import Preprocessing  # noqa: E402
from imagepiece_jax.data.sources.registry import open_source  # noqa: E402
from imagepiece_jax.data.worker_pool import read_ahead  # noqa: E402
from imagepiece_jax.errors import InputError, NoLabels  # noqa: E402
from tests.data.test_decode import encode  # noqa: E402
from tests.helpers.picture_files import write_plain  # noqa: E402

CLASSES = datasets.ClassLabel(names=["ant", "bee", "cat"])
SPLIT_NUMBERS = {"train": range(40), "validation": range(40, 56), "test": range(56, 60)}


def write_split(folder, split, numbers, kind=CLASSES, labels=None):
    """A parquet file of images; image n has gray level 4 n."""
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    images = []
    for number in numbers:
        image = Image.new("RGB", (8, 8), (4 * number,) * 3)
        images.append({"bytes": encode(image, "PNG"), "path": None})
    labels = labels or [number % 3 for number in numbers]
    rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features)
    rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Parquet files of three classes: 40 training images, and 16 and 4 others."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    (tmp_path / "set").mkdir()
    for split, numbers in SPLIT_NUMBERS.items():
        write_split(tmp_path / "set", split, numbers)
    return tmp_path / "set"


def test_rows_are_read_in_order_with_and_without_workers(folder):
    source = open_source(f"hf:{folder}", "train")
    assert (source.num_classes, source.class_names) == (3, ("ant", "bee", "cat"))
    assert source.labels.tolist() == [number % 3 for number in range(40)]
    assert source.image_name(7) == f"hf:{folder}/train/7"
    one_image_batches = Batches(source=source, transform=Preprocessing(8), batch_size=1)
    for workers in (0, 2):
        batches = [*read_ahead(one_image_batches, workers, threads=2)]
        levels = [batch["image"][0, 0, 4, 4, 0] for batch in batches]
        assert levels == [4 * number for number in range(40)]


def refused(folder, message, split="train", error=InputError, **options):
    with pytest.raises(error, match=f"hf:{folder} .*{message}"):
        open_source(f"hf:{folder}", split, **options)


def test_splits_have_the_hubs_names(folder):
    write_split(folder, "test", SPLIT_NUMBERS["test"], labels=[-1] * 4)
    assert len(open_source(f"hf:{folder}", "val")) == 16
    os.unlink(folder / "validation-00000-of-00001.parquet")
    refused(folder, "has labels other than 0 to 2", "val")
    write_split(folder, "test", SPLIT_NUMBERS["test"])
    assert len(open_source(f"hf:{folder}", "val")) == 4
    os.unlink(folder / "test-00000-of-00001.parquet")
    refused(folder, "has train, and no row for val", "val")


def test_plain_numbers_are_labels_and_unlabeled_reading_needs_none(folder):
    for split, numbers in SPLIT_NUMBERS.items():
        write_split(folder, split, numbers, datasets.Value("int64"))
    source = open_source(f"hf:{folder}", "train")
    assert (source.num_classes, source.class_names) == (3, None)
    refused(folder, "labels other than 0 to 1", num_classes=2)
    write_split(folder, "train", range(2), datasets.Value("int64"), [0, None])
    refused(folder, "labels other than 0 to")
    source = open_source(f"hf:{folder}", "train", labeled=False)
    assert [source[index].label for index in range(2)] == [-1] * 2


def test_other_classes_and_columns_are_refused(folder, tmp_path):
    refused(folder, "has 3 classes", num_classes=4)
    rows = datasets.load_dataset(str(folder), split="train")
    other = tmp_path / "other"
    other.mkdir()
    rows.remove_columns("label").to_parquet(other / "train.parquet")
    assert len(open_source(f"hf:{other}", "train", labeled=False)) == 40
    refused(other, "needs .*label", error=NoLabels)
    (other / "train.parquet").write_bytes(b"PAR1")
    refused(other, "cannot be opened: .*arquet")


def digest(folder):
    return open_source(f"hf:{folder}", "train").digest


def test_other_rows_change_the_digest(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    first = digest(folder)
    assert digest(copy) == first
    write_split(copy, "train", SPLIT_NUMBERS["train"], labels=[0] * 40)
    relabeled = digest(copy)
    write_split(copy, "train", [*range(39), 63])
    part = open_source(f"hf:{folder}", "train").evenly_spaced(9)
    assert len({first, relabeled, digest(copy), part.digest}) == 4


def test_image_files_of_equal_sizes_differ_in_a_digest(folder):
    folder = write_plain(folder / "files", "train/a/a.bmp", "train/b/b.bmp")
    before = digest(folder)
    (folder / "train" / "a" / "a.bmp").rename(folder / "train" / "a" / "c.bmp")
    renamed = digest(folder)
    write_plain(folder, "train/b/b.bmp", color=(3, 3, 3))
    assert len({before, renamed, digest(folder)}) == 3
