import re

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.commands import features
from tests.helpers import tiny_vit
from tests.helpers.picture_files import write_damaged
from tests.helpers.run_command import call
from tests.helpers.small_runs import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Saved weights, and three images; the second is damaged."""
    folder = tmp_path_factory.mktemp("features")
    imagepiece_jax.save(tiny_vit.pretrained(), folder / "weights")
    write_damaged(folder / "photos", tiny_vit.SIDE)
    return folder


def test_vectors_of_a_folder_with_a_reduction(folder, tmp_path, monkeypatch):
    """A damaged image ends in status 1, and the other rows are written."""
    monkeypatch.chdir(folder)
    out = tmp_path / "v.sqlite"
    words = ["weights", "photos", f"--out={out}", "--npy"]
    evit = "--reduction=evit:keep_rate=.6:blocks=(1,2)"
    ended = call(features.main, *words, evit)
    assert ended.status == 1
    assert "photos/b.png has no row" in ended.err
    vit = imagepiece_jax.load("weights", reduction=tiny_vit.EVIT)
    names = ["photos/a.png", "photos/c.png"]
    maps = imagepiece_jax.features(vit, names)
    paths, vectors = imagepiece_jax.read_features(out)
    assert paths == names
    np.testing.assert_allclose(vectors, maps.pooled, rtol=1e-5, atol=1e-5)
    npy_vectors = np.load(tmp_path / "v.npy", mmap_mode="r")
    assert npy_vectors.dtype == np.float32
    np.testing.assert_array_equal(npy_vectors, vectors)
    assert "2 of 3 rows exist" in call(features.main, *words, evit).err
    words[1] = "photos/a.png"
    call(features.main, *words, evit).ok()


def test_the_pages_search_finds_the_photograph_itself(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(folder / "photos")
    words = [f"{folder}/weights", "photos", "--out=vectors.sqlite"]
    call(features.main, *words)
    page = (ROOT / "docs" / "search.md").read_text("utf-8")
    code, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code.replace("cat.jpg", "c.png"), {})
    first, last = capsys.readouterr().out.splitlines()[-2:]
    assert first == "1.000 photos/c.png"
    assert last.endswith("photos/a.png")
