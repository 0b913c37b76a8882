"""Contract of learned methods: gradients for all parameters, MACs for all products.

Every method in `METHODS` with Flax modules as reducers is tested in its training form.
A new method is covered by its line there.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from imagepiece_jax.models import cost
from imagepiece_jax.reduction.methods import METHODS
from tests.helpers import masked_models, tiny_vit
from tests.models.test_vit_families import few


def model_of(name, **options):
    """A model of a method, in as few blocks as train all parameters."""
    depth, reduction, _ = few(name)
    if name in ("dtem", "imagepiece_dynamicvit"):
        depth += 1  # only the next block reads the last decision
    if name == "dtem":  # it has one count per block
        reduction = tiny_vit.small(name)
    return tiny_vit.model(reduction, depth=depth, **options)


LEARNED = [name for name in METHODS if model_of(name).has_selectors]
assert len(LEARNED) >= 5


@pytest.mark.parametrize("name", LEARNED)
def test_the_logits_teach_every_parameter_of_a_reducer(name):
    """In bfloat16. A choice without a gradient, such as top-k, would learn nothing."""
    model = model_of(name, masked=True, dtype="bfloat16")
    params = tiny_vit.variables(model)["params"]
    images = tiny_vit.images(4)
    probe = np.random.default_rng(0).normal(size=(4, tiny_vit.CLASSES))
    learned = {key: params[key] for key in params if key.startswith("reducer_")}

    def loss(learned):
        variables = {"params": params | learned}
        out = model.apply(variables, images, True, masked_models.keys(4))
        return jnp.sum(out.logits * probe)

    slopes = tiny_vit.compiled(jax.grad(loss))(learned)
    chex.assert_trees_all_equal_shapes_and_dtypes(slopes, learned)
    chex.assert_tree_all_finite(slopes)
    largest = jax.tree.map(lambda slope: np.abs(slope).max(), slopes)
    largest = traverse_util.flatten_dict(largest, sep="/")
    assert [path for path, slope in largest.items() if not slope] == []
    assert max(largest.values()) > 1e-3


@pytest.mark.parametrize("name", LEARNED)
def test_what_a_reducer_multiplies_is_counted(name):
    """`extra_macs` counts every weight at least once per image."""
    model = model_of(name)
    counted = sum(cost.reducer_macs(model, layer) for layer in model.plan)
    params = traverse_util.flatten_dict(tiny_vit.shapes(model)["params"], sep="/")
    kernels = {path: leaf for path, leaf in params.items() if path.endswith("kernel")}
    learned = {k: v for k, v in kernels.items() if k.startswith("reducer_")}
    assert counted >= tiny_vit.count(learned) > 0
