"""Models on two devices of a mesh with explicit axes, `jax.make_mesh`'s default."""

import contextlib
import functools

import chex
import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

import imagepiece_jax
from tests.helpers import masked_models, tiny_vit
from tests.helpers.picture_files import noise

BATCH = 4
RANDOM = "random:keep_rate=0.7:blocks=(1,)"
LEARNED = tiny_vit.small_reduction("dynamicvit")
# A reduction, the model's options, and whether `jax.set_mesh` names the mesh.
CASES = [("tome:r=3", {"depth": 2}, True), (RANDOM, {"depth": 2}, False)]
CASES += [(LEARNED, {}, True)]
CASES += [(tiny_vit.IMAGEPIECE, {"stem": "conv", "drop_path_rate": 0.3}, False)]


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])


def divide(tree, mesh):
    """Divide a batch between the two devices."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("data")))


def place_variables(variables, mesh, whole=True):
    """Place variables whole on both devices, or halve their even last axes."""

    def put(leaf):
        last = "data" if not whole and leaf.shape[-1] % 2 == 0 else None
        spec = PartitionSpec(*[None] * (leaf.ndim - 1), last)
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(put, variables)


@pytest.mark.parametrize("reduction, fields, within", CASES)
def test_a_training_step_equals_one_on_one_device(reduction, fields, within, mesh):
    """Loss, gradients, statistics and tokens are equal, and placed like the input."""
    model = tiny_vit.model(reduction, **fields)
    keys = masked_models.keys(BATCH)
    keys["drop_path"] = keys["reducer"]
    variables = dict(tiny_vit.variables(model))
    params = variables.pop("params")

    run = functools.partial(model.apply, with_states=True, mutable=["batch_stats"])

    @tiny_vit.jit
    def step(params, statistics, images, keys):
        def loss(params):
            outputs, changed = run({"params": params, **statistics}, images, True, keys)
            tokens = outputs.tokens + outputs.states[-1].x  # of one kind
            return (outputs.logits**2).sum(), (changed, tokens)

        return jax.value_and_grad(loss, has_aux=True)(params)

    images = tiny_vit.images(BATCH)
    expected = step(params, variables, images, keys)
    placed = place_variables(params, mesh, whole=within)
    statistics = place_variables(variables, mesh)
    with jax.set_mesh(mesh) if within else contextlib.nullcontext():
        actual = step(placed, statistics, divide(images, mesh), divide(keys, mesh))
    chex.assert_trees_all_close(jax.device_get(actual), expected, rtol=2e-4, atol=2e-4)
    (_, (changed, tokens)), gradient = actual
    assert jax.typeof(tokens).sharding.spec[0] == "data"
    for param, slope in zip(*map(jax.tree.leaves, (placed, gradient)), strict=True):
        assert slope.sharding == param.sharding
    for statistic in jax.tree.leaves(changed):
        assert statistic.sharding.is_fully_replicated


def test_first_variables_do_not_depend_on_the_mesh(mesh):
    init = tiny_vit.jit(tiny_vit.model(LEARNED).init)
    images = tiny_vit.images(2)
    divided = init(jax.random.key(0), divide(images, mesh))
    chex.assert_trees_all_close(divided, init(jax.random.key(0), images), atol=1e-6)


@pytest.mark.filterwarnings("ignore:the values of images")
def test_features_stay_on_their_devices(mesh):
    vit = tiny_vit.pretrained("evit:keep_rate=0.6:blocks=(1,)", depth=2)
    images = tiny_vit.images(BATCH)
    maps = imagepiece_jax.features(vit, divide(images, mesh), layers=1)
    assert maps.patches.sharding.spec[0] == "data"
    expected = imagepiece_jax.features(vit, images, layers=1)
    chex.assert_trees_all_close(jax.device_get(maps), expected, rtol=1e-4, atol=1e-4)


class Around(nn.Module):
    """A user's module: a model, dropout and a head."""

    vit: nn.Module

    @nn.compact
    def __call__(self, images):
        logits = self.vit(images).logits
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=False)(logits))


def test_a_model_runs_inside_a_module_with_rngs(mesh):
    module = Around(tiny_vit.model("tome:r=3", depth=2))
    images = tiny_vit.images(BATCH)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = tiny_vit.fill(jax.eval_shape(module.init, rngs, images))
    apply = tiny_vit.jit(functools.partial(module.apply, rngs=rngs))
    expected = apply(variables, images)
    actual = apply(place_variables(variables, mesh), divide(images, mesh))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_entry_points_compute_alike_under_the_callers_mesh(mesh, tmp_path):
    vit = tiny_vit.pretrained("tome:r=3", depth=1)
    digits = tiny_vit.pretrained("tome:r=3", depth=1, num_classes=10, image_size=16)

    def compute(file):
        logits = imagepiece_jax.optimize(vit, 4, pixels=True)(noise(3, 20, 20))
        report = imagepiece_jax.evaluate(digits, "digits", limit=16, workers=0)
        file = imagepiece_jax.export(vit, tmp_path / file)
        return logits, report["loss"], file.stat().st_size

    expected = compute("without.onnx")
    with jax.set_mesh(mesh):
        actual = compute("within.onnx")
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)
