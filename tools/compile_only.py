"""Kernels and guessed times of configs on a GPU that is not here.

`benchmark --compile-only h200` prints this. Nothing is run: XLA compiles for a GPU that
is only described, and the time of each kernel is guessed from its bytes and products.
"""

import functools

import jax
import numpy as np

from imagepiece_jax.common import parallel, xla_options
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import optimize
from imagepiece_jax.models import registry, summary
from imagepiece_jax.training import from_config
from imagepiece_jax.training.train_step import init_state
from tools import h200

NOTE = (
    "Compiled for an NVIDIA H200, not run: the times are guesses, good for comparing "
    "two versions of a program and 10 % off as times (see docs/performance.md)."
)
OPTIONS = xla_options.options("gpu")
STEPS_PER_EPOCH = 1251  # of the schedules: any number gives the same program


def report(configs, batch_size, mode="inference", kernels=False):
    """A table of `configs`, [(name, config)], for people to read.

    One row a config: kernels and guessed milliseconds by kind, GMACs, and how many
    times as fast as the first. mode: "inference" (the program of `inference.optimize`)
    or "train" (a whole step); kernels: below it every kernel of every program.
    InputError without JAX's CUDA wheels, for what does not fit, and for another mode.
    """
    if mode not in PROGRAMS:
        raise InputError(
            f"--mode is {mode!r} with --compile-only; allowed are {', '.join(PROGRAMS)}"
        )
    h200.device()  # before JAX is used otherwise
    programs = []
    for name, config in configs:
        config = config.copy_and_resolve_references()
        config.batch_size = batch_size
        programs.append((name, PROGRAMS[mode](config), _gmacs(config)))
    title = f"mode {mode}, batch size {batch_size}; by kind: guess in ms (kernels)"
    parts = [NOTE, title, _overview(programs)]
    if kernels:
        parts += [f"{name}\n{h200.table(text)}" for name, text, _ in programs]
    return "\n\n".join(parts)


def _overview(programs):
    """[(name, compiled text, GMACs)] -> one row each, the kinds side by side."""
    found = [h200.summary(text) for _, text, _ in programs]
    kinds = list(dict.fromkeys(kind for row in found for kind in row))
    rows = [("kernels", "guess, ms", *kinds, "GMACs", "times as fast", "config")]
    first = _total(found[0])[1]
    for (name, _, gmacs), row in zip(programs, found, strict=True):
        count, ms = _total(row)
        cells = (_cell(row.get(kind)) for kind in kinds)
        speed = f"{first / ms:.3f}"
        rows.append((count, f"{ms:.3f}", *cells, f"{gmacs:.3f}", speed, name))
    return summary.format_table(rows)


def _total(found):
    counts, times = zip(*found.values(), strict=True)
    return sum(counts), sum(times)


def _cell(found):
    """ "0.401 (12)": milliseconds of 12 kernels."""
    return f"{found[1]:.3f} ({found[0]})" if found else "-"


def _gmacs(config):
    """Of one image, forward."""
    return (
        registry.model_macs(from_config.model(_unplaced(config)), config.image_size)
        / 1e9
    )


def _unplaced(config):
    """`config` with an attention and reductions that any device has."""
    config = config.copy_and_resolve_references()
    config.model.update(attention="xla", kernels="plain")
    return config


def _placed(model, config):
    """`model` with the attention and kernels that `config` asks for on an H200."""
    asked = config.model
    return optimize.placed(model, h200.device(), asked.attention, asked.kernels)


def inference_text(config):
    """Compiled text of the program that `inference.optimize` makes of `config`."""
    model, dtype = from_config.model(_unplaced(config)), config.model.dtype
    shapes = summary.shapes(model, config.image_size)
    prepare = functools.partial(optimize.prepare, model, dtype=dtype)
    fast = []

    def variables(given):
        made, weights = prepare(given)
        fast.append(made)
        return weights

    shapes = jax.eval_shape(variables, shapes)
    side = config.image_size
    images = jax.ShapeDtypeStruct((config.batch_size, side, side, 3), dtype)
    forward = optimize.forward(_placed(fast[0], config))
    return h200.compile_for(forward, shapes, images, options=OPTIONS)


def train_text(config, devices=1):
    """Compiled text of a step of training as `config` has it, on so many H200s.

    Those are the GPUs of one host; `config.batch_size` is of all of them.
    """
    mesh = jax.sharding.Mesh(np.array(h200.devices(devices)), (parallel.AXIS,))
    unplaced = _unplaced(config)
    model = from_config.train_model(unplaced, config.epochs - 1, parallel.AXIS)
    rate = from_config.schedule(config, STEPS_PER_EPOCH)
    optimizer = from_config.adamw(config, rate, STEPS_PER_EPOCH)
    shapes = summary.shapes(model, config.image_size)
    first = functools.partial(
        init_state, optimizer=optimizer, with_ema=config.ema_decay > 0
    )
    teacher_model = teacher = None
    if from_config.method(config).needs_teacher:
        dense = from_config.dense(unplaced, drop_path_rate=0.0)
        teacher_model = _placed(dense, config)
        teacher = summary.shapes(dense, config.image_size)
    step = from_config.step(
        config, _placed(model, config), optimizer, rate, teacher_model
    )
    state = jax.eval_shape(first, shapes)
    micro = config.batch_size // (devices * config.grad_accum_steps)
    batch = from_config.batch_shapes(config, (devices, config.grad_accum_steps, micro))
    fn, places = mapped(step, mesh)
    return h200.compile_for(
        fn, state, batch, teacher, options=OPTIONS, donate=(0,), places=places
    )


PROGRAMS = {"inference": inference_text, "train": train_text}


def mapped(step, mesh):
    """`step` on the devices of `mesh`, and where its arguments lie there.

    What `parallel.pmap` makes of it, for devices that are only described: (state,
    batch, teacher), of which the batch has a leading axis of devices.
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
