"""Training images of a folder without labels."""

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data.sources import open_source
from imagepiece_jax.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Two classes, three images each to train on and one to test on."""
    for split, count in (("train", 3), ("val", 1)):
        for name in ("zebra", "ant"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                image = Image.fromarray(np.zeros((4, 5, 3), np.uint8))
                image.save(tmp_path / split / name / f"{index}.png")
    return tmp_path


def unlabeled(folder, split="train"):
    return open_source(f"folder:{folder}", split, num_classes=2, labeled=False)


def test_unlabeled_images_are_anywhere_in_train(folder):
    """Loose, in folders of classes or in others; classes are those of val."""
    (folder / "train" / "zebra").rename(folder / "train" / "more")
    (folder / "train" / "more" / "1.png").rename(folder / "train" / "loose.png")
    (folder / "train" / ".hidden.png").touch()
    (folder / "train" / "round").symlink_to(folder / "train")
    source, val = unlabeled(folder), unlabeled(folder, "val")
    names = [source.name(i).removeprefix(f"{folder}/train/") for i in range(6)]
    assert len(source) == 6 and names[0] == "loose.png"
    assert [name.split("/")[0] for name in names[1:]] == ["ant"] * 3 + ["more"] * 2
    assert [source.read(i)[1] for i in range(6)] == [-1] * 6
    assert source.class_names == val.class_names == ("ant", "zebra")
    assert [val.read(i)[1] for i in range(2)] == [0, 1]


def test_unlabeled_images_are_never_tested_on(folder):
    (folder / "train" / "again").symlink_to(folder / "val" / "ant")
    with pytest.raises(InputError, match="train/again is a part of .*val, by a link"):
        unlabeled(folder)


def test_unlabeled_images_must_be_there(folder):
    (folder / "train").rename(folder / "elsewhere")
    (folder / "train").mkdir()
    with pytest.raises(InputError, match="train holds no image; allowed: .jpg"):
        unlabeled(folder)
