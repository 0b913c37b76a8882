"""Variables of a model: the shapes of one block are those of all."""

import jax
import pytest

from imagepiece_jax.models.variables import variable_shapes
from tests.models import tiny
from tests.models.test_families import FAMILIES


@pytest.mark.parametrize("family", ["deit", "dinov2", "siglip"])
@pytest.mark.parametrize(
    "reduction", [None, tiny.EVIT, {"name": "dtem", "r_list": (3,)}]
)
def test_shapes_are_those_of_what_is_drawn(family, reduction):
    """One block is traced for all; not where some learn what to reduce."""
    model = tiny.model(reduction, arch=FAMILIES[family], depth=3, stem="conv")
    images = jax.ShapeDtypeStruct((1, tiny.SIDE, tiny.SIDE, 3), "float32")
    drawn = jax.eval_shape(model.init, jax.random.key(0), images)
    assert variable_shapes(model, tiny.SIDE) == drawn
