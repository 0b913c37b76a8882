"""What a person is told: costs that add up, results, and a picture of the tokens."""

import jax
import numpy as np
import pytest
from PIL import Image

from configs import quickstart
from imagepiece_jax import config_files, pictures
from imagepiece_jax.data import mix
from imagepiece_jax.models import zoo
from imagepiece_jax.training import report, setup, weights
from tests.runs import ROOT

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def config(**fields):
    made = quickstart.get_config()
    made.update_from_flattened_dict(fields)
    return made


@pytest.mark.parametrize("name", ["quickstart", "deit_b", "deit_ti_imagepiece"])
def test_parts_add_up_to_the_model(name):
    made = config_files.load(ROOT / "configs" / f"{name}.py")
    model, size = setup.model(made), made.image_size
    *_, total = report.cost_table(model, setup.dense(made), size).split("\n")
    _, ours, theirs, parameters = total.split()
    assert ours == f"{zoo.model_macs(model, size) / 1e6:.1f}"
    assert theirs == f"{zoo.model_macs(setup.dense(made), size) / 1e6:.1f}"
    leaves = jax.tree.leaves(weights.shapes(model, size)["params"])
    assert parameters == f"{sum(np.prod(leaf.shape) for leaf in leaves):,.0f}"


def test_cost_table_of_a_model_counted_by_hand():
    """Two blocks of width 4 on 2x2 patches of 2x2 pixels, three classes."""
    made = config(
        image_size=4,
        num_classes=3,
        **{
            "model.stem": "patch",
            "model.depth": 2,
            "model.embed_dim": 4,
            "model.num_heads": 1,
            "reduction.merge_blocks": (),
            "reduction.prune_blocks": (0,),
            "reduction.keep_rate": 0.5,
        },
    )
    model = setup.model(made)
    table = report.cost_table(model, setup.dense(made), 4).split("\n")
    rows = [line.split() for line in table]
    # Parameters. Stem: 12 * 4 + 4, class token 4, positions 5 * 4. Block: norms 4 * 4,
    # attention 4 * (16 + 4), MLP 4 * 16 + 16 + 16 * 4 + 4. Head: norm 8, 4 * 3 + 3.
    assert [row[-1] for row in (rows[1], rows[4], rows[5])] == ["76", "23", "587"]
    assert rows[3][-1] == "244" and rows[2][6] == "244"
    # Image tokens: 4, of which 2 are kept. All MACs round to 0.0 million.
    assert rows[2][2:4] == ["5", "3"] and rows[3][2:4] == ["3", "3"]
    assert " ".join(rows[2][7:]) == "TopK: 4 - 2"
    # Stem 4 * 12 * 4, head 4 * 3. Block: 4 N D^2 + 2 N^2 D and 8 N D^2.
    macs = 192 + 12 + (320 + 200 + 384) + (192 + 72 + 384)
    dense = 192 + 12 + 2 * (320 + 200 + 640)
    assert (macs, dense) == (1756, 2524)
    assert report.cost_line(model, [setup.dense(made)], 4) == (
        "1.756e-06 GMACs an image; dense 2.524e-06 with a patch stem, 1.44 times as "
        "many"
    )


def test_plan_has_a_line_for_every_block():
    made = config()
    text = report.plan_text(setup.model(made), setup.dense(made), 16)
    lines = text.split("\n")
    assert lines[1].split()[:3] == ["0", "65", "59"]
    assert lines[6].split()[:3] == ["5", "36", "29"]


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
