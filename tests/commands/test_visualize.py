import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.commands import visualize
from tests.helpers import tiny_vit
from tests.helpers.handmade_traces import read_traces
from tests.helpers.picture_files import write_damaged
from tests.helpers.run_command import call, sentence


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    vit = tiny_vit.pretrained(embed_dim=64, num_heads=4, depth=1)
    return imagepiece_jax.save(vit, tmp_path_factory.mktemp("weights") / "mini")


@pytest.fixture
def folder(tmp_path):
    """Two images of the model's size, a damaged image and a text."""
    folder = write_damaged(tmp_path / "images", tiny_vit.SIDE)
    (folder / "d.txt").write_text("no image")
    return folder


@pytest.mark.slow
def test_a_folder_of_images_under_two_methods(tmp_path, weights, folder):
    out = tmp_path / "out"
    label = "evit:keep_rate=0.5:blocks=(0,)"
    words = [weights, folder, "--out", out, "--reductions", "tome:r=4", label]
    ended = call(visualize.main, *words)
    reason = "cannot be read (no known image format): it is left out"
    assert (ended.status, ended.err) == (1, f"{folder}/b.png {reason}\n")
    assert "tome:r=4: 25 patches, 21 tokens at the end\n" in ended.out
    names, (tome, learner) = read_traces(out)
    assert names == ["a.png", "c.png"]
    assert [tome["label"], learner["label"]] == ["tome:r=4", label]
    assert np.sum(tome["stages"][0]["sizes"]) == 2 * 25
    figures = {file.name for file in (out / "figures").iterdir()}
    assert len(figures) == 4
    page = (out / "index.html").read_text()
    assert all(f'"figures/{file}"' in page for file in figures)


def test_images_of_a_data_set_are_drawn(tmp_path):
    vit = tiny_vit.pretrained("tome:r=3", num_classes=10, image_size=16, depth=1)
    weights = imagepiece_jax.save(vit, tmp_path / "w")
    page = tmp_path / "page"
    for reduction in ("tome:r=2", "tome:r=3"):  # the second page replaces the first
        words = (weights, "digits", "--out", page, "--reduction", reduction)
        call(visualize.main, *words).ok()
        figures = [file.name for file in (page / "figures").iterdir()]
        assert len(figures) == visualize.NUM_DRAWN_IMAGES
    ended = call(visualize.main, weights, "digits", tmp_path, "--out", tmp_path / "p")
    assert "digits" in sentence(ended)
