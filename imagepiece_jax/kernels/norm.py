"""Layer norm, with a backward pass that stores its input and two numbers per token."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagepiece_jax.common.nodes import onnx_op
from imagepiece_jax.kernels.forms import uses_reference_forms

AnyRows = Float[Array, "*tokens dim"]
FeatureParams = Float[Array, " dim"]


def plain_layer_norm(
    x: AnyRows, scale: FeatureParams, bias: FeatureParams, dtype: jnp.dtype, eps: float
) -> AnyRows:
    """(x - mean) / std * scale + bias in float32."""
    return _normalize(x, *_mean_and_inverse_std(x, eps), scale, bias).astype(dtype)


def _mean_and_inverse_std(x, eps):
    """(mean, 1 / sqrt(variance + eps)), in float32."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    # XLA fuses the mean of squared distances into one kernel. E[x^2] - E[x]^2 would
    # cancel for large numbers.
    variance = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return mean, jax.lax.rsqrt(variance + eps)


def _normalize(x, mean, inverse_std, scale, bias):
    """(x - mean) * inverse_std * scale + bias in float32."""
    scale = jnp.expand_dims(scale, range(x.ndim - 1))
    bias = jnp.expand_dims(bias, range(x.ndim - 1))
    return (x.astype(jnp.float32) - mean) * (inverse_std * scale) + bias


# For training: x is in memory anyway. Automatic differentiation would store it again,
# in float32 and normalized.
_layer_norm_from_input = jax.custom_vjp(plain_layer_norm, nondiff_argnums=(3, 4))


def _layer_norm_forward(x, scale, bias, dtype, eps):
    # Without this barrier XLA would store whole float32 arrays instead.
    mean, inverse_std = jax.lax.optimization_barrier(_mean_and_inverse_std(x, eps))
    out = _normalize(x, mean, inverse_std, scale, bias).astype(dtype)
    return out, (x, mean, inverse_std, scale)


def _layer_norm_backward(dtype, eps, residuals, gradient):
    """The gradients of x, scale and bias.

    dtype, eps: only the forward pass uses them
    residuals: x, its mean and inverse_std [.., 1], and scale [D]
    """
    x, mean, inverse_std, scale = residuals
    normalized_x = (x.astype(jnp.float32) - mean) * inverse_std
    gradient = gradient.astype(jnp.float32)
    scaled_gradient = gradient * jnp.expand_dims(scale, range(x.ndim - 1))
    projection = jnp.mean(scaled_gradient * normalized_x, axis=-1, keepdims=True)
    gradient_mean = jnp.mean(scaled_gradient, axis=-1, keepdims=True)
    d_x = inverse_std * (scaled_gradient - gradient_mean - normalized_x * projection)
    token_axes = tuple(range(x.ndim - 1))
    d_scale = jnp.sum(gradient * normalized_x, axis=token_axes)
    d_bias = jnp.sum(gradient, axis=token_axes)
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(scale.dtype)


_layer_norm_from_input.defvjp(_layer_norm_forward, _layer_norm_backward)


@onnx_op
def layer_norm(
    x: AnyRows, scale: FeatureParams, bias: FeatureParams, dtype: jnp.dtype, eps: float
) -> AnyRows:
    """(x - mean) / std * scale + bias over the last axis (Ba et al. 2016).

    dtype: the result's type; statistics are float32
    eps: added to the variance
    """
    form = plain_layer_norm if uses_reference_forms() else _layer_norm_from_input
    return form(x, scale, bias, dtype, eps)
