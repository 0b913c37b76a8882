"""The command: its figures, page and data for any images and file names."""

import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.commands import visualize
from imagepiece_jax.data import pictures
from imagepiece_jax.data.preprocessing import Preprocessing
from tests.command import call, sentence
from tests.models import tiny
from tests.pictures import write_csv, write_damaged
from tests.visualize.traces import read_traces


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    vit = tiny.pretrained(embed_dim=64, num_heads=4, depth=1)
    return imagepiece_jax.save(vit, tmp_path_factory.mktemp("weights") / "mini")


@pytest.fixture
def folder(tmp_path):
    """Two images of the model's size, one damaged, and a text."""
    folder = write_damaged(tmp_path / "images", tiny.SIDE)
    (folder / "d.txt").write_text("no image")
    return folder


@pytest.mark.slow
def test_a_folder_of_images_under_two_methods(tmp_path, weights, folder):
    out = tmp_path / "out"
    ended = call(
        visualize.main,
        *(weights, folder, "--out", out),
        *("--reductions", "tome:r=4", "evit:keep_rate=.5:blocks=(0,)"),
    )
    assert ended.status == 1, ended
    assert ended.err == f"{folder}/b.png is left out: no known image format\n"
    label = "evit:keep_rate=0.5:blocks=(0,)"
    assert "tome:r=4: 25 patches, 21 tokens at the end\n" in ended.out
    names, (tome, learner) = read_traces(out)
    assert names == ["a.png", "c.png"]
    assert [tome["label"], learner["label"]] == ["tome:r=4", label]
    assert np.sum(tome["stages"][0]["sizes"]) == 2 * 25
    figures = {file.name for file in (out / "figures").iterdir()}
    assert len(figures) == 4
    page = (out / "index.html").read_text()
    assert all(f'"figures/{file}"' in page for file in figures)


def test_what_is_drawn_is_said_once(tmp_path, weights, folder):
    words = ("--reduction", ".5", "--reductions", "tome:r=4")
    ended = call(visualize.main, weights, folder, "--out", tmp_path / "out", *words)
    assert ended.status == 2
    assert "reduction is .5; give it in reductions" in ended.err


def test_a_folder_stands_for_what_is_read_of_it(tmp_path, capsys):
    """As `folder:PATH` lists it: all that is left out is counted."""
    picture = Image.new("RGB", (32, 32))
    names = (
        "b.avif",
        "c.jfif",
        "d.ppm",
        "f.jp2",
        "g.JPG",
        "dir.jpg/a.png",
        "sub/h.gif",
    )
    for name in names:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        picture.save(file, "JPEG" if file.suffix in (".jfif", ".JPG") else None)
    for name in ("._a.jpg", ".DS_Store", "notes.txt", "x.eps"):
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    (tmp_path / ".hidden").mkdir()
    picture.save(tmp_path / ".hidden" / "i.png")
    found = pictures.find_images([tmp_path])
    assert found == [f"{tmp_path}/{name}" for name in names]
    assert "and 4 more are left out" in capsys.readouterr().out
    source = pictures.photographs(found)
    images, read = pictures.read_images(source, Preprocessing(tiny.SIDE, crop=0.5))
    assert len(read) == len(names)
    hidden = tmp_path / "._a.jpg"
    assert pictures.find_images([hidden]) == [str(hidden)]  # it is named


def test_images_of_a_data_set_are_drawn(tmp_path):
    vit = tiny.pretrained("tome:r=3", num_classes=10, image_size=16, depth=2)
    weights = imagepiece_jax.save(vit, tmp_path / "w")
    call(visualize.main, weights, "digits", "--out", tmp_path / "page").ok()
    assert len([*(tmp_path / "page" / "figures").iterdir()]) == visualize.DRAWN
    ended = call(visualize.main, weights, "digits", tmp_path, "--out", tmp_path / "p")
    assert "digits" in sentence(ended)


def test_a_damaged_image_of_a_table_is_named(tmp_path):
    vit = tiny.pretrained("tome:r=3", num_classes=10, image_size=16, depth=2)
    weights = imagepiece_jax.save(vit, tmp_path / "w")
    data = write_csv(tmp_path, np.zeros((2, 16, 16, 3), np.uint8), [0, 1])
    (tmp_path / "1.png").write_bytes(b"damaged")
    ended = call(visualize.main, weights, data, "--out", tmp_path / "page")
    assert ended.status == 1
    assert "1.png is left out" in ended.err
    assert len([*(tmp_path / "page" / "figures").iterdir()]) == 1
