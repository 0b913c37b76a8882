import dataclasses
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.inference import optimize
from imagepiece_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from imagepiece_jax.models.pretrained import Pretrained
from tests.helpers import tiny_vit
from tests.helpers.picture_files import noise
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close

QUICK = {"xla_backend_optimization_level": 0}
EVIT = "evit:keep_rate=0.6:blocks=(0,)"  # 25 image tokens, 15
PIXELS = noise(3, tiny_vit.SIDE, tiny_vit.SIDE)


def optimize_quickly(model, variables, **options):
    options = {"batch_size": 3, "compiler_options": QUICK, "device": "cpu"} | options
    return optimize.optimize(Pretrained(model, variables), **options)


@pytest.fixture(scope="module")
def trained():
    """A reduced model with the conv stem and batch statistics."""
    model = tiny_vit.model(EVIT, stem="conv", depth=1)
    return model, tiny_vit.variables(model)


@pytest.fixture(scope="module")
def program(trained):
    return optimize_quickly(*trained, dtype="float32")


@pytest.fixture(scope="module")
def for_pixels():
    """(model, variables, its program): patch stem, bfloat16, another GELU."""
    model = tiny_vit.model(depth=1)
    variables = tiny_vit.variables(model)
    options = {"dtype": "bfloat16", "gelu": "tanh", "pixels": True}
    return model, variables, optimize_quickly(model, variables, **options)


def test_folded_norms_keep_the_logits(trained, program):
    model, variables = trained
    logits = tiny_vit.logits(model)(variables, tiny_vit.images())
    assert "batch_stats" not in program.variables
    for images in (tiny_vit.images(), np.asarray(tiny_vit.images())[:2]):
        rows = np.asarray(program(images))
        assert (rows.shape, rows.dtype) == ((len(images), tiny_vit.CLASSES), "float32")
        np.testing.assert_allclose(rows, logits[: len(images)], atol=2e-5)
        np.testing.assert_array_equal(program(images), rows)  # a second call


def test_fast_reductions_are_another_program():
    model = tiny_vit.model("attended:blocks=(1,):macs=0.7", dtype="bfloat16")
    arguments = tiny_vit.shapes(model), tiny_vit.images(2)
    jaxprs = set()
    for mode in optimize.REDUCTION_MODES:
        run = optimize.make_logits_function(model, mode)
        jaxprs.add(str(jax.make_jaxpr(run)(*arguments)))
    assert len(jaxprs) == 2


@pytest.mark.parametrize("batch_size, small", [(1, 2**16), (1, 400), (9, 2**16)])
def test_small_batches_compile_small_arrays_in(trained, batch_size, small, monkeypatch):
    """No call passes them, not even as constants that JAX makes arguments."""
    monkeypatch.setattr(optimize, "SMALL_WEIGHT", small)
    fast = optimize_quickly(*trained, pixels=True, batch_size=batch_size)
    inside = small if batch_size == 1 else 0
    leaves = jax.tree.leaves(fast.variables)
    sizes = [leaf.nbytes for leaf in leaves if leaf.nbytes > inside]
    assert [argument.nbytes for argument in fast.arguments] == sizes
    passed = sum(sizes) + np.prod(fast.input_spec.shape)
    assert fast.compiled.memory_analysis().argument_size_in_bytes == passed


def test_images_may_be_on_any_device(trained):
    first, second = jax.devices()[:2]
    fast = optimize_quickly(*trained, device=second, pixels=True)
    assert fast.model.execution.dtype == jnp.float32
    logits = fast(PIXELS)
    assert logits.devices() == {second}
    np.testing.assert_array_equal(fast(jax.device_put(PIXELS, first)), logits)
    reversed_view = PIXELS[..., ::-1]
    np.testing.assert_array_equal(fast(reversed_view), fast(reversed_view.copy()))


def test_pixels_in_bfloat16_with_another_gelu(for_pixels):
    """uint8 images, against float32 on images normalized by hand."""
    model, variables, fast = for_pixels
    normalized = (PIXELS / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    tanh_model = model.clone(config=model.config.with_arch(gelu="tanh"))
    expected = tiny_vit.logits(tanh_model)(variables, np.float32(normalized))
    np.testing.assert_allclose(fast(PIXELS), expected, atol=0.1)
    assert (fast.model.config.arch.gelu, model.config.arch.gelu) == ("tanh", "exact")
    assert fast.input_spec.dtype == "uint8"
    assert "bfloat16, tanh GELU" in repr(fast)


@pytest.mark.parametrize(
    "platform, dtype, arch, form",
    [
        ("gpu", "bfloat16", {}, "tanh"),
        ("gpu", "float32", {}, "exact"),
        ("cpu", "bfloat16", {}, "exact"),
        ("gpu", "bfloat16", {"gelu": "quick"}, "quick"),
        ("gpu", "bfloat16", {"mlp": "swiglu"}, "exact"),
        ("gpu", "bfloat16", {"mlp": "swiglu", "pool": "map"}, "tanh"),
    ],
)
def test_gpus_take_tanh_for_exact_in_two_bytes(platform, dtype, arch, form):
    """GPUs also reduce with fewer kernels."""
    device = types.SimpleNamespace(platform=platform)
    model = tiny_vit.model(dtype=dtype, arch=arch)
    assert optimize.default_gelu(model, device) == form
    is_fast = (platform, dtype) == ("gpu", "bfloat16")
    assert (optimize.default_reductions(model, device) == "fast") == is_fast


def test_unrequested_forms_are_the_devices(monkeypatch):
    model = tiny_vit.model(depth=1, dtype="bfloat16", stem="conv")
    monkeypatch.setattr(optimize, "is_16_bit_on_gpu", lambda *_: True)
    monkeypatch.setattr(
        optimize, "make_logits_function", lambda *_: lambda *_: jnp.zeros(())
    )
    program = optimize_quickly(model, tiny_vit.variables(model), dtype="bfloat16")
    assert (program.model.config.arch.gelu, program.reductions) == ("tanh", "fast")
    assert program.model.execution.folded == tiny_vit.PATCH
    kernel = program.variables["params"]["patch_embed"]["conv_0"]["kernel"]
    assert kernel.shape[-1] == 3 * tiny_vit.PATCH


def test_only_cast_parameters_are_stored_in_two_bytes():
    """Shapes can be prepared without weights."""
    model = tiny_vit.model("dynamicvit:keep_rate=0.7:blocks=(1,)", dtype="bfloat16")
    variables = tiny_vit.variables(model)
    shapes = jax.eval_shape(lambda v: optimize.fold_and_cast(model, v)[1], variables)
    _, variables = optimize.fold_and_cast(model, variables)
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, shapes)
    params = variables["params"]
    assert params["blocks_0"]["attn"]["q"]["kernel"].dtype == jnp.bfloat16
    assert params["pos_embed"].dtype == jnp.bfloat16
    for part in ("head", "norm", "reducer_1"):
        chex.assert_type(jax.tree.leaves(params[part]), jnp.float32)
    assert params["blocks_1"]["norm2"]["scale"].dtype == jnp.float32


def test_impossible_options_are_refused(trained):
    with refused("gelu", "one of None, 'exact', 'tanh'"):
        optimize_quickly(*trained, gelu="quick")
    with refused("reductions", "but dtype is float32"):
        optimize_quickly(*trained, reductions="fast")


def test_pixels_are_normalized(trained, program, for_pixels):
    """A program of float images normalizes uint8 images, too."""
    pixels = PIXELS[:2]
    images = normalize(pixels, IMAGENET_MEAN, IMAGENET_STD)
    for images_of_pixels in (pixels, jnp.asarray(pixels)):
        assert_close(program(images_of_pixels), program(images))
    warning = "images are far from 0, as pixels of 0 .. 25"
    fresh = dataclasses.replace(program)
    fresh(np.zeros_like(images))  # zeros do not show the range
    with pytest.warns(UserWarning, match=warning) as warned:
        fresh(np.float32(pixels))
    assert warned[0].filename == __file__
    fresh(np.float32(pixels))  # checked once
    with refused("images", "it must be "):
        for_pixels[2](tiny_vit.images())
    with refused("images is 4"):
        program(np.zeros((4, 20, 20, 3)))
