"""What a person is told: costs that add up, results, and a picture of the tokens."""

import jax
import numpy as np
import pytest
from PIL import Image

from configs import quickstart
from imagepiece_jax import pictures
from imagepiece_jax.data import mix
from imagepiece_jax.training import report, setup, weights
from tests.runs import ROOT

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def config(**fields):
    made = quickstart.get_config()
    made.update_from_flattened_dict(fields)
    return made


META = {
    "last": {"acc1": 97.5, "acc5": 99.9, "loss": 0.1, "images": 359},
    "best": {"acc1": 98.125, "step": 352},
}


def test_final_table(tmp_path):
    made = config()
    model, dense = setup.model(made), setup.dense(made)
    table = report.final_table(tmp_path, model, dense, 16, META)
    rows = dict(line.split(maxsplit=1) for line in table.split("\n"))
    assert rows["accuracy"] == "top-1 97.50 %, top-5 99.90 % of 359 images"
    assert rows["best"] == "98.12 % at step 352"
    assert rows["tokens"].startswith("65 59 54 44 40 36 29 ")
    assert rows["cost"] == "0.0158 GMACs; dense 0.0228, 1.44 times"
    assert rows["checkpoints"] == str(tmp_path / "checkpoints")
    assert rows["metrics"] == str(tmp_path / "metrics.jsonl")
    assert "picture" not in rows
    (tmp_path / report.PICTURE).touch()
    averaged = META | {"last": META["last"] | {"ema_acc1": 96.25}}
    table = report.final_table(tmp_path, model, dense, 16, averaged)
    assert f"picture      {tmp_path / report.PICTURE}" in table
    assert "of 359 images; averaged weights 96.25 %" in table


@pytest.fixture(scope="module")
def two_images():
    source = setup.source(config(), "val")
    return np.stack([source.read(index)[0] for index in range(2)])


def test_picture_shows_what_became_of_every_patch(tmp_path, monkeypatch, two_images):
    """The maps it draws are those of a model that traces its sources itself."""
    made = config(
        **{
            "model.depth": 3,
            "model.embed_dim": 8,
            "model.num_heads": 2,
            "model.trace_source": True,
            "reduction.merge_blocks": (0, 1),
            "reduction.prune_blocks": (2,),
        }
    )
    model = setup.model(made)
    variables = weights.fresh(model, 16, seed=0)
    drawn = []
    page = pictures.token_page

    def keep(path, images, stages, grid, titles):
        drawn.append((stages, grid))
        return page(path, images, stages, grid, titles)

    monkeypatch.setattr(pictures, "token_page", keep)
    path = report.save_token_picture(tmp_path, model, variables, two_images, ["a", "b"])
    assert path == tmp_path / report.PICTURE
    with Image.open(path) as picture:
        assert picture.format == "PNG" and len(picture.getcolors(2**24)) > 20
    ((stages, grid),) = drawn
    assert grid == (8, 8)
    for row in stages:
        assert [title for title, _ in row] == ["block 0", "block 1", "block 2"]
        tokens = [len(set(source.tolist()) - {-1}) for _, source in row]
        assert tokens == [58, 53, 43]
        assert (row[1][1] >= 0).all() and (row[2][1] == -1).any()
    state = jax.jit(model.apply)(variables, mix.normalise(two_images)).state
    np.testing.assert_array_equal(state.source, [row[2][1] for row in stages])


def test_no_picture_of_a_dense_model(tmp_path, two_images):
    model = setup.dense(config())
    assert report.save_token_picture(tmp_path, model, {}, two_images, "ab") is None
    assert not list(tmp_path.iterdir())
