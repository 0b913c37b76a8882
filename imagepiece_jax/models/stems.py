"""How does an image become tokens? The patch projection and the convolutional stem."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.reduction.flops import conv_stem_widths

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what the reference's convolutions start from.
KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def bias_init(fan_in):
    """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for a bias."""

    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class PatchStem(nn.Module):
    """One linear projection a patch: [B, H, W, 3] -> [B, H/p, W/p, D].

    The usual convolution of kernel and stride p, written as the matrix product that it
    is: its gradient is one too, and on CPUs twice as fast as the convolution's.
    """

    embed_dim: int
    patch_size: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, train=False):
        p, (batch, height, width, channels) = self.patch_size, images.shape
        patches = images.reshape(batch, height // p, p, width // p, p, channels)
        return nn.DenseGeneral(
            self.embed_dim,
            axis=(-3, -2, -1),
            kernel_init=KERNEL_INIT,
            bias_init=bias_init(channels * p**2),
            dtype=self.dtype,
            name="proj",
        )(patches.swapaxes(2, 3))


class ConvStem(nn.Module):
    """ImagePiece's local coherence bias: neighbouring patches become alike.

    3x3 convolutions of stride 2, each with batch norm and ReLU, widths doubling up to D
    (Xiao et al. 2021, "Early convolutions help transformers see better"), then one 1x1
    with bias: [B, H, W, 3] -> [B, H/p, W/p, D] for a patch size that is a power of two.
    Batch statistics are shared over `axis_name` when training.
    """

    embed_dim: int
    patch_size: int
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        x = images
        for i, width in enumerate(conv_stem_widths(self.embed_dim, self.patch_size)):
            # "SAME" would pad an even side by (0, 1): the reference pads (1, 1).
            x = nn.Conv(
                width,
                (3, 3),
                strides=2,
                padding=((1, 1), (1, 1)),
                use_bias=False,
                kernel_init=KERNEL_INIT,
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x)
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                axis_name=self.axis_name if train else None,
                dtype=self.dtype,
                name=f"norm_{i}",
            )(x)
            x = nn.relu(x)
        return nn.Conv(
            self.embed_dim,
            (1, 1),
            kernel_init=KERNEL_INIT,
            bias_init=bias_init(self.embed_dim),
            dtype=self.dtype,
            name="proj",
        )(x)
