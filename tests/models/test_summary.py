"""The cost table: plan, cost and parameters in columns that line up."""

import jax
import numpy as np
import pytest

from imagepiece_jax import cli
from imagepiece_jax.models import summary
from imagepiece_jax.training.config import RunConfig
from tests.models import tiny
from tests.models.test_families import FAMILIES
from tests.runs import ROOT


def config(**fields):
    made = cli.load_config(ROOT / "configs" / "quickstart.py")
    made.update_from_flattened_dict(fields)
    return made


def test_a_step_that_changes_nothing_is_not_in_the_table():
    model = tiny.model(tiny.EVIT | {"keep_rate": 1.0})
    assert [summary.action(layer) for layer in model.plan] == ["", "", ""]


@pytest.mark.parametrize("family", ["deit", "dinov2", "siglip"])
@pytest.mark.parametrize(
    "reduction", [None, tiny.EVIT, {"name": "dtem", "r_list": (3,)}]
)
def test_shapes_are_those_of_what_is_drawn(family, reduction):
    """One block is traced for all; not where some learn what to reduce."""
    model = tiny.model(reduction, arch=FAMILIES[family], depth=3, stem="conv")
    images = jax.ShapeDtypeStruct((1, tiny.SIDE, tiny.SIDE, 3), "float32")
    drawn = jax.eval_shape(model.init, jax.random.key(0), images)
    assert summary.shapes(model, tiny.SIDE) == drawn


def test_columns_line_up():
    rows = [("a", "count", "what"), (10, 1, "x"), (9, 1000, "")]
    assert summary.format_table(rows).splitlines() == [
        " a  count  what",
        "10      1  x",
        " 9   1000",
    ]


@pytest.mark.parametrize(
    "name", ["quickstart.py", "deit_s.py:deit_b", "deit_s_imagepiece.py"]
)
def test_parts_add_up_to_the_model(name):
    made = cli.load_config(ROOT / "configs" / name)
    model, size = RunConfig.read(made).create_model(), made.image_size
    *_, total = summary.cost_table(
        model, RunConfig.read(made).create_dense(), size
    ).split("\n")
    _, ours, theirs, parameters = total.split()
    assert ours == f"{summary.model_macs(model, size) / 1e6:.1f}"
    assert (
        theirs
        == f"{summary.model_macs(RunConfig.read(made).create_dense(), size) / 1e6:.1f}"
    )
    leaves = jax.tree.leaves(summary.shapes(model, size)["params"])
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
    model = RunConfig.read(made).create_model()
    table = summary.cost_table(model, RunConfig.read(made).create_dense(), 4).split(
        "\n"
    )
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
    assert summary.cost_line(model, [RunConfig.read(made).create_dense()], 4) == (
        "1.756e-06 GMACs an image; dense 2.524e-06 with a patch stem, 1.44 times as "
        "many"
    )
