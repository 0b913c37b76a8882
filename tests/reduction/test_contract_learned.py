"""Contract of learned methods: gradients for all parameters.

Tests run every method in `METHODS` whose reducers are Flax modules, in training form.
A new method's line there covers it.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from imagepiece_jax.reduction.methods import METHODS
from tests.helpers import masked_models, tiny_vit
from tests.models.test_vit_families import small_case


def learned_model(name, **options):
    """A method's model, with the fewest blocks that train all parameters."""
    depth, reduction, _ = small_case(name)
    if name in ("dtem", "imagepiece_dynamicvit"):
        depth += 1  # only the next block reads the last decision
    if name == "dtem":  # DTEM has one count per block
        reduction = tiny_vit.small_reduction(name)
    return tiny_vit.model(reduction, depth=depth, **options)


LEARNED = [name for name in METHODS if learned_model(name).has_selectors]
assert len(LEARNED) >= 5


@pytest.mark.parametrize("name", LEARNED)
def test_the_logits_teach_every_parameter_of_a_reducer(name):
    """In bfloat16. A choice without a gradient, such as top-k, would learn nothing."""
    model = learned_model(name, masked=True, dtype="bfloat16")
    params = tiny_vit.variables(model)["params"]
    images = tiny_vit.images(4)
    probe = np.random.default_rng(0).normal(size=(4, tiny_vit.CLASSES))
    learned = {key: params[key] for key in params if key.startswith("reducer_")}

    def loss(learned):
        variables = {"params": params | learned}
        out = model.apply(variables, images, True, masked_models.keys(4))
        return jnp.sum(out.logits * probe)

    gradients = tiny_vit.compiled(jax.grad(loss))(learned)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, learned)
    chex.assert_tree_all_finite(gradients)
    largest_gradients = jax.tree.map(lambda slope: np.abs(slope).max(), gradients)
    largest_gradients = traverse_util.flatten_dict(largest_gradients, sep="/")
    assert [path for path, slope in largest_gradients.items() if not slope] == []
    assert max(largest_gradients.values()) > 1e-3
