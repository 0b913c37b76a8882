"""A warm call copies nothing to or from a device unasked, and traces nothing again.

JAX's guard refuses implicit copies, such as a program's weights from a host; the
package copies by `jax.device_put`, `jax.device_get` or its own guard.
"""

import types

import jax
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.common import parallel
from imagepiece_jax.evaluation import accuracy
from imagepiece_jax.visualize.trace import trace_tokens
from tests.helpers import tiny_vit
from tests.helpers.rounding import assert_close

REDUCTION = "tome:r=3"
FAST = {"compiler_options": {"xla_backend_optimization_level": 0}}
FIELDS = {"depth": 2, "image_size": tiny_vit.SIDE, "num_classes": 4, "patch_size": 4}
PIXELS = np.random.default_rng(0).integers(
    0, 256, (48, *[tiny_vit.SIDE] * 2, 3), np.uint8
)
FLOATS = np.float32(PIXELS[:3])
ROWS = {"image": PIXELS[None, :3], "label": np.zeros((1, 3), np.int32)}
ROWS |= {"mask": np.ones((1, 3), np.float32), "index": np.arange(3)[None]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    shapes = tiny_vit.loaded_model("weights", REDUCTION, name="vit_mini", **FIELDS)
    vit = shapes.with_variables(tiny_vit.variables(shapes.model))
    folder = tmp_path_factory.mktemp("transfers")
    step = accuracy.make_eval_step(vit.model)
    program = imagepiece_jax.optimize(vit, batch_size=4, **FAST)
    pixels = imagepiece_jax.optimize(vit, batch_size=4, pixels=True, **FAST)
    return types.SimpleNamespace(
        vit=vit,
        saved=imagepiece_jax.save(vit, folder / "vit"),
        program=program,
        predictor=imagepiece_jax.Predictor(vit, batch_size=4, **FAST),
        step=step,
        program_step=accuracy.make_program_step(pixels),
        on_devices=parallel.replicate(vit.variables),
    )


# {name: a function of `prepared` that calls it}
CALLS = {
    "Predictor.__call__": lambda of: of.predictor(PIXELS[:3]),
    "Pretrained.with_reduction": lambda of: of.vit.with_reduction(0.5),
    "Program.__call__": lambda of: of.program(PIXELS[:4]),
    "features": lambda of: imagepiece_jax.features(of.vit, PIXELS[:3]),
    "load": lambda of: imagepiece_jax.load(of.saved),
    "optimize": lambda of: imagepiece_jax.optimize(of.vit, batch_size=4, **FAST),
    "recover": lambda of: imagepiece_jax.recover(of.vit, PIXELS, steps=1, batch_size=8),
    # Commands call these for every batch, or several times.
    "evaluate": lambda of: accuracy.evaluate_model(of.step, of.on_devices, [ROWS]),
    "evaluate a program": lambda of: accuracy.evaluate_model(
        of.program_step, None, [ROWS]
    ),
    "visualize": lambda of: trace_tokens(of.vit.model, of.vit.variables, PIXELS[:9]),
}
# These compile in every call.
COMPILING = {"optimize", "recover"}


@pytest.mark.filterwarnings("ignore:the values of images")
@pytest.mark.usefixtures("recoveries_compiled_once")
@pytest.mark.parametrize("name", CALLS)
def test_a_warm_call_copies_nothing_unasked(name, prepared, caplog):
    call = CALLS[name]
    call(prepared)
    with jax.transfer_guard("disallow"), jax.log_compiles():
        call(prepared)
    traced = [line for line in caplog.messages if line.startswith("Finished tracing")]
    assert name in COMPILING or traced == []


def test_weights_follow_images_to_other_devices():
    devices = jax.local_devices(backend="cpu")[:2]
    mesh = jax.sharding.Mesh(np.array(devices), ("images",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("images"))
    vit = tiny_vit.pretrained(depth=1)
    images = jax.device_put(tiny_vit.images(2), sharding)
    expected = imagepiece_jax.features(vit, np.asarray(images)).pooled
    outputs = imagepiece_jax.features(vit, images)
    assert outputs.pooled.sharding.device_set == images.sharding.device_set
    assert_close(outputs.pooled, expected)
