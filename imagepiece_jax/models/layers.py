"""Layers of the ViT: stems from image to tokens, dense layers, norms and MLP."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from imagepiece_jax.errors import InputError
from imagepiece_jax.kernels.array_shapes import PatchGrid, PixelRows
from imagepiece_jax.kernels.gelu import gelu
from imagepiece_jax.kernels.norm import layer_norm

NORMAL_INIT = nn.initializers.normal(0.02, jnp.float32)
# U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the reference's initializer for convolutions.
KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
NORM_EPSILON = 1e-5


def dense_layer(width: int, dtype: DTypeLike = jnp.float32, **options: Any) -> nn.Dense:
    """`nn.Dense` with the ViT initializer, N(0, 0.02^2)."""
    return nn.Dense(width, dtype=dtype, kernel_init=NORMAL_INIT, **options)


class LayerNorm(nn.Module):
    """Layer norm over the last axis with float32 statistics."""

    dtype: jnp.dtype = jnp.float32
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*tokens dim"]) -> Float[Array, "*tokens dim"]:
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return layer_norm(x, scale, bias, self.dtype, self.eps)


class LayerScale(nn.Module):
    """Learned factor per channel (Touvron et al. 2021, CaiT)."""

    @nn.compact
    def __call__(self, x: Float[Array, "*tokens dim"]) -> Float[Array, "*tokens dim"]:
        init = nn.initializers.constant(1e-5, jnp.float32)  # timm's default
        gamma = self.param("gamma", init, x.shape[-1:]).astype(x.dtype)
        # Tests refuse rank promotion, which hides wrong axes.
        return x * jnp.expand_dims(gamma, range(x.ndim - 1))


class Mlp(nn.Module):
    """Two linear layers around a GELU, or SwiGLU."""

    hidden_dim: int
    gelu: str = "exact"  # `Architecture.gelu`
    dtype: jnp.dtype = jnp.float32
    kind: str = "gelu"  # `Architecture.mlp`
    norm_eps: float | None = None  # epsilon of the hidden layer's norm; None: no norm

    @nn.compact
    def __call__(self, x: Float[Array, "*tokens dim"]) -> Float[Array, "*tokens dim"]:
        dim = x.shape[-1]
        width_and_dtype = (self.hidden_dim, self.dtype)
        if self.kind == "swiglu":
            gate = nn.silu(dense_layer(*width_and_dtype, name="fc1_g")(x))
            hidden = gate * dense_layer(*width_and_dtype, name="fc1_x")(x)
        else:
            hidden = gelu(dense_layer(*width_and_dtype, name="fc1")(x), self.gelu)
        if self.norm_eps is not None:
            hidden = LayerNorm(self.dtype, self.norm_eps, name="norm")(hidden)
        return dense_layer(dim, self.dtype, name="fc2")(hidden)


def bias_init(fan_in: int) -> Callable[..., jax.Array]:
    """Bias initializer U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype=dtype, minval=-bound, maxval=bound)

    return init


def conv_stem_widths(embed_dim: int, patch_size: int) -> tuple[int, ...]:
    """Widths of the log2(patch_size) stride-2 convolutions, doubling up to embed_dim.

    Raises InputError unless patch_size is 2^k, k > 0, and its half divides embed_dim.
    """
    num_convs = patch_size.bit_length() - 1
    if patch_size < 2 or patch_size != 2**num_convs or embed_dim % 2 ** (num_convs - 1):
        raise InputError(
            f"patch_size is {patch_size}; stem 'conv' needs a power of two, half of "
            f"which divides embed_dim, {embed_dim}"
        )
    return tuple(embed_dim // 2**i for i in reversed(range(num_convs)))


class PatchStem(nn.Module):
    """Linear patch projection."""

    embed_dim: int
    patch_size: int
    dtype: jnp.dtype = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, images: PixelRows, train: bool = False) -> PatchGrid:
        side = self.patch_size
        batch_size, height, width, channels = images.shape
        grid_shape = (height // side, side, width // side, side)
        patches = images.reshape(batch_size, *grid_shape, channels)
        # On CPUs a matrix product's gradient is twice as fast as a convolution's. Its
        # inputs are [batch, rows, columns, side, side, channels].
        return nn.DenseGeneral(
            self.embed_dim,
            axis=(-3, -2, -1),
            kernel_init=KERNEL_INIT,
            bias_init=bias_init(channels * side**2),
            use_bias=self.use_bias,
            dtype=self.dtype,
            name="proj",
        )(patches.swapaxes(2, 3))


class ConvStem(nn.Module):
    """Convolution stem: ImagePiece's coherence bias makes neighboring patches alike.

    Stride-2 3x3 convolutions with batch norm and ReLU, then a 1x1 convolution (Xiao et
    al. 2021, "Early convolutions help transformers see better"). Training shares batch
    statistics over the device axis `axis_name`.
    """

    embed_dim: int
    patch_size: int
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: PixelRows, train: bool = False) -> PatchGrid:
        x = images
        conv = functools.partial(nn.Conv, kernel_init=KERNEL_INIT, dtype=self.dtype)
        widths = conv_stem_widths(self.embed_dim, self.patch_size)
        for index, width in enumerate(widths):
            # "SAME" would pad an even side by (0, 1). The reference pads (1, 1).
            padding = ((1, 1), (1, 1))
            x = conv(width, (3, 3), 2, padding, use_bias=False, name=f"conv_{index}")(x)
            norm = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,  # of the old mean; PyTorch's 0.1 is the new one's share
                epsilon=NORM_EPSILON,
                axis_name=self.axis_name if train else None,
                dtype=self.dtype,
                name=f"norm_{index}",
            )
            x = nn.relu(norm(x))
        init = bias_init(self.embed_dim)
        return conv(self.embed_dim, (1, 1), bias_init=init, name="proj")(x)


STEM_KINDS = {"patch": PatchStem, "conv": ConvStem}
