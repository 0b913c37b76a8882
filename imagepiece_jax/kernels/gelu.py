"""GELU, with a backward pass that stores its input alone."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagepiece_jax.common.nodes import onnx_op
from imagepiece_jax.kernels.forms import uses_reference_forms

QUICK_GELU_FACTOR = 1.702  # QuickGELU's factor
TANH_FACTOR = math.sqrt(2 / math.pi)  # u = TANH_FACTOR (x + CUBIC_FACTOR x^3)
CUBIC_FACTOR = 0.044715


def plain_gelu(x: Float[Array, " *dims"], variant: str) -> Float[Array, " *dims"]:
    """x Phi(x) in float32; variant: "exact", "tanh" or "quick", as in `gelu`."""
    x32 = x.astype(jnp.float32)
    if variant == "tanh":
        phi = 0.5 * (1 + jnp.tanh(TANH_FACTOR * (x32 + CUBIC_FACTOR * x32**3)))
    elif variant == "quick":
        phi = jax.nn.sigmoid(QUICK_GELU_FACTOR * x32)
    else:
        phi = _normal_cdf(x32)
    return (x32 * phi).astype(x.dtype)


def _normal_cdf(x):
    """Phi(x)."""
    # erf, as in PyTorch: erfc, as in JAX's own GELU, takes much longer.
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


# For training: automatic differentiation would store whole float32 arrays. Because the
# backward pass needs only x, a GPU can compute "tanh" in the kernel of the matrix
# product before it, in the type of x.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gelu_from_input(x, variant):
    if variant == "tanh":
        return jax.nn.gelu(x, approximate=True)
    return plain_gelu(x, variant)


def _gelu_gradient(variant, x, gradient):
    """The gradient of x: (Phi(x) + x Phi'(x)) times the result's gradient."""
    x32 = x.astype(jnp.float32)
    if variant == "tanh":
        # x sigmoid(2 u)
        phi = jax.nn.sigmoid(2 * TANH_FACTOR * (x32 + CUBIC_FACTOR * x32**3))
        slope = 2 * TANH_FACTOR * (1 + 3 * CUBIC_FACTOR * x32**2)
        derivative = phi + x32 * phi * (1 - phi) * slope
    elif variant == "quick":
        phi = jax.nn.sigmoid(QUICK_GELU_FACTOR * x32)
        derivative = phi + QUICK_GELU_FACTOR * x32 * phi * (1 - phi)
    else:
        density = jnp.exp(-0.5 * x32**2) / math.sqrt(2 * math.pi)
        derivative = _normal_cdf(x32) + x32 * density
    d_x = gradient.astype(jnp.float32) * derivative
    return (d_x.astype(x.dtype),)


_gelu_from_input.defvjp(
    lambda x, variant: (_gelu_from_input(x, variant), x), _gelu_gradient
)


@onnx_op
def gelu(x: Float[Array, " *dims"], variant: str = "exact") -> Float[Array, " *dims"]:
    """GELU, x Phi(x), elementwise (Hendrycks & Gimpel 2016, section 2).

    variant: "exact", or an approximate Phi: "tanh", 0.5 (1 + tanh u), or "quick",
        sigmoid(1.702 x)
    """
    form = plain_gelu if uses_reference_forms() else _gelu_from_input
    return form(x, variant)
