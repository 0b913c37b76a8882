"""Kernels and estimated times of configs on an H200, compiled without a GPU.

python -m tools.compile_only --config configs/deit_s.py \\
    --config configs/deit_s_imagepiece.py --batch_size 256 --mode inference,train

Needs JAX's CUDA wheels (pip install ".[train,gpu]"), no GPU and no driver. XLA compiles
for a described GPU, and each kernel's time is estimated from its bytes and products.
"""

import contextlib
import functools
import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.benchmark import suite, workloads
from imagepiece_jax.common import parallel, xla_options
from imagepiece_jax.common.tables import text_table
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import optimize
from imagepiece_jax.models import attention
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.training.train_step import batch_shapes
from tools import h200

cli.define_config("a config file; several are compared with the first")
BATCH_SIZE = flags.DEFINE_multi_string(
    "batch_size", ["256"], "one or more, such as 8,256", allow_override=True
)
MODE = cli.listed("mode", ["inference"], "inference, train, or both")
DTYPE = cli.dtype("of weights and layers")
GELU = cli.gelu()
KERNELS = cli.switch("kernels", False, "list every kernel of every program")
UNPADDED = cli.switch(
    "unpadded", False, "train cuDNN's attention with odd lengths, which JAX refuses"
)

NOTE = (
    "Compiled for an NVIDIA H200, not run: the times are estimates, good for comparing "
    "two versions of a program and 10 % off as times (see PERFORMANCE.md)."
)
OPTIONS = xla_options.options("gpu")


def main():
    configs = cli.configs()
    try:
        sizes = suite.batch_sizes(BATCH_SIZE.value)
    except InputError as error:
        raise error.renamed({"batch_size": "--batch_size"}) from error
    for mode in MODE.value or [""]:
        if mode not in PROGRAMS:
            raise InputError("--mode", mode, ", ".join(PROGRAMS))
    for config in configs.values():
        config.model.dtype = DTYPE.value or "bfloat16"
    with unpadded() if UNPADDED.value else contextlib.nullcontext():
        for size, mode in itertools.product(sizes, MODE.value):
            print(report(configs.items(), size, mode, KERNELS.value, GELU.value))


@contextlib.contextmanager
def unpadded():
    """Context in which attention neither pads odd lengths nor does JAX refuse them.

    What compiles then is not known to run: see Odd lengths in PERFORMANCE.md.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    with (
        mock.patch.object(attention, "padded_length", lambda length, _: length),
        mock.patch.object(cudnn, "check_is_flash_attention", lambda *_, **__: None),
    ):
        yield


def report(configs, batch_size, mode="inference", kernels=False, gelu=None):
    """The table of configs, as text.

    A row per config: kernels and estimated milliseconds by kind, GMACs, and the speed
    relative to the first.

    configs: [(name, config)]
    mode: "inference" (the program of `inference.optimize`) or "train" (a whole step)
    kernels: whether every kernel of every program is listed, too
    gelu: of programs of mode inference, as `optimize` takes it
    Raises InputError without JAX's CUDA wheels.
    """
    h200.device()  # before JAX is used otherwise
    programs = []
    for name, config in configs:
        config = config.copy_and_resolve_references()
        config.batch_size = batch_size
        options = {"gelu": gelu} if mode == "inference" else {}
        programs.append((name, PROGRAMS[mode](config, **options), _gmacs(config)))
    title = f"mode {mode}, batch size {batch_size}; by kind: estimated ms (kernels)"
    parts = [NOTE, title, _overview(programs)]
    if kernels:
        parts += [f"{name}\n{h200.table(text)}" for name, text, _ in programs]
    return "\n\n".join(parts)


def _overview(programs):
    """[(name, compiled text, GMACs)] -> a table, one row each, a column per kind."""
    summaries = [h200.summary(text) for _, text, _ in programs]
    kinds = list(dict.fromkeys(itertools.chain(*summaries)))
    rows = [("kernels", "estimated ms", *kinds, "GMACs", "times as fast", "config")]
    first = _total(summaries[0])[1]
    for (name, _, gmacs), row in zip(programs, summaries, strict=True):
        count, ms = _total(row)
        cells = (_cell(row.get(kind)) for kind in kinds)
        speed = f"{first / ms:.3f}"
        rows.append((count, f"{ms:.3f}", *cells, f"{gmacs:.3f}", speed, name))
    return text_table(rows)


def _total(by_kind):
    counts, times = zip(*by_kind.values(), strict=True)
    return sum(counts), sum(times)


def _cell(count_and_ms):
    """ "0.401 (12)": milliseconds of 12 kernels."""
    return f"{count_and_ms[1]:.3f} ({count_and_ms[0]})" if count_and_ms else "-"


def _gmacs(config):
    """GMACs of one image, forward."""
    model = RunConfig.from_config(unplaced(config)).create_model()
    return model_macs(model, config.image_size) / 1e9


def unplaced(config):
    """Return `config` with an attention that every device supports."""
    config = config.copy_and_resolve_references()
    config.model.attention = "xla"
    return config


def placed(model, config):
    """Return `model` with the attention of `config` on an H200."""
    return optimize.for_device(model, h200.device(), config.model.attention)


def inference_text(config, gelu=None):
    """Return the compiled text of `inference.optimize`'s program for `config`."""
    return forward_text(
        RunConfig.from_config(unplaced(config)).create_model(),
        config.batch_size,
        config.image_size,
        dtype=config.model.dtype,
        place=functools.partial(placed, config=config),
        gelu=gelu,
    )


def forward_text(model, batch_size, image_size, dtype, place, **options):
    """Return the compiled text of `inference.optimize`'s program for a ViT.

    place: from a model to the one with its attention on an H200
    options: fields of CompileOptions, such as gelu and sizes
    """
    options = optimize.CompileOptions(batch_size=batch_size, **options)
    on_gpu = place(model.clone(dtype=jnp.dtype(dtype)))
    gelu = options.gelu or optimize.default_gelu(on_gpu, h200.device())
    reductions = options.reductions or optimize.default_reductions(
        on_gpu, h200.device()
    )
    pixels = optimize.joined_pixels(on_gpu, h200.device())
    if optimize.takes_direction(on_gpu, options):
        model = model.clone(sizes="direction")  # which has the shapes of a folded one
    prepared = []

    def prepare(variables):
        fast, weights = optimize.prepare(
            model, variables, dtype=dtype, gelu=gelu, pixels=pixels
        )
        prepared.append(fast)
        return weights

    weights = jax.eval_shape(prepare, variable_shapes(model, image_size))
    images = jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), dtype)
    forward = optimize.forward(place(prepared[0]), reductions=reductions)
    return h200.compile_for(forward, weights, images, options=OPTIONS)


def train_text(config, devices=1):
    """Return the compiled text of a training step on `devices` H200s of one host.

    `config.batch_size` counts the images of all of them.
    """
    mesh = jax.sharding.Mesh(np.array(h200.devices(devices)), (parallel.AXIS,))
    step, first_state, model, teacher = workloads.training_step(
        unplaced(config), lambda model: placed(model, config)
    )
    state = jax.eval_shape(first_state, variable_shapes(model, config.image_size))
    if teacher is not None:
        teacher = variable_shapes(teacher, config.image_size)
    micro = config.batch_size // (devices * config.grad_accum_steps)
    leading = (devices, config.grad_accum_steps, micro)
    batch = batch_shapes(RunConfig.from_config(config), leading)
    fn, places = mapped(step, mesh)
    return h200.compile_for(
        fn, state, batch, teacher, options=OPTIONS, donate=(0,), places=places
    )


PROGRAMS = {"inference": inference_text, "train": train_text}


def mapped(step, mesh):
    """Return `step` mapped over the devices of `mesh`, and its arguments' shardings.

    The equivalent of `parallel.pmap` for devices that are only described. Arguments are
    (state, batch, teacher); the batch has a leading axis of devices.
    """
    everywhere = jax.sharding.PartitionSpec()
    split = jax.sharding.PartitionSpec(parallel.AXIS)
    specs = (everywhere, split, everywhere)

    def of_one(state, batch, teacher):
        return step(state, jax.tree.map(lambda x: x[0], batch), teacher)

    fn = jax.shard_map(
        of_one, mesh=mesh, in_specs=specs, out_specs=everywhere, check_vma=False
    )
    return fn, [jax.sharding.NamedSharding(mesh, spec) for spec in specs]


if __name__ == "__main__":
    cli.run(main)
