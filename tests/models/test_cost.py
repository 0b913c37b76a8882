"""Published costs of plans, integer for integer, and the table of a model's cost.

`cost_vectors.json` holds, for every configuration, its reduction, the tokens into
attention and MLP of each block (class token included) and the MACs, computed apart from
this code.
"""

import json

import pytest

from configs import quickstart
from experiments import controls
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.models import cost
from imagepiece_jax.models.cost import block_macs, model_macs
from imagepiece_jax.reduction.block_plan import BlockPlan, Keep, Step, build
from imagepiece_jax.reduction.methods.evit import EViT
from imagepiece_jax.reduction.reducers import Reducer
from imagepiece_jax.reduction.reduction import Reduction
from tests.models import tiny
from tests.runs import ROOT

VECTORS = json.loads((ROOT / "tests/models/cost_vectors.json").read_text("utf-8"))
# embed_dim and num_heads of models of depth 12, for 196 patches
MODELS = {"Ti": (192, 3), "S": (384, 6), "B": (768, 12)}


@pytest.mark.parametrize(
    "entry", VECTORS, ids=lambda entry: f"{entry['name']} {entry['model']}"
)
def test_published_trace_and_macs(entry):
    with controls.registered():  # imagepiece_later is one of a study
        method = Reduction.read(entry["reduction"]).method
        plan = build(12, 196, method.steps(12))
    trace = [[layer.attn_tokens, layer.mlp_tokens] for layer in plan]
    assert trace == entry["trace"]
    assert trace[-1][1] == entry["final"]
    model = tiny.vit(plan, *MODELS[entry["model"]], stem=entry["stem"])
    total = model_macs(model)
    if "blocks only" in entry["name"]:
        total -= sum(cost.reducer_macs(model, layer) for layer in plan)
    assert total == entry["macs"]
    assert type(total) is int


@pytest.mark.parametrize(
    "rate, gmacs", [(0.9, 4.0), (0.8, 3.5), (0.7, 3.0), (0.6, 2.6), (0.5, 2.3)]
)
def test_evit_gmacs_are_those_of_its_authors(rate, gmacs):
    """EViT-DeiT-S with its fused token, as its repository prints the costs."""
    evit = EViT(keep_rate=rate, fuse_token=True)
    model = tiny.vit(build(12, 196, evit.steps(12)), 384, 6)
    assert round(model_macs(model) / 1e9, 1) == gmacs


def test_block_macs_by_hand():
    """D = 4: projections 4 * 3 * 16 + attention 2 * 9 * 4 + MLP 8 * 2 * 16."""
    layer = BlockPlan(attn_tokens=3, mlp_tokens=2)
    assert block_macs(tiny.vit((), 4, 1), layer) == 192 + 72 + 256
    assert block_macs(tiny.vit((), 4, 1, mlp_ratio=2.0), layer) == 192 + 72 + 128


def test_steps_cost_and_are_listed_where_they_change_something():
    class Costly(Reducer):
        def extra_macs(self, n_in, embed_dim, num_heads):
            return 1000 * n_in + 10 * embed_dim + num_heads

    rules = Keep(1.0), Keep(0.5)
    plan = build(2, 16, [Step(i, Costly(), rule) for i, rule in enumerate(rules)])
    model = tiny.vit(plan, 8, 2)
    assert sum(cost.reducer_macs(model, layer) for layer in plan) == 16082
    assert [cost.action(layer) for layer in plan] == ["", "Costly: 16 - 8"]


def test_cost_table_of_a_model_counted_by_hand():
    """Two blocks of width 4 on 2x2 patches of 2x2 pixels, three classes."""
    made = quickstart.get_config()
    made.image_size = 4
    made.num_classes = 3
    made.model.update(stem="patch", depth=2, embed_dim=4, num_heads=1)
    made.reduction = "imagepiece:merge_blocks=():prune_blocks=(0,):keep_rate=0.5"
    run = RunConfig.from_config(made)
    model = run.create_model()
    dense = run.create_dense()
    rows = [line.split() for line in cost.cost_table(model, dense).split("\n")]
    # Parameters. Stem: 12 * 4 + 4, class token 4, positions 5 * 4. Block: norms 4 * 4,
    # attention 4 * (16 + 4), MLP 4 * 16 + 16 + 16 * 4 + 4. Head: norm 8, 4 * 3 + 3.
    assert [row[-1] for row in (rows[1], rows[4], rows[5])] == ["76", "23", "587"]
    assert rows[3][-1] == "244"
    assert rows[2][6] == "244"
    # Image tokens: 4, of which 2 are kept. All MACs round to 0.0 million.
    assert rows[2][2:4] == ["5", "3"]
    assert rows[3][2:4] == ["3", "3"]
    assert " ".join(rows[2][7:]) == "TopK: 4 - 2"
    # Stem 4 * 12 * 4, head 4 * 3. Block: 4 N D^2 + 2 N^2 D and 8 N D^2.
    macs = 192 + 12 + (320 + 200 + 384) + (192 + 72 + 384)
    dense_macs = 192 + 12 + 2 * (320 + 200 + 640)
    assert (macs, dense_macs) == (1756, 2524)
    line = "1.756e-06 GMACs an image; dense 2.524e-06 with a patch stem, 1.44 times as"
    # Of block 1, two of three tokens: queries and proj, both products, MLP.
    assert cost.dead_macs(model) == 2 * 2 * 16 + 2 * 2 * 3 * 4 + 2 * 8 * 16
    *_, found, dead = cost.describe(model, [dense]).splitlines()
    assert found == f"{line} many"
    assert dead.startswith("3.680e-07 GMACs of the last block are no")
