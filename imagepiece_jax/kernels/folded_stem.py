"""Stems for inference: equal values in fewer GPU kernels.

`models.layers` defines both stems. `fold_stem` rewrites a trained stem's parameters
once for a FoldedStem, so `reference_forms` changes nothing here.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from imagepiece_jax.kernels.array_shapes import PatchGrid, PixelRows


class FoldedStem(nn.Module):
    """A stem's inference form without batch norm; `fold_stem` makes its variables."""

    embed_dim: int
    patch_size: int
    dtype: jnp.dtype = jnp.float32
    widths: tuple[int, ...] = ()  # a conv stem's, by `conv_stem_widths`; (): patches
    pixels_per_position: int = 1  # see `fold_stem`

    @nn.compact
    def __call__(self, images: PixelRows, train: bool = False) -> PatchGrid:
        x = images
        patch_size = self.patch_size
        make_convolution = functools.partial(_Convolution, self.dtype)
        batch_size, height, width, channels = images.shape
        if not self.widths:
            # The reshape needs no copy, and a convolution over a patch's rows spares
            # a GPU from putting the patches in order.
            row_shape = (batch_size, height, width // patch_size, channels * patch_size)
            conv_fields = (self.embed_dim, (patch_size, 1), (patch_size, 1))
            return make_convolution(*conv_fields, name="proj")(
                images.reshape(row_shape)
            )
        # A conv stem: a GPU computes bias and ReLU in the convolution's kernel.
        for index, out_channels in enumerate(self.widths):
            conv_fields = (out_channels, (3, 3), (2, 2), 1)  # kernel, strides, padding
            num_pixels = self.pixels_per_position if index == 0 else 1
            if num_pixels > 1:
                # Two pixels give one result, and a position's results are channels
                # until they are separated. Both reshapes need no copy.
                position_width = num_pixels * channels
                x = x.reshape(batch_size, height, width // num_pixels, position_width)
                conv_fields = (num_pixels // 2 * out_channels, (3, 3), (2, 1), 1)
            x = make_convolution(*conv_fields, name=f"conv_{index}")(x)
            if num_pixels > 1:
                x = x.reshape(batch_size, height // 2, width // 2, out_channels)
            x = nn.relu(x)
        return make_convolution(self.embed_dim, (1, 1), (1, 1), name="proj")(x)


class _Convolution(nn.Module):
    """Convolution with bias; its kernel [out, h, w, in] has cuDNN's layout."""

    dtype: jnp.dtype
    out_channels: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    padding: int = 0

    @nn.compact
    def __call__(self, x: PixelRows) -> Float[Array, "batch rows columns out_channels"]:
        init = nn.initializers.zeros
        shape = (self.out_channels, *self.kernel_size, x.shape[-1])  # [out, h, w, in]
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = self.param("bias", init, shape[:1], jnp.float32)
        out = jax.lax.conv_general_dilated(
            x,
            kernel.astype(self.dtype),
            self.strides,
            [(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "OHWI", "NHWC"),
        )
        return out + _broadcast_channels(bias.astype(self.dtype))


def fold_stem(
    params: Mapping[str, Any],
    batch_stats: Mapping[str, Any],
    epsilon: float,
    pixels_per_position: int = 1,
) -> dict[str, Any]:
    """Convert a trained stem's parameters to a FoldedStem's float32 parameters.

    batch_stats: a conv stem's batch norm means and variances; {}: a patch stem
    epsilon: added to the variances
    pixels_per_position: pixels of a row that a conv stem's first convolution reads as
        one position, a power of two up to the patch size; 1: the plain convolution
    """
    # Explicit copies, here and below, are what a user's transfer guard allows.
    params, batch_stats = jax.device_put((params, batch_stats))
    if not batch_stats:
        # A patch projection reads a row of a patch as one pixel.
        patch_kernel = params["proj"]["kernel"]
        patch_size, _, channels, dim = patch_kernel.shape
        zeros = jax.device_put(np.zeros(dim, patch_kernel.dtype))
        bias = params["proj"].get("bias", zeros)
        row_kernel = patch_kernel.reshape(patch_size, 1, patch_size * channels, dim)
        return {"proj": _convolution_params(row_kernel, bias)}
    # Batch norms are multiplied into the convolutions before them, in float32.
    folded_params = {}
    float32_epsilon = jax.device_put(np.float32(epsilon))
    for norm_name, mean_and_variance in batch_stats.items():  # norm_0, norm_1, ..
        conv_name = norm_name.replace("norm", "conv")
        deviation = jnp.sqrt(mean_and_variance["var"] + float32_epsilon)
        factor = params[norm_name]["scale"] / deviation  # [out_channels]
        kernel = params[conv_name]["kernel"] * _broadcast_channels(factor)
        bias = params[norm_name]["bias"] - mean_and_variance["mean"] * factor
        folded_params[conv_name] = _convolution_params(kernel, bias)
    # A GPU's product wants more than three input channels, and more results at once.
    if pixels_per_position > 1:
        conv = folded_params["conv_0"]
        joined_conv = _join_pixels(conv["kernel"], conv["bias"], pixels_per_position)
        folded_params["conv_0"] = joined_conv
    return folded_params | {"proj": _convolution_params(**params["proj"])}


def _join_pixels(kernel, bias, num_pixels):
    """Rewrite a stride-2 convolution to read `num_pixels` of a row as one position.

    kernel: [out_channels, 3, 3, channels]
    num_pixels: even
    """
    # A position has num_pixels / 2 results. A result reads three adjacent pixels; the
    # first starts at the last pixel of the position before. All other weights are 0,
    # even every weight of the position behind: the kernel covers it because equal
    # padding on both sides spares a copy of the images.
    out_channels, _, _, channels = kernel.shape
    num_results = num_pixels // 2
    shape = (num_results, out_channels, 3, 3 * num_pixels, channels)
    wide_kernel = jnp.zeros(shape, kernel.dtype)
    for index in range(num_results):
        start = num_pixels - 1 + 2 * index  # the result's first pixel; stride 2
        wide_kernel = wide_kernel.at[index, :, :, start : start + 3].set(kernel)
    position_kernel = wide_kernel.reshape(-1, 3, 3, num_pixels * channels)
    return {"kernel": position_kernel, "bias": jnp.tile(bias, num_results)}


def _convolution_params(kernel, bias):
    """Parameters of a `_Convolution`; its kernel's first axis is the output."""
    return {"kernel": jnp.moveaxis(kernel, 3, 0), "bias": bias}


def _broadcast_channels(x):
    return x.reshape(1, 1, 1, -1)
