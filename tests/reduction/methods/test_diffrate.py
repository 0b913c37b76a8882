import pytest

from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.create import create_model
from imagepiece_jax.reduction.methods.diffrate import load_schedules
from tests.helpers import named_models

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
    assert tuple(layer.mlp_tokens for layer in model.plan) == merge
    if arch:
        assert model_macs(model) == MAE[gmacs]
