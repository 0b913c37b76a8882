import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data.pictures import as_source, find_images
from imagepiece_jax.data.sources.registry import open_source
from tests.helpers.picture_files import noise, write_images, write_plain
from tests.helpers.refused_calls import refused

NAMES = ("a.png", "b c.png", "d.png")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three images in a folder, and another current folder."""
    elsewhere = write_plain(tmp_path / "elsewhere", "b.jpg")
    monkeypatch.chdir(elsewhere)
    return write_plain(tmp_path / "photos", *NAMES)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_stands_for_its_lines(folder, monkeypatch, encoding):
    lines = ["gone\r.png", "a.png", "b c.png\r", " d.png\t\r", "~/e.png", ""]
    (folder / "list.txt").write_bytes("\n".join(lines).encode(encoding))
    monkeypatch.setenv("HOME", str(folder))
    paths = find_images(["~/list.txt", "b.jpg"])
    names = ("gone\r.png", *NAMES, "e.png")
    assert paths == [*(str(folder / name) for name in names), "b.jpg"]
    write_plain(pathlib.Path(), "a.png")
    assert find_images([folder / "list.txt"])[1] == "a.png"


def test_missing_and_undecodable_lists_are_refused(tmp_path):
    with refused("images"):
        find_images([])
    with pytest.raises(FileNotFoundError, match=r"no\.csv"):
        find_images([f"{tmp_path}/no.csv"])
    (tmp_path / "list.txt").write_bytes(b"\xff\xfea")
    with refused("list.txt"):
        find_images([tmp_path / "list.txt"])


def test_every_source_turns_photographs_upright(tmp_path):
    """Only imagenet2012 has pixels as stored."""
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    path = write_plain(tmp_path, "val/ant/a.png") / "val" / "ant" / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    (tmp_path / "set.csv").write_text(f"filename,label\n{path},0\n")
    csv = f"csv:{tmp_path}/set.csv"
    sources = [open_source(name, "val") for name in (f"{tmp_path}/val", csv)]
    sources += [as_source(images) for images in (path, csv, [Image.open(path)])]
    for source in sources:
        np.testing.assert_array_equal(source[0].pixels, np.rot90(pixels, -1))


def test_images_may_be_paths_a_folder_or_a_set(tmp_path):
    pixels = noise(3, 8, 8)
    files = write_images(tmp_path, pixels)
    sources = [as_source(tmp_path), as_source(files)]
    sources += [as_source([*pixels]), as_source(pixels)]
    sources += [as_source(map(Image.open, files)), as_source(jax.numpy.array(pixels))]
    for source in sources:
        assert len(source) == 3
        np.testing.assert_array_equal(source[1].pixels, pixels[1])
