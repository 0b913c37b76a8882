"""Classes by folders, and texts whose rows find their images by names."""

import os

import numpy as np
import pytest

from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.data.source import FileSource
from imagepiece_jax.data.sources.registry import open_source
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference.annotations import read_annotations
from tests.helpers import tiny_vit
from tests.helpers.refused_calls import refused

WIDTH = tiny_vit.WIDTH


@pytest.fixture(scope="module")
def vit():
    return tiny_vit.pretrained(num_classes=0, depth=1)


@pytest.fixture
def folder(tmp_path):
    """Empty files photos/CLASS/../NAME; no test opens them."""
    names = []
    for number in range(14):
        inside = "deep/" if number % 3 == 0 else ""
        names.append(f"{'cat' if number % 2 else 'car'}/{inside}{number:02}.png")
    for name in names:
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path / "photos"


def write_texts(folder, paths, vectors):
    np.save(folder / "texts.npy", vectors)
    (folder / "texts.txt").write_text("".join(f"{path}\n" for path in paths))
    return folder / "texts.npy"


def test_classes_are_folders_below_the_common_folder(vit, folder, tmp_path):
    source = as_source(folder)
    annotations = read_annotations(vit, source)
    names = [os.path.relpath(source.image_name(i), folder) for i in range(14)]
    assert [*annotations.classes] == [name[:3] for name in names]
    part = read_annotations(vit, source.subset(range(0, 14, 3)))
    assert [*part.classes] == [name[:3] for name in names[::3]]
    opened = open_source(f"{folder}", "val", labeled=False)
    assert [*read_annotations(vit, opened).classes] == [*annotations.classes]
    (folder / "loose.png").touch()
    assert read_annotations(vit, as_source(folder)).classes is None
    assert read_annotations(vit, as_source(folder / "cat")).classes is None


def test_a_sets_labels_are_classes(vit):
    source = open_source("digits", "val").subset(range(5, 300))
    labels = [source[i].label for i in range(5)]
    assert read_annotations(vit, source).classes[:5].tolist() == labels


@pytest.mark.parametrize("form", ["end", "absolute", "beside", "typed"])
def test_rows_find_their_images_by_name(vit, folder, tmp_path, monkeypatch, form):
    """In any order, with names of other images, and some images left out."""
    source = as_source(folder)
    files = [source.image_name(i) for i in range(14)][::-1]
    del files[3]
    paths = files
    if form == "end":
        paths = [os.path.basename(file) for file in files]
    elif form == "beside":
        paths = [os.path.relpath(file, tmp_path) for file in files]
    elif form == "typed":
        monkeypatch.chdir(tmp_path)
        paths = [f"./{os.path.relpath(file)}" for file in files]
        source = as_source("photos")
    vectors = np.ones((14, WIDTH), np.float32)
    vectors[:, 0] = np.arange(1, 15)
    texts = write_texts(tmp_path, [*paths, "other/77.png"], vectors)
    annotations = read_annotations(vit, source.subset(range(13)), texts)
    expected = [os.path.basename(file) for file in files]
    names = [os.path.basename(source.image_name(i)) for i in annotations.image_of_text]
    assert names == expected[1:]  # the first row's image is left out
    assert annotations.text_vectors[:, 0].tolist() == [*range(2, 14)]


def test_misfitting_texts_are_refused(vit, folder, tmp_path):
    source = as_source(folder)
    names = [os.path.basename(source.image_name(i)) for i in range(14)]

    whole = np.ones((14, WIDTH), np.float32)

    def check(*words, paths=names, vectors=whole, model=vit):
        with refused("texts", *words):
            read_annotations(model, source, write_texts(tmp_path, paths, vectors))

    nonfinite = whole.copy()
    nonfinite[5, 1] = np.nan
    zero = whole.copy()
    zero[6] = 0
    check("14 rows", "13", paths=names[:-1])
    check(f"{WIDTH - 1}", f"{WIDTH}", vectors=whole[:, 1:])
    check("float32", vectors=whole[0])
    check("int64", vectors=np.ones((14, WIDTH), int))
    check("row 5", vectors=nonfinite)
    check("row 6", vectors=zero)
    check("describe 0", paths=[f"no/{name}" for name in names])
    check("--num-classes 0", model=tiny_vit.pretrained(depth=1))
    (folder / "cat" / "00.png").touch()
    source = as_source(folder)
    check("'00.png'", "several")
    (tmp_path / "texts.txt").unlink()
    with refused("texts.txt"):
        read_annotations(vit, source, tmp_path / "texts.npy")
    (tmp_path / "texts.txt").write_text("00.png\n")
    for content in (b"", b"PK", b"\x93NUMPY"):
        (tmp_path / "texts.npy").write_bytes(content)
        with refused("texts.npy"):
            read_annotations(vit, source, tmp_path / "texts.npy")
    np.savez(tmp_path / "texts.npz", whole)
    with pytest.raises(InputError, match="texts.npz is not a .npy file"):
        read_annotations(vit, source, tmp_path / "texts.npz")


def test_an_ambiguous_name_stays_ambiguous_in_a_part(tmp_path):
    """A limit does not choose between two images of one name."""
    files = ["beach/dup.png", *(f"beach/{i}.png" for i in range(20)), "city/dup.png"]
    source = FileSource(str(tmp_path), files, np.zeros(len(files)))
    vit = tiny_vit.pretrained(num_classes=0)
    width = vit.config.embed_dim
    np.save(tmp_path / "texts.npy", np.ones((20, width), np.float32))
    lines = ["dup.png", *files[1:20]]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    for part in (source, source.subset(range(15))):
        with refused("names several images"):
            read_annotations(vit, part, tmp_path / "texts.npy")
