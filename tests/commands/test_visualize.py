"""The command: its figures, page and data for any images and file names."""

import itertools
import os
import urllib.parse

import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.commands import visualize
from imagepiece_jax.common import files
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.deploy import pictures
from imagepiece_jax.deploy.visualize import html
from imagepiece_jax.input.registry import open_source
from tests.command import call, sentence
from tests.deploy.visualize.traces import read_traces
from tests.models import tiny
from tests.pictures import write_damaged


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    vit = tiny.pretrained(embed_dim=64, num_heads=4, depth=1)
    return imagepiece_jax.save(tmp_path_factory.mktemp("weights") / "mini", vit)


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
    assert ended.out.splitlines()[1:3] == [  # after a note on d.txt
        "tome:r=4: 25 patches, 21 tokens at the end",
        f"{label}: 25 patches, 13 tokens at the end",
    ]
    names, (tome, learner) = read_traces(out)
    assert names == ["a.png", "c.png"]
    assert [tome["label"], learner["label"]] == ["tome:r=4", label]
    assert learner["setting"] == label
    assert np.sum(tome["stages"][0]["sizes"]) == 2 * 25
    figures = {file.name for file in (out / "figures").iterdir()}
    slugs = ("tome_r_4", "evit_keep_rate_0.5_blocks_0")
    stems = ("000_a", "001_c")
    assert figures == {
        f"{stem}_{slug}.png" for stem, slug in itertools.product(stems, slugs)
    }
    page = (out / "index.html").read_text()
    assert page.startswith("<!doctype html>") and "mini" in page
    for file in figures:
        assert f'"figures/{file}"' in page


def test_a_folder_stands_for_what_is_read_of_it(tmp_path, capsys):
    """As `folder:PATH` lists it: hidden files are passed over, others are named."""
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
    said = f"note: {tmp_path}/notes.txt and 1 more are left out; images are files with"
    assert capsys.readouterr().out.startswith(said)
    images, read = pictures.read_images(found, Preprocessing(tiny.SIDE, crop=0.5))
    assert len(read) == len(names)
    # The same files are a class of a set.
    source = open_source(f"folder:{_as_class(tmp_path)}", "val")
    inside = [source.name(i).split("/val/ant/")[1] for i in range(len(source))]
    assert inside == [*names]
    hidden = tmp_path / "._a.jpg"
    assert pictures.find_images([hidden]) == [str(hidden)]  # it is named


def _as_class(folder):
    """The root of a set whose only class is `folder`."""
    root = folder.parent / f"{folder.name}_set"
    (root / "val").mkdir(parents=True)
    (root / "val" / "ant").symlink_to(folder)
    return root


def test_two_processes_do_not_draw_into_one_folder(tmp_path, weights, folder):
    out = tmp_path / "new" / "out"
    words = [weights, folder / "a.png", "--reductions=tome:r=4", "--out", out]
    with files.locked("out", out):
        said = sentence(call(visualize.main, *words))
        assert f"{out} is in use by another process" in said
        assert [*out.iterdir()] == [out / files.LOCK]
    assert not out.parent.exists()
    call(visualize.main, *words).ok()
    (out / files.LOCK).touch()  # by a killed process
    call(visualize.main, *words).ok()
    assert {file.name for file in out.iterdir()} == {*html.FILES}


def test_any_file_name(tmp_path, weights):
    """Not UTF-8, formulas, HTML, a newline: shown as it is, or with a backslash."""
    folder = tmp_path / "images"
    folder.mkdir()
    long = 250 * "n" + ".png"
    names = ["$^$.png", "<b>&.png", "a\nb.png", "caf\udce9.png", "f\u00fcr.png", long]
    for name in names:
        Image.new("RGB", (tiny.SIDE, tiny.SIDE)).save(folder / name, "PNG")
    out = tmp_path / "out\udce9"
    words = ("--reductions=tome:r=4", "--out", out)
    ended = call(visualize.main, weights, folder, *words)
    assert ended.status == 0
    assert ended.err == ""
    assert read_traces(out)[0] == names
    page = (out / "index.html").read_text(encoding="utf-8")
    for shown in ("$^$.png", "&lt;b&gt;&amp;.png", r"caf\udce9.png", "f\u00fcr.png"):
        assert f">{shown}<" in page
    drawn = [*(out / "figures").iterdir()]
    assert len(drawn) == len(names)
    for file in drawn:
        path = urllib.parse.quote(os.fsencode(f"figures/{file.name}"))
        assert f'<img src="{path}"' in page
