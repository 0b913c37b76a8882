"""Kernels of configs on an H200, compiled without a GPU.

python -m tools.compile_only --configs deit_s deit_s_imagepiece --mode inference train

A config is a file of configs/, deit_s:deit_ti with its argument.

XLA compiles for a described GPU, with the fusions, cuBLASLt and cuDNN calls of a real
one. It needs JAX's CUDA wheels (pip install ".[train,gpu]"), no GPU and no driver.
"""

import collections
import functools
import importlib
import itertools
import os
import pathlib
from pkgutil import iter_modules
from typing import Literal

import jax
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from imagepiece_jax import cli
from imagepiece_jax.benchmark import workloads
from imagepiece_jax.common import parallel, xla_options
from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.common.tables import text_table
from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.inference import optimize
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.train_step import batch_shapes
from tools import hlo

CONFIGS = [str(pathlib.Path(__file__).resolve().parent.parent / "configs")]
TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 13 minor: 0 patch: 0 }
"""


def main(
    *,
    configs: tuple[str, ...],
    batch_size: tuple[int, ...] = (256,),
    mode: tuple[Literal["inference", "train"], ...] = ("inference",),
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    gelu: Literal["exact", "tanh"] | None = None,
    kernels: bool = False,
):
    """Count the kernels of configs compiled for an H200, without an H200.

    Args:
        configs: Names of files of configs/.
        batch_size: One or more.
        mode: One or both.
        dtype: Of weights and layers.
        gelu: Of the optimized program.
        kernels: List every kernel of every program.
    """
    named = {name: read_config_file(name) for name in configs}
    for config in named.values():
        config.model.dtype = dtype
    for size, chosen in itertools.product(sorted(batch_size, reverse=True), mode):
        print(report_kernels(named.items(), size, chosen, kernels, gelu))


def read_config_file(name):
    """The config of a file of configs/, "deit_s:deit_ti" with its argument."""
    file, *argument = name.split(":", 1)
    check_choice("configs", file, [module.name for module in iter_modules(CONFIGS)])
    return importlib.import_module(f"configs.{file}").get_config(*argument)


def report_kernels(configs, batch_size, mode="inference", kernels=False, gelu=None):
    """The table of configs, as text: kernels by kind, and GMACs.

    configs: [(name, config)]
    mode: "inference" (the program of `inference.optimize`) or "train" (a whole step)
    kernels: whether to list every kernel of every program
    gelu: of programs of mode inference, as `optimize` takes it
    Raises InputError without JAX's CUDA wheels.
    """
    described_gpu()  # before JAX is used otherwise
    options = {"gelu": gelu} if mode == "inference" else {}
    parts = []
    rows = []  # (kernels by kind, GMACs of an image, name)
    for name, config in configs:
        config = config.copy_and_resolve_references()
        config.batch_size = batch_size
        program_kernels = hlo.list_kernels(PROGRAMS[mode](config, **options))
        by_kind = collections.Counter(kernel.kind for kernel in program_kernels)
        model = without_placement(config).create_model()
        rows.append((by_kind, f"{model_macs(model) / 1e9:.3f}", name))
        if kernels:
            parts.append(f"{name}\n{_list_kernels(program_kernels)}")
    total = sum((by_kind for by_kind, *_ in rows), collections.Counter())
    kinds = [kind for kind, _ in total.most_common()]
    table = [("kernels", *kinds, "GMACs", "config")]
    for by_kind, gmacs, name in rows:
        table.append((by_kind.total(), *(by_kind[kind] for kind in kinds), gmacs, name))
    title = f"compiled for an NVIDIA H200, mode {mode}, batch size {batch_size}"
    return "\n\n".join([title, text_table(table), *parts])


def _list_kernels(kernels):
    """A line per kernel: kind, result, name and source."""
    lines = []
    for number, kernel in enumerate(kernels):
        where = kernel.source.rpartition("ViT/")[2]
        shape = f"{kernel.shape[:40]:40}"
        lines.append(f"{number:4} {kernel.kind:11} {shape}  {kernel.name}, {where}")
    return "\n".join(lines)


def without_placement(config):
    """A run by `config`, with an attention that every device supports."""
    config = config.copy_and_resolve_references()
    config.model.attention = "xla"
    return RunConfig.from_config(config)


def place_attention(model, config):
    """Return `model` with the attention of `config` on an H200."""
    attention = config.model.attention
    return optimize.with_device_attention(model, described_gpu(), attention)


def inference_text(config, gelu=None):
    """Return the compiled text of `inference.optimize`'s program for `config`."""
    dtype = config.model.dtype
    model = without_placement(config).create_model().with_execution(dtype=dtype)
    on_gpu = place_attention(model, config)
    gelu = gelu or optimize.default_gelu(on_gpu, described_gpu())
    model = model.clone(config=model.config.with_arch(gelu=gelu))
    reductions = optimize.default_reductions(on_gpu, described_gpu())
    if optimize.uses_size_direction(on_gpu):
        # This model has the shapes of a folded one.
        model = model.with_execution(size_encoding="direction")
    prepared = []

    def prepare(variables):
        fast, weights = optimize.fold_and_cast(model, variables, described_gpu())
        prepared.append(fast)
        return weights

    weights = jax.eval_shape(prepare, variable_shapes(model))
    shape = (config.batch_size, config.image_size, config.image_size, 3)
    images = jax.ShapeDtypeStruct(shape, dtype)
    fast = place_attention(prepared[0], config)
    forward = optimize.make_logits_function(fast, reductions=reductions)
    return compile_for(forward, weights, images)


def train_text(config):
    """Return the compiled text of a training step."""
    place = functools.partial(place_attention, config=config)
    parts = workloads.make_training_step(without_placement(config), place)
    step, make_state, model, teacher = parts
    state = jax.eval_shape(make_state, variable_shapes(model))
    if teacher is not None:
        teacher = variable_shapes(teacher)
    leading = (1, config.grad_accum_steps, config.batch_size // config.grad_accum_steps)
    batch = batch_shapes(RunConfig.from_config(config), leading)
    # The equivalent of `parallel.pmap` for a described device.
    mesh = jax.sharding.Mesh(np.array([described_gpu()]), (parallel.DEVICE_AXIS,))
    everywhere = jax.sharding.PartitionSpec()
    specs = (everywhere, jax.sharding.PartitionSpec(parallel.DEVICE_AXIS), everywhere)

    def device_step(state, batch, teacher):
        return step(state, jax.tree.map(lambda x: x[0], batch), teacher)

    placement = {"mesh": mesh, "in_specs": specs, "out_specs": everywhere}
    fn = jax.shard_map(device_step, **placement, check_vma=False)
    shardings = [jax.sharding.NamedSharding(mesh, spec) for spec in specs]
    return compile_for(fn, state, batch, teacher, donate=(0,), shardings=shardings)


PROGRAMS = {"inference": inference_text, "train": train_text}


@functools.cache
def described_gpu():
    """Return the described GPU for JAX's compiler; InputError without the wheels.

    Call it before anything else uses JAX, whose plugin looks for a driver at its first
    use, unless it is set to need none.
    """
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    from jax.experimental import topologies

    try:
        # One partition, host and GPU.
        gpu = {"platform": "cuda", "target_config": TARGET, "topology": "1x1x1"}
        described = topologies.get_topology_desc("", **gpu)
    except (NotImplementedError, RuntimeError) as error:  # no such plugin, or not ready
        problem = "needs JAX's CUDA wheels, started before JAX is used otherwise"
        hint = 'pip install ".[gpu]" in the clone (no GPU and no driver needed)'
        raise InputError(f"compiling for an H200 {problem}; {hint}") from error
    return described.devices[0]


def compile_for(fn, *args, donate=(), shardings=None):
    """The text of `fn` compiled for an H200.

    args: pytrees of ShapeDtypeStructs
    donate: positions of `args` whose memory the results may reuse
    shardings: a sharding for each of `args`; None: the described device
    Raises InputError without JAX's CUDA wheels, RunError where XLA cannot compile it.
    """
    if shardings is None:
        shardings = [jax.sharding.SingleDeviceSharding(described_gpu())] * len(args)

    placed = []
    for arg, sharding in zip(args, shardings, strict=True):
        place = functools.partial(_place_leaf, sharding)
        placed.append(jax.tree.map(place, arg))
    traced = jax.jit(fn, donate_argnums=donate).trace(*placed)
    options = xla_options.compiler_options("gpu")
    try:
        return lower_for_cuda(traced).compile(compiler_options=options).as_text()
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"XLA cannot compile this for an H200: {reason}") from error


def _place_leaf(sharding, leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def lower_for_cuda(traced):
    """A traced function, lowered for CUDA; if that fails, for the described device."""
    try:
        return traced.lower(lowering_platforms=("cuda",))
    except (RuntimeError, AssertionError):
        # In this context Pallas kernels find the device to lower for.
        gpu = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
        with use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=gpu)):
            return traced.lower(lowering_platforms=("cuda",))


if __name__ == "__main__":
    cli.run_command(main)
