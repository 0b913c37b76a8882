"""Compilation for described H200 GPUs, and estimated times of the kernels.

XLA can compile for a GPU that is only described: fusions, cuBLASLt and cuDNN calls are
those of the real one; nothing is run or timed. It needs JAX's CUDA wheels, no driver.
"""

import functools
import importlib.util
import os

import jax
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from imagepiece_jax.common import extras
from imagepiece_jax.errors import InputError, RunError
from tools import hlo

# A kernel takes the time of its launch, and of its bytes or its products. With these
# rates a dense DeiT-S forward pass of 256 images is estimated at 6.3 ms and took 6.9.
LAUNCH_S = 2.0e-6
BYTES_PER_S = 4.0e12
FLOPS_PER_S = 600e12
ATTENTION_FLOPS_PER_S = FLOPS_PER_S / 2  # softmax runs between its two products

WHEELS = extras.command("gpu")
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


def device():
    """Return the described GPU for JAX's compiler; InputError without the wheels.

    Call it before anything else uses JAX: its plugin looks for a driver once, at first
    use, and must be set to do without before that.
    """
    return devices()[0]


@functools.cache
def devices(count=1):
    """Return `count` described GPUs of one host; InputError as in `device`."""
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    from jax.experimental import topologies

    topology = f"1x1x{count}"  # partitions, hosts in each, GPUs in each
    try:
        described = topologies.get_topology_desc(
            "", platform="cuda", target_config=TARGET, topology=topology
        )
    except (NotImplementedError, RuntimeError) as error:  # no such plugin, or not ready
        if any(map(installed, ("xla_cuda13", "xla_cuda12"))):
            raise InputError(
                problem=(
                    "compiling for an H200 found JAX's CUDA wheels, which did not start"
                ),
                hint="set JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 before JAX is used",
            ) from error
        raise InputError(
            problem=(
                "compiling for an H200 needs JAX's CUDA wheels, which are not installed"
            ),
            hint=f"{WHEELS} (no GPU and no driver needed)",
        ) from error
    return described.devices


def installed(plugin):
    try:
        return importlib.util.find_spec(f"jax_plugins.{plugin}") is not None
    except ModuleNotFoundError:
        return False


def compile_for(fn, *args, options=None, donate=(), places=None):
    """The text of `fn` compiled for one H200, for `hlo` and the functions below.

    args: pytrees of arrays or ShapeDtypeStructs
    options: compiler options by name
    donate: positions of `args` whose memory the results may reuse
    places: a sharding for each of `args`, if `fn` is for several of `devices`; None: it
        is for one
    Raises InputError without JAX's CUDA wheels, RunError where XLA cannot compile it.
    """
    if places is None:
        places = [jax.sharding.SingleDeviceSharding(device())] * len(args)

    def placed(leaf, place):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    args = [
        jax.tree.map(functools.partial(placed, place=place), arg)
        for arg, place in zip(args, places, strict=True)
    ]
    traced = jax.jit(fn, donate_argnums=donate).trace(*args)
    try:
        lowered = lower(traced)
        return lowered.compile(compiler_options=dict(options or {})).as_text()
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"XLA cannot compile this for an H200: {reason}") from error


def lower(traced):
    """A traced function, lowered for CUDA; if that fails, for the described device."""
    try:
        return traced.lower(lowering_platforms=("cuda",))
    except (RuntimeError, AssertionError):
        with _described_device():
            return traced.lower(lowering_platforms=("cuda",))


def _described_device():
    """Context in which Pallas kernels find the device to lower for."""
    gpu = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    return use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=gpu))


def estimate(kernel):
    """Return the estimated seconds of `kernel` (hlo.GpuKernel): launch and roofline."""
    rate = ATTENTION_FLOPS_PER_S if kernel.kind == "attention" else FLOPS_PER_S
    return LAUNCH_S + max(kernel.bytes / BYTES_PER_S, kernel.flops / rate)


def summary(text):
    """Return {kind: (kernels, estimated ms)} of a compiled text, the longest first."""
    by_kind = {}
    for kernel in hlo.kernels(text):
        count, ms = by_kind.get(kernel.kind, (0, 0.0))
        by_kind[kernel.kind] = (count + 1, ms + 1e3 * estimate(kernel))
    return dict(sorted(by_kind.items(), key=lambda item: -item[1][1]))


def table(text):
    """Return a line per kernel: kind, estimated time, bytes, result and source."""
    lines = [f"{'':4} {'kind':11} {'us':>7} {'MB':>7}  {'result':40}  name, source"]
    for number, kernel in enumerate(hlo.kernels(text)):
        where = kernel.source.rpartition("ViT/")[2]
        lines.append(
            f"{number:4} {kernel.kind:11} {1e6 * estimate(kernel):7.1f} "
            f"{kernel.bytes / 1e6:7.1f}  {kernel.shape[:40]:40}  {kernel.name}, {where}"
        )
    return "\n".join(lines)
