import jax
import pytest

from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.reduction.methods import METHODS
from tests.helpers import tiny_vit
from tests.models.test_vit_families import FAMILIES

BFLOAT16 = {"dtype": "bfloat16"}
SMALL = {name: tiny_vit.small_reduction(name) for name in METHODS}
LEARNED = [SMALL[name] for name in METHODS if tiny_vit.model(SMALL[name]).has_selectors]


@pytest.mark.parametrize(
    "reduction, options",
    [
        (None, {"stem": "conv"}),
        (tiny_vit.EVIT, {"arch": FAMILIES["dinov2"], "stem": "conv"}),
        ("dtem:counts=(22,22,22)", {"arch": FAMILIES["siglip"], "stem": "conv"}),
        *((reduction, BFLOAT16) for reduction in LEARNED),
        ("dynamicvit:keep_rate=1.0:blocks=(1,)", BFLOAT16),  # no token leaves
        (SMALL["spvit"], BFLOAT16 | {"masked": True}),
    ],
)
def test_shapes_equal_those_of_drawn_variables(reduction, options):
    model = tiny_vit.model(reduction, **options)
    images = jax.ShapeDtypeStruct((1, tiny_vit.SIDE, tiny_vit.SIDE, 3), "float32")
    drawn = jax.eval_shape(model.init, jax.random.key(0), images)
    assert variable_shapes(model) == drawn
    drawn_reducers = any(part.startswith("reducer") for part in drawn["params"])
    assert drawn_reducers == model.has_selectors
