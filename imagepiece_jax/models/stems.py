"""Stems from image to tokens: patch projection, convolutions, and folded forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imagepiece_jax.common.image_size import sides
from imagepiece_jax.common.rng import uniform
from imagepiece_jax.errors import InputError

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the reference's initializer for convolutions.
KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
NORM_EPSILON = 1e-5


def bias_init(fan_in):
    """Bias initializer U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5

    def init(key, shape, dtype):
        return uniform(key, shape, dtype=dtype, minval=-bound, maxval=bound)

    return init


def conv_stem_widths(embed_dim, patch_size):
    """Widths of the log2(patch_size) stride-2 convolutions, doubling up to embed_dim.

    Raises InputError unless patch_size is 2^k, k > 0, and its half divides embed_dim.
    """
    steps = patch_size.bit_length() - 1
    if patch_size < 2 or patch_size != 2**steps or embed_dim % 2 ** (steps - 1):
        raise InputError(
            f"stem is 'conv' with patch_size {patch_size} and embed_dim {embed_dim}; "
            "patch_size must be a power of two, and half of it must divide embed_dim"
        )
    return tuple(embed_dim // 2**i for i in reversed(range(steps)))


class PatchStem(nn.Module):
    """Linear patch projection. [B, H, W, 3] -> [B, H/p, W/p, D]."""

    embed_dim: int
    patch_size: int
    dtype: jnp.dtype = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, images, train=False):
        p = self.patch_size
        batch, height, width, channels = images.shape
        patches = images.reshape(batch, height // p, p, width // p, p, channels)
        # On CPUs a matrix product's gradient is twice as fast as a convolution's.
        return nn.DenseGeneral(
            self.embed_dim,
            axis=(-3, -2, -1),
            kernel_init=KERNEL_INIT,
            bias_init=bias_init(channels * p**2),
            use_bias=self.use_bias,
            dtype=self.dtype,
            name="proj",
        )(patches.swapaxes(2, 3))


class ConvStem(nn.Module):
    """Convolution stem: ImagePiece's coherence bias makes neighboring patches alike.

    Stride-2 3x3 convolutions with batch norm and ReLU, then a 1x1 convolution (Xiao et
    al. 2021, "Early convolutions help transformers see better").
    [B, H, W, 3] -> [B, H/p, W/p, D]. Training shares batch statistics over the device
    axis `axis_name`.
    """

    embed_dim: int
    patch_size: int
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        x = images
        widths = conv_stem_widths(self.embed_dim, self.patch_size)
        for i, width in enumerate(widths):
            # "SAME" would pad an even side by (0, 1). The reference pads (1, 1).
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
            norm = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=NORM_EPSILON,
                axis_name=self.axis_name if train else None,
                dtype=self.dtype,
                name=f"norm_{i}",
            )
            # Flax adds float32 to bfloat16. Under the user setting "strict" that sum
            # raises an error.
            with jax.numpy_dtype_promotion("standard"):
                x = norm(x)
            x = nn.relu(x)
        return nn.Conv(
            self.embed_dim,
            (1, 1),
            kernel_init=KERNEL_INIT,
            bias_init=bias_init(self.embed_dim),
            dtype=self.dtype,
            name="proj",
        )(x)


class FoldedStem(nn.Module):
    """A stem's inference form, with variables from `fold` and without batch norm."""

    stem: str
    embed_dim: int
    patch_size: int
    dtype: jnp.dtype = jnp.float32
    pixels: int = 1  # see `fold`

    @nn.compact
    def __call__(self, images, train=False):
        x = images
        p = self.patch_size
        dim = self.embed_dim
        if self.stem == "patch":
            # The reshape needs no copy, and a convolution over p rows spares a GPU
            # from putting the patches in order.
            batch, height, width, channels = images.shape
            x = images.reshape(batch, height, width // p, channels * p)
            return self._convolved("proj", x, dim, (p, 1), (p, 1))
        # A GPU computes bias and ReLU in the convolution's kernel.
        for i, width in enumerate(conv_stem_widths(dim, p)):
            if i == 0 and self.pixels > 1:
                x = self._convolved_joined(x, width)
            else:
                x = self._convolved(f"conv_{i}", x, width, (3, 3), (2, 2), 1)
            x = nn.relu(x)
        return self._convolved("proj", x, dim, (1, 1), (1, 1))

    def _convolved_joined(self, x, width):
        """The first convolution, with the kernel of `join_pixels`."""
        # Joining the pixels is a reshape without a copy.
        pixels = self.pixels
        batch, height, length, channels = x.shape
        x = x.reshape(batch, height, length // pixels, pixels * channels)
        results = pixels // 2 * width
        x = self._convolved("conv_0", x, results, (3, 3), (2, 1), 1)
        return x.reshape(batch, height // 2, length // 2, width)

    def _convolved(self, name, x, width, size, strides, padding=0):
        shape = (width, *size, x.shape[-1])
        return _Convolution(shape, strides, padding, self.dtype, name=name)(x)


def join_pixels(kernel, bias, pixels):
    """Rewrite a stride-2 convolution to read `pixels` pixels of a row as one position.

    kernel: [O, 3, 3, C]
    pixels: even
    Returns (kernel [pixels / 2 O, 3, 3, pixels C], bias [pixels / 2 O]).
    """
    # A position has pixels / 2 results. A result reads three adjacent pixels; the first
    # result starts at the last pixel of the position before. All other weights are 0,
    # even every weight of the position behind: the kernel covers it because equal
    # padding on both sides spares a copy of the images.
    width, _, _, channels = kernel.shape
    results = pixels // 2
    wide = jnp.zeros((results, width, 3, 3 * pixels, channels), kernel.dtype)
    for index in range(results):
        first = pixels - 1 + 2 * index
        wide = wide.at[index, :, :, first : first + 3].set(kernel)
    wide = wide.reshape(results * width, 3, 3, pixels * channels)
    return wide, jnp.tile(bias, results)


class _Convolution(nn.Module):
    """Convolution with bias; its kernel [out, h, w, in] has cuDNN's layout."""

    shape: tuple[int, int, int, int]
    strides: tuple[int, int]
    padding: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.zeros
        kernel = self.param("kernel", init, self.shape, jnp.float32)
        bias = self.param("bias", init, self.shape[:1], jnp.float32)
        out = jax.lax.conv_general_dilated(
            x,
            kernel.astype(self.dtype),
            self.strides,
            [(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "OHWI", "NHWC"),
        )
        return out + _channels(bias.astype(self.dtype))


STEMS = {"patch": PatchStem, "conv": ConvStem}


def stem_macs(stem, embed_dim, image_size=224, patch_size=16):
    """A stem's MACs for one RGB image, cut to whole patches.

    image_size: pixels a side, or (height, width)
    """
    tokens = math.prod(side // patch_size for side in sides(image_size))
    if stem == "patch":
        return tokens * 3 * patch_size**2 * embed_dim
    total = tokens * embed_dim**2
    pixels = tokens * patch_size**2
    width_in = 3
    for width in conv_stem_widths(embed_dim, patch_size):
        pixels //= 4
        total += pixels * 9 * width_in * width
        width_in = width
    return total


def fold(stem, params, stats, pixels=1):
    """Convert a trained stem's parameters to a FoldedStem's float32 parameters.

    stem: a name in STEMS
    stats: a conv stem's batch norm means and variances
    pixels: pixels of a row that a conv stem's first convolution reads as one position,
        a power of two up to the patch size; 1: the plain convolution
    """
    # Explicit copies, here and below, are what a user's transfer guard allows.
    params, stats = jax.device_put((params, stats))
    if stem == "patch":
        return {"proj": _fold_patches(**params["proj"])}
    return _fold_convolutions(params, stats, pixels)


def _fold_patches(kernel, bias=None):
    """Rewrite a patch projection [p, p, 3, D] to read a row of a patch as one pixel."""
    p, _, channels, dim = kernel.shape
    if bias is None:
        bias = jax.device_put(np.zeros(dim, kernel.dtype))
    kernel = kernel.reshape(p, 1, p * channels, dim)
    return {"kernel": _out_first(kernel), "bias": bias}


def _fold_convolutions(params, stats, pixels):
    """Multiply batch norms into kernel and bias of the convolution before them."""
    folded = {}
    epsilon = jax.device_put(np.float32(NORM_EPSILON))
    for name, mean_and_variance in stats.items():  # norm_0, norm_1, ..
        conv = name.replace("norm", "conv")
        scale = params[name]["scale"]
        scale = scale / jnp.sqrt(mean_and_variance["var"] + epsilon)
        kernel = params[conv]["kernel"] * _channels(scale)
        bias = params[name]["bias"]
        folded[conv] = {
            "kernel": _out_first(kernel),
            "bias": bias - mean_and_variance["mean"] * scale,
        }
    # More pixels per position mean more than three input channels, and more results
    # at once.
    if pixels > 1:
        first = folded["conv_0"]
        kernel, bias = join_pixels(first["kernel"], first["bias"], pixels)
        folded["conv_0"] = {"kernel": kernel, "bias": bias}
    proj = params["proj"]
    kernel = _out_first(proj["kernel"])
    return folded | {"proj": {"kernel": kernel, "bias": proj["bias"]}}


def _out_first(kernel):
    """Order a kernel's axes as `_Convolution`. [h, w, in, out] -> [out, h, w, in]."""
    return jnp.moveaxis(kernel, 3, 0)


def _channels(values):
    """Reshape channel values to broadcast. [D] -> [1, 1, 1, D]."""
    return values.reshape(1, 1, 1, -1)
