import numpy as np
import pytest

from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.create import create_model
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.diffrate import PruneAndMerge, load_schedules
from imagepiece_jax.reduction.state import ReducerInputs, TokenState
from tests.helpers import named_models
from tests.helpers.reduction_steps import apply, decide, vectors

MEAN = Architecture(pool="mean", final_norm=False, fc_norm=True)
MAE = {8.7: 8710439424, 10.0: 10002465792, 10.4: 10417958400, 11.5: 11516556288}


@pytest.mark.parametrize("gmacs", MAE)
@pytest.mark.parametrize(
    "model_name, arch", [("vit_base_patch16_224.mae", None), ("deit_b", MEAN)]
)
def test_published_schedule_of_mae(model_name, arch, gmacs):
    reduction = f"diffrate:target={gmacs}"
    model = create_model(
        named_models.config(model_name, arch=arch, num_classes=1000), reduction
    )
    _, merge = load_schedules("mae_b")[gmacs]
    assert tuple(p.mlp_tokens for p in model.plan) == merge
    if arch:
        assert model_macs(model) == MAE[gmacs]


def test_prune_and_merge_by_hand():
    """Tokens by falling attention, class token first: four stay, three join."""
    x = vectors([0, 10, 40, 70, 100, 12, 60, 95], [1, 1, 2, 3, 4, 5, 6, 7])
    size = np.float32([[1, 1, 1, 2, 1, 1, 3, 1]])
    state = TokenState(x=x, size=size)
    attention = np.float32([[0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]])
    inputs = ReducerInputs(x[:, 1:], size[:, 1:], size[:, 1:], cls_attn=attention)
    result = decide(PruneAndMerge(kept=7), inputs, StepCounts(n_in=7, n_out=4))
    assert result.slot_of_token.tolist() == [[0, 1, 2, 3, 0, 2, 3]]
    moved = apply(state, result)
    tokens = [(1, 0), (2.9378, 0.6066), (1.5321, 1.2856), (2.013, 4.0076)]
    tokens.append((-0.6523, 5.4563))
    np.testing.assert_allclose(moved.x[0], tokens, atol=1e-4)
    sizes = [1, 1.9994, 1, 4.9544, 1.9962]
    np.testing.assert_allclose(moved.effective_size[0], sizes, atol=1e-4)
    assert moved.size.tolist() == [[1, 2, 1, 5, 2]]
    pruned = decide(PruneAndMerge(kept=5), inputs, StepCounts(n_in=7, n_out=4))
    assert pruned.slot_of_token.tolist() == [[0, 1, 2, 3, 0, DROPPED, DROPPED]]
