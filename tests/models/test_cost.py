"""Published costs of plans, exactly, and the table of a model's cost.

`cost_vectors.json` has published or independently computed MACs (`rel`: their rounding)
and tokens of attention and MLP per block, class token included.
"""

import json

import pytest

from configs import quickstart
from experiments import controls
from imagepiece_jax.models import cost
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.create import create_model
from imagepiece_jax.reduction.block_plan import KeepShare, Step, plan_blocks
from imagepiece_jax.reduction.reducers import Reducer
from imagepiece_jax.training.config import RunConfig
from tests.helpers import named_models, tiny_vit
from tests.helpers.small_runs import ROOT

VECTORS = json.loads((ROOT / "tests/models/cost_vectors.json").read_text("utf-8"))


@pytest.mark.parametrize(
    "row", VECTORS, ids=lambda row: f"{row['model']} {row['reduction']}"
)
def test_published_tokens_and_macs(row):
    config = named_models.config(row["model"], stem=row.get("stem", "patch"))
    with controls.register_methods():  # imagepiece_later belongs to a study
        model = create_model(config, row["reduction"])
    for name in ("attn", "mlp"):
        tokens = [getattr(plan, f"{name}_tokens") for plan in model.plan]
        assert row.get(name, tokens) == tokens
    macs = model_macs(model)
    assert macs == pytest.approx(row["macs"], rel=row.get("rel", 0))
    assert type(macs) is int


def test_only_steps_with_an_effect_cost_and_are_listed():
    class Costly(Reducer):
        def extra_macs(self, n_in, embed_dim, num_heads):
            return 1000 * n_in + 10 * embed_dim + num_heads

    def make_plan(reducer):
        steps = [Step(block, reducer, KeepShare(1 - block / 2)) for block in (0, 1)]
        return plan_blocks(2, 16, steps)

    plans = make_plan(Costly()), make_plan(Reducer())
    costly, free = (model_macs(tiny_vit.imagenet_vit(plan, 8, 2)) for plan in plans)
    assert costly - free == 16082
    texts = [cost.describe_reduction(block_plan) for block_plan in plans[0]]
    assert texts == ["", "Costly: 16 - 8"]


def test_parts_of_a_model_are_counted_by_hand():
    """15 patches of 48 values, then 16 and 12 tokens."""
    model = tiny_vit.model("tome:r=4", image_size=(12, 20), depth=1)
    block = 4 * 16 * 30**2 + 2 * 16**2 * 30 + 2 * 12 * 30 * 120
    assert model_macs(model) == 15 * 48 * 30 + block + 30 * 7
    conv_model = tiny_vit.model(stem="conv", embed_dim=6, image_size=(8, 12))
    assert cost.stem_macs(conv_model.config) == 3 * (1296 + 648 + 144) // 2
    arch = Architecture(class_token=False, pool="map", mlp="swiglu")
    model = tiny_vit.model(arch=arch, image_size=(12, 20), depth=1)
    block = 4 * 15 * 30**2 + 2 * 15**2 * 30 + 3 * 15 * 30 * 120
    pool = 2 * 15 * 30**2 + 2 * 15 * 30 + 30**2 + 2 * 30 * 120
    assert model_macs(model) == 15 * 48 * 30 + block + pool + 30 * 7


def test_cost_table_by_hand():
    """Two blocks of width 4 on 2x2 patches of 2x2 pixels, three classes."""
    config = quickstart.get_config()
    config.image_size = 4
    config.num_classes = 3
    config.model.update(stem="patch", depth=2, embed_dim=4, num_heads=1)
    config.reduction = "imagepiece:merge_blocks=():prune_blocks=(0,):keep_rate=0.5"
    run = RunConfig.from_config(config)
    model = run.create_model()
    dense = run.create_dense_model()
    rows = [line.split() for line in cost.cost_table(model, dense).split("\n")]
    # Parameters. Stem: 12 * 4 + 4, class token 4, positions 5 * 4. Block: norms 4 * 4,
    # attention 4 * (16 + 4), MLP 4 * 16 + 16 + 16 * 4 + 4. Head: norm 8, 4 * 3 + 3.
    assert [row[-1] for row in (rows[1], rows[4], rows[5])] == ["76", "23", "587"]
    assert rows[3][-1] == "244"
    assert rows[2][6] == "244"
    # Two of four image tokens are kept. All MACs round to 0.0 million.
    assert rows[2][2:4] == ["5", "3"]
    assert rows[3][2:4] == ["3", "3"]
    assert " ".join(rows[2][7:]) == "TopK: 4 - 2"
    # Stem 4 * 12 * 4, head 4 * 3. Block: 4 N D^2 + 2 N^2 D and 8 N D^2.
    macs = 192 + 12 + (320 + 200 + 384) + (192 + 72 + 384)
    dense_macs = 192 + 12 + 2 * (320 + 200 + 640)
    assert (macs, dense_macs) == (1756, 2524)
    summary = cost.cost_summary(model, [dense]).splitlines()[-1]
    for number in (1.756e-06, 2.524e-06, 1.44):
        assert str(number) in summary
