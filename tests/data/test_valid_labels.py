"""The classes that a model chooses among: all, those of the images, those of a file."""

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data import valid_labels
from imagepiece_jax.data.registry import open_source
from imagepiece_jax.data.source import FileSource
from tests.refused import refused


def source(*labels, num_classes=1000):
    files = [f"{place}.png" for place in range(len(labels))]
    return FileSource("", files, labels, num_classes)


def test_the_labels_of_the_images_are_those_of_the_whole_set():
    """Not those of the images that --limit takes."""
    images = source(701, 0, 217, 0, 569, 217)
    for taken in (images, images.spread(2)):
        assert valid_labels.read("data", taken) == (0, 217, 569, 701)
        assert valid_labels.read(None, taken) is None


def test_folders_that_are_named_by_wordnet_have_imagenets_labels(tmp_path):
    for name in ("n01440764", "n02102040", "n03888257"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "val" / name / "a.png")
    names = {"n01440764": 0, "n02102040": 217, "n03888257": 701}
    options = {"num_classes": 1000, "labels_by_name": names}
    images = open_source(f"folder:{tmp_path}", "val", **options)
    assert valid_labels.read("data", images) == (0, 217, 701)


def test_a_file_of_labels_may_have_more_than_the_images(tmp_path):
    """As timm has them: one a line, in any order."""
    file = tmp_path / "labels.txt"
    file.write_text("701\n0\n217\n0\n")
    labels = valid_labels.read(str(file), source(217, 701))
    assert labels == (0, 217, 701)
    assert valid_labels.in_words(labels, 1000) == "3 of 1,000 classes"


@pytest.mark.parametrize("text", ["1.5", "-1", "1000", "n01440764", ""])
def test_a_file_of_anything_else_is_refused(tmp_path, text):
    file = tmp_path / "labels.txt"
    file.write_text(f"0\n{text}\n" if text else "")
    with refused("--valid_labels", text or str(file), "from 0 to 999"):
        valid_labels.read(str(file), source(0, 1))


def test_a_file_that_would_leave_images_without_an_answer_is_refused(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("0\n217\n")
    with refused("--valid_labels", str(file), "lacks label 701"):
        valid_labels.read(str(file), source(217, 701, 999))
    with refused("--valid_labels", str(tmp_path), "Is a directory"):
        valid_labels.read(str(tmp_path), source(0, 1))


def test_one_class_is_no_choice():
    with refused("--valid_labels", "data", "class 7"):
        valid_labels.read("data", source(7, 7))


def test_the_note_is_for_few_classes_and_a_choice_among_all():
    few = source(0, 217)
    every = source(*np.arange(1000))
    assert "2 classes" in valid_labels.note(None, few)
    assert valid_labels.note((0, 217), few) is None
    assert valid_labels.note(None, every) is None
