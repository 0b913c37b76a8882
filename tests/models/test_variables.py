"""Variables of a model: the shapes of one block are those of all."""

import jax
import pytest

from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.reduction.methods import METHODS
from tests.models import tiny
from tests.models.test_vit_families import FAMILIES


@pytest.mark.parametrize(
    "family, reduction",
    [
        ("deit", None),
        ("dinov2", tiny.EVIT),
        ("siglip", "dtem:counts=(22,22,22)"),
    ],
)
def test_shapes_are_those_of_what_is_drawn(family, reduction):
    """One block is traced for all."""
    model = tiny.model(reduction, arch=FAMILIES[family], depth=3, stem="conv")
    images = jax.ShapeDtypeStruct((1, tiny.SIDE, tiny.SIDE, 3), "float32")
    drawn = jax.eval_shape(model.init, jax.random.key(0), images)
    assert variable_shapes(model) == drawn


LEARNED = [name for name in METHODS if tiny.model(tiny.small(name)).has_selectors]
OTHERS = [
    "dynamicvit:keep_rate=1.0:blocks=(1,)",  # none leaves
]


@pytest.mark.parametrize(
    "reduction, masked",
    [
        *((tiny.small(name), False) for name in LEARNED),
        *((reduction, False) for reduction in OTHERS),
        (tiny.small("spvit"), True),
    ],
)
def test_what_a_method_learns_is_what_is_drawn(reduction, masked):
    model = tiny.model(reduction, masked=masked, dtype="bfloat16")
    images = jax.ShapeDtypeStruct((1, tiny.SIDE, tiny.SIDE, 3), "float32")
    drawn = jax.eval_shape(model.init, jax.random.key(0), images)
    assert variable_shapes(model) == drawn
    assert any(part.startswith("reducer") for part in drawn["params"])
