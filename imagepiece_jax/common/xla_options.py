"""Fast settings of a platform: XLA's compiler options, and the layers' dtype.

Options are passed per program, never by XLA_FLAGS, so that nothing else changes.
"""

from typing import Any

import jax
import jax.numpy as jnp

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.errors import InputError

LAYER_DTYPES = ("float32", "bfloat16", "float16")
# {platform: options}. A matrix product of cuBLASLt includes bias, GELU and residual.
# Triton leaves them to separate kernels, and so does cuBLASLt where XLA merges
# products that share an input.
PLATFORM_OPTIONS = {
    "gpu": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0}
}


def compiler_options(platform: str) -> dict[str, Any]:
    """Options for "cpu", "gpu", ..: a new dict, empty if XLA's defaults are best."""
    return dict(PLATFORM_OPTIONS.get(platform, {}))


def fast_dtype(device: jax.Device | None = None) -> str:
    """Fast dtype on a device (None: the first): float32 on CPUs, else bfloat16."""
    device = device or jax.devices()[0]
    return "float32" if device.platform == "cpu" else "bfloat16"


def checked_dtype(dtype: Any) -> str:
    """Name of a layer dtype, given as a name or as jnp.bfloat16."""
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    check_choice("dtype", name, LAYER_DTYPES)
    return name


def check_dtype(dtype: str, platform: str | None = None) -> None:
    """Check that layers can compute in `dtype` on a platform (None: this process's)."""
    platform = platform or jax.local_devices()[0].platform
    if platform == "cpu" and dtype == "float16":
        raise InputError("dtype is 'float16', in which CPUs compute no attention")
