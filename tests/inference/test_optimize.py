"""The fast program: the same function, and sentences for what it does not take."""

import dataclasses
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import optimize
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.vit import MEAN, STD
from imagepiece_jax.reduction.kernels import fused
from tests.models import tiny
from tests.rounding import assert_close

QUICK = {"xla_backend_optimization_level": 0}
EVIT = {"name": "evit", "keep_rate": 0.6, "blocks": (0,)}  # 25 image tokens, 15


def optimized(model, variables, **options):
    return optimize.optimize(
        Pretrained(model, variables),
        **{"batch_size": 3, "compiler_options": QUICK} | options,
    )


@pytest.fixture(scope="module")
def trained():
    """A reduced model with the conv stem, whose norms have seen images."""
    model = tiny.model(EVIT, stem="conv", depth=1)
    return model, tiny.variables(model)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("programs") / "new" / "cache"


@pytest.fixture(scope="module")
def program(trained, cache):
    return optimized(*trained, dtype="float32", cache_dir=cache)


@pytest.fixture(scope="module")
def for_pixels():
    """(model, variables, its program): patch stem, bfloat16, another GELU."""
    model = tiny.model(depth=1)
    variables = tiny.variables(model)
    fast = optimized(model, variables, dtype="bfloat16", gelu="tanh", pixels=True)
    return model, variables, fast


@pytest.fixture(scope="module")
def logits(trained):
    model, variables = trained
    return np.asarray(tiny.jit(model.apply)(variables, tiny.images()).logits)


def test_folded_norms_change_nothing(program, logits):
    np.testing.assert_allclose(program(tiny.images()), logits, atol=2e-5)
    assert "batch_stats" not in program.variables


def test_the_default_is_the_fast_dtype_of_the_device(trained, program, cache):
    assert optimized(*trained, cache_dir=cache).model.dtype == jnp.float32
    assert program.model.dtype == jnp.float32


def test_a_smaller_batch_gives_its_own_logits(program, logits):
    for images in (tiny.images()[:2], np.asarray(tiny.images())[:2]):
        out = program(images)
        assert out.shape == (2, tiny.CLASSES) and out.dtype == jnp.float32
        np.testing.assert_allclose(out, logits[:2], atol=2e-5)


def test_a_device_by_its_platform(trained, cache):
    for name in ("cpu", "cpu:0"):
        fast = optimized(*trained, dtype="float32", device=name, cache_dir=cache)
        assert fast.device == jax.devices("cpu")[0]


def test_images_can_be_used_again(program):
    images = tiny.images()
    first = np.asarray(program(images))
    np.testing.assert_array_equal(program(images), first)


def test_pixels_in_bfloat16_with_another_gelu(for_pixels):
    """uint8 images; against float32 on images normalized by hand."""
    model, variables, fast = for_pixels
    pixels = np.random.default_rng(1).integers(0, 256, (3, tiny.SIDE, tiny.SIDE, 3))
    normalized = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    tanh = model.clone(arch=dataclasses.replace(model.arch, gelu="tanh"))
    images = jnp.asarray(normalized, jnp.float32)
    want = np.asarray(tiny.jit(tanh.apply)(variables, images).logits)
    np.testing.assert_allclose(fast(pixels.astype(np.uint8)), want, atol=0.1)
    assert (fast.model.arch.gelu, model.arch.gelu) == ("tanh", "exact")
    assert fast.images.dtype == "uint8"


def test_only_what_layers_cast_is_cast():
    model = tiny.model({"name": "dynamicvit", "keep_rate": 0.7, "blocks": (1,)})
    _, variables = optimize.prepare(model, tiny.variables(model))
    params = variables["params"]
    assert params["blocks_0"]["attn"]["q"]["kernel"].dtype == jnp.bfloat16
    assert params["pos_embed"].dtype == jnp.bfloat16
    for part in ("head", "norm", "reducer_1"):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params[part])} == {
            "float32"
        }
    assert params["blocks_1"]["norm2"]["scale"].dtype == jnp.float32


def test_shapes_can_be_prepared_without_weights(trained):
    model, variables = trained
    made = jax.eval_shape(lambda v: optimize.prepare(model, v)[1], variables)
    real = optimize.prepare(model, variables)[1]
    chex.assert_trees_all_equal_shapes_and_dtypes(real, made)


def test_description(program):
    text = program.describe()
    assert "3 images of 20x20, float32" in text
    assert "26 to 16 tokens, 0.000 GMACs an image" in text
    assert "float32, exact GELU, xla attention, plain reductions, conv stem" in text
    assert "compiler options: xla_backend_optimization_level=0" in text
    assert program.compile_seconds > 0
    assert program.memory.output_size_in_bytes == 3 * tiny.CLASSES * 4


def test_reductions_are_fused_on_cpus(monkeypatch):
    model = tiny.model(tiny.IMAGEPIECE, embed_dim=48)
    cpu, gpu = (types.SimpleNamespace(platform=name) for name in ("cpu", "gpu"))
    gpu.compute_capability = "9.0"
    monkeypatch.setattr(fused, "unsupported_reason", lambda *of: None)
    monkeypatch.setattr(fused.Kernel, "unsupported_reason", lambda *_, **options: None)
    assert optimize.default_kernels(model, cpu) == "auto"
    assert optimize.placed(model, cpu, kernels="auto").kernels == "cpu"
    assert optimize.default_kernels(model, gpu) == "plain"
    assert optimize.default_kernels(model.clone(kernels="9.0"), gpu) == "fused"


def test_programs_are_kept_where_asked_and_others_are_not(program, cache):
    kept = sorted(cache.iterdir())
    assert kept and jax.config.jax_compilation_cache_dir != str(cache)
    jax.jit(lambda x: x * 3)(jnp.ones(5))
    assert sorted(cache.iterdir()) == kept


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size is 0; allowed: whole numbers from 1"),
        ({"batch_size": True}, "batch_size is True; allowed: whole numbers from 1"),
        ({"batchsize": 8}, "batchsize is not an argument; did you mean batch_size?"),
        (
            {"image_size": 24},
            "image_size is 24; allowed: 20x20, the model's; load the weights",
        ),
        ({"dtype": []}, "dtype is []; allowed: float32, bfloat16, float16"),
        ({"dtype": "int8"}, "dtype is 'int8'; allowed: float32, bfloat16, float16"),
        (
            {"dtype": "float16"},
            "dtype is 'float16', in which CPUs compute no attention",
        ),
        ({"gelu": "relu"}, "gelu is 'relu'; allowed: 'exact', 'tanh', 'quick'"),
        ({"attention": "flash"}, "attention is 'flash'; allowed:"),
        ({"kernels": "quick"}, "kernels is 'quick'; allowed:"),
        ({"kernels": []}, "kernels is []; allowed: 'plain', 'fused', 'auto'"),
        ({"pixels": "no"}, "pixels is 'no'; allowed: True, False"),
        ({"compiler_options": 3}, "compiler_options is 3; allowed: dicts of"),
        ({"compiler_options": {"xla_no": 1}}, "No such compile option: 'xla_no'"),
        ({"device": ""}, "device is ''; allowed: a jax.Device, and the platforms"),
        ({"device": "cuda:9"}, "device is 'cuda:9'; allowed: a jax.Device, and the"),
        ({"device": "cpu:x"}, "device is 'cpu:x'; allowed: a jax.Device, and the p"),
        ({"cache_dir": 3}, "cache_dir is 3; allowed: paths of a folder"),
        ({"cache_dir": "/dev/null/x"}, "cache_dir /dev/null/x cannot be made"),
    ],
)
def test_impossible_options(trained, options, message):
    with pytest.raises(InputError) as caught:
        optimized(*trained, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_batch_size_is_asked_for(trained):
    with pytest.raises(InputError, match="batch_size is missing; allowed: whole n"):
        optimize.optimize(Pretrained(*trained), dtype="float32")


def test_variables_of_another_stem(trained):
    with pytest.raises(InputError, match="allowed: variables of this model") as bad:
        optimized(tiny.model(EVIT, depth=1), trained[1])
    name = "batch_stats/patch_embed/norm_0/mean"
    assert f"{name} is (15,), in the model it is no such variable" in str(bad.value)


def test_variables_of_another_shape(trained):
    with pytest.raises(InputError, match="variables: .*/.* is missing"):
        optimized(trained[0], {"params": {}})
    larger = tiny.model(EVIT, depth=1, stem="conv", image_size=24)
    other = r"pos_embed is \(1, 26, 30\), in the model it is \(1, 37, 30\)"
    with pytest.raises(InputError, match=other):
        optimized(larger, trained[1])


def test_pixels_are_normalized(trained, program):
    """As they are where nobody asked for a program of pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), np.uint8)
    images = normalize(pixels, MEAN, STD)
    for each in (pixels, jnp.asarray(pixels)):
        assert_close(program(each), program(images))
    with pytest.warns(UserWarning, match="images are far from 0, as pixels of 0 .. 25"):
        program(np.float32(pixels))


@pytest.mark.parametrize(
    "images, value, allowed",
    [
        ([1, 2], "list", "an array of shape [1 .. 3, 20, 20, 3]"),
        (np.zeros((3, 20, 24, 3)), "of shape (3, 20, 24, 3)", "an array of shape [1"),
        (np.zeros((4, 20, 20, 3)), 4, "1 to 3, the batch_size of optimize()"),
        (np.zeros((0, 20, 20, 3)), 0, "1 to 3, the batch_size of optimize()"),
        (np.zeros((3, 20, 20, 3), int), "int64", "floats, normalized, or uint8"),
    ],
)
def test_images_that_do_not_fit(program, images, value, allowed):
    with pytest.raises(InputError) as error:
        program(images)
    assert (error.value.field, error.value.value) == ("images", value)
    assert error.value.allowed.startswith(allowed)


def test_a_program_for_pixels_refuses_floats(for_pixels):
    with pytest.raises(InputError) as error:
        for_pixels[2](tiny.images())
    assert error.value.value == "float32" and error.value.allowed.startswith("uint8, ")


@pytest.mark.parametrize("swapped", [False, True])
def test_what_is_no_model_or_no_variables(swapped):
    vit = tiny.model(None)
    given = ({}, vit) if swapped else (vit, None)
    message = "types dict and ViT" if swapped else "types ViT and NoneType"
    with pytest.raises(InputError, match=message):
        optimize.optimize(Pretrained(*given), batch_size=1)
