"""The classes that a model chooses among: all, those of the images, those of a file."""

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data import valid_labels
from imagepiece_jax.data.source import FileSource
from imagepiece_jax.input.registry import open_source
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


@pytest.mark.parametrize(
    "given, text, labels, value, said",
    [
        *(
            ("labels.txt", f"0\n{text}\n", (0, 1), text, "from 0 to 999")
            for text in ("1.5", "-1", "1000", "n01440764")
        ),
        ("labels.txt", "", (0, 1), "labels.txt", "from 0 to 999"),
        ("labels.txt", "0\n217\n", (217, 701, 999), "labels.txt", "lacks label 701"),
        (".", "", (0, 1), ".", "Is a directory"),
        ("data", "", (7, 7), "data", "class 7"),
    ],
)
def test_what_is_no_choice_is_refused(
    tmp_path, monkeypatch, given, text, labels, value, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text(text)
    with refused("valid_labels", value, said):
        valid_labels.read(given, source(*labels))


def test_the_note_is_for_few_classes_and_a_choice_among_all():
    few = source(0, 217)
    every = source(*np.arange(1000))
    assert "2 classes" in valid_labels.note(None, few)
    assert "have one class, " in valid_labels.note(None, source(217, 217))
    assert valid_labels.note((0, 217), few) is None
    assert valid_labels.note(None, every) is None
