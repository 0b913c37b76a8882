"""Stems for inference: equal values in fewer GPU kernels.

`models.stems` defines both stems. `fold_stem` rewrites a trained stem's parameters once
for a FoldedStem, so `reference_forms` changes nothing here.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


class FoldedStem(nn.Module):
    """A stem's inference form without batch norm; `fold_stem` makes its variables."""

    embed_dim: int
    patch_size: int
    dtype: jnp.dtype = jnp.float32
    widths: tuple[int, ...] = ()  # a conv stem's, by `conv_stem_widths`; (): patches
    pixels: int = 1  # see `fold_stem`

    @nn.compact
    def __call__(self, images, train=False):
        x = images
        p = self.patch_size
        dim = self.embed_dim
        if not self.widths:
            # The reshape needs no copy, and a convolution over p rows spares a GPU
            # from putting the patches in order.
            batch, height, width, channels = images.shape
            x = images.reshape(batch, height, width // p, channels * p)
            return self._convolved("proj", x, dim, (p, 1), (p, 1))
        # A GPU computes bias and ReLU in the convolution's kernel.
        for i, width in enumerate(self.widths):
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
        return out + _broadcast_channels(bias.astype(self.dtype))


def fold_stem(params, stats, epsilon, pixels=1):
    """Convert a trained stem's parameters to a FoldedStem's float32 parameters.

    stats: a conv stem's batch norm means and variances; {}: a patch stem
    epsilon: added to the variances
    pixels: pixels of a row that a conv stem's first convolution reads as one position,
        a power of two up to the patch size; 1: the plain convolution
    """
    # Explicit copies, here and below, are what a user's transfer guard allows.
    params, stats = jax.device_put((params, stats))
    if not stats:
        return {"proj": _fold_patches(**params["proj"])}
    return _fold_convolutions(params, stats, epsilon, pixels)


def _fold_patches(kernel, bias=None):
    """Rewrite a patch projection [p, p, 3, D] to read a row of a patch as one pixel."""
    p, _, channels, dim = kernel.shape
    if bias is None:
        bias = jax.device_put(np.zeros(dim, kernel.dtype))
    kernel = kernel.reshape(p, 1, p * channels, dim)
    return {"kernel": _output_axis_first(kernel), "bias": bias}


def _fold_convolutions(params, stats, epsilon, pixels):
    """Multiply batch norms into kernel and bias of the convolution before them."""
    folded = {}
    epsilon = jax.device_put(np.float32(epsilon))
    for name, mean_and_variance in stats.items():  # norm_0, norm_1, ..
        conv = name.replace("norm", "conv")
        scale = params[name]["scale"]
        scale = scale / jnp.sqrt(mean_and_variance["var"] + epsilon)
        kernel = params[conv]["kernel"] * _broadcast_channels(scale)
        bias = params[name]["bias"]
        folded[conv] = {
            "kernel": _output_axis_first(kernel),
            "bias": bias - mean_and_variance["mean"] * scale,
        }
    # More pixels per position mean more than three input channels, and more results
    # at once.
    if pixels > 1:
        first = folded["conv_0"]
        kernel, bias = join_pixels(first["kernel"], first["bias"], pixels)
        folded["conv_0"] = {"kernel": kernel, "bias": bias}
    proj = params["proj"]
    kernel = _output_axis_first(proj["kernel"])
    return folded | {"proj": {"kernel": kernel, "bias": proj["bias"]}}


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


def _output_axis_first(kernel):
    """Order a kernel's axes as `_Convolution`. [h, w, in, out] -> [out, h, w, in]."""
    return jnp.moveaxis(kernel, 3, 0)


def _broadcast_channels(values):
    """Reshape channel values to broadcast. [D] -> [1, 1, 1, D]."""
    return values.reshape(1, 1, 1, -1)
