import chex
import jax
import numpy as np
import pytest

from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.inference import optimize
from imagepiece_jax.models import cost
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.cost import model_macs, stem_macs
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.variables import variable_shapes
from tests.helpers import named_models, tiny_vit

WIDE = (12, 20)  # of patches of 4: 3 rows of 5


def test_parts_of_a_model_are_counted_by_hand():
    """15 patches of 48 values, then 16 and 12 tokens."""
    model = tiny_vit.model("tome:r=4", image_size=WIDE, depth=1)
    block = 4 * 16 * 30**2 + 2 * 16**2 * 30 + 2 * 12 * 30 * 120
    assert model_macs(model) == 15 * 48 * 30 + block + 30 * 7
    conv_model = tiny_vit.model(stem="conv", embed_dim=6, image_size=(8, 12))
    assert stem_macs(conv_model.config) == 3 * (1296 + 648 + 144) // 2
    arch = Architecture(class_token=False, pool="map", mlp="swiglu")
    model = tiny_vit.model(arch=arch, image_size=WIDE, depth=1)
    block = 4 * 15 * 30**2 + 2 * 15**2 * 30 + 3 * 15 * 30 * 120
    pool = 2 * 15 * 30**2 + 2 * 15 * 30 + 30**2 + 2 * 30 * 120
    assert model_macs(model) == 15 * 48 * 30 + block + pool + 30 * 7
    leaves = jax.tree.leaves(variable_shapes(model)["params"])
    table = cost.cost_table(model, model).splitlines()
    assert table[-1].split()[-1] == f"{sum(np.prod(leaf.shape) for leaf in leaves):,}"
    head = 4 * (30**2 + 30) + 30 + 4 * 30 + (30 * 120 + 120) + (120 * 30 + 30)
    assert f"{head + 30 * 7 + 7:,}" in table[-2]  # norms, probe, pooling and classes


# The smallest covering images: int(28 / .875) = 32 and int(56 / .875) = 64.
@pytest.mark.parametrize(
    "size, resized", [((40, 80), (32, 64)), ((40, 100), (32, 80)), ((60, 80), (48, 64))]
)
def test_a_rectangular_crop_is_central(size, resized):
    image = np.full((*size, 3), 7, np.uint8)
    image[:, :, 0] = 2 * np.arange(size[0])[:, None]
    image[:, :, 1] = 2 * np.arange(size[1])[None, :]
    out = Preprocessing((28, 56))(image)
    assert out.shape == (28, 56, 3)
    for axis, (old, new, side) in enumerate(zip(size, resized, (28, 56), strict=True)):
        positions = ((new - side) / 2 + np.arange(side) + 0.5) * old / new - 0.5
        crop_line = out[:, 20, 0] if axis == 0 else out[20, :, 1]
        assert np.abs(crop_line - 2 * positions)[2:-2].max() <= 1


@pytest.mark.parametrize("folded", [False, True])
def test_pixels_beyond_whole_patches_are_not_read(folded):
    """They are at the bottom and on the right."""
    size = {"patch_size": 4, "embed_dim": 30, "depth": 1, "num_heads": 3}
    size |= {"arch": Architecture(), "mlp_ratio": 4.0, "num_classes": 7}
    cut = create_model(named_models.config(None, image_size=23, **size))
    whole = create_model(named_models.config(None, image_size=20, **size))
    variables = tiny_vit.fill(tiny_vit.shapes(whole))
    params = variable_shapes(cut)["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(params, variables["params"])
    images = tiny_vit.images(2, side=23)
    models = (cut, whole)
    if folded:
        fast = [optimize.fold_and_cast(m, variables) for m in models]
        models, (variables, _) = zip(*fast, strict=True)
    cut_logits, whole_logits = (
        tiny_vit.jit(m.apply)(variables, x).logits
        for m, x in zip(models, (images, images[:, :20, :20]), strict=True)
    )
    np.testing.assert_allclose(cut_logits, whole_logits, rtol=1e-5, atol=1e-5)
