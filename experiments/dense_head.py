"""A dense head: three transposed convolutions, and the saliency of every pixel."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from imagepiece_jax.errors import InputError
from imagepiece_jax.weights.files import read_state_dict

LAYERS = (1, 2, 3)  # of the head, each of which doubles the map
EPS = 1e-5  # of its batch norms


def read_head(path, width: int) -> dict[str, np.ndarray]:
    """The tensors of a saliency head, float32, by the names of its file.

    path: of a weights file
    width: of the features
    Raises InputError for a file of anything else, and for a head of other features.
    """
    tensors = {}
    for name, tensor in read_state_dict(path).items():
        if not name.endswith(".num_batches_tracked"):
            tensors[name] = np.asarray(tensor, np.float32)
    shapes = head_shapes(tensors, width)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    absent = sorted(shapes.keys() - found.keys())
    for name in (*absent, *sorted(found)):
        if found.get(name) != shapes.get(name):
            shape = list(found.get(name, ()))
            raise InputError(
                "--decoder",
                shape,
                (
                    f"a head of {width} numbers, as the model has them: three "
                    "transposed convolutions of 4 x 4 with batch norm, and one of 1 x 1"
                ),
                problem=f"has tensor {name} {shape}"
                if shape
                else f"has no tensor {name}",
                place=path,
            )
    return tensors


def head_shapes(tensors, width: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a head whose layers are as wide as those of the tensors."""
    shapes = {}
    before = width
    for n in LAYERS:
        after = np.size(tensors.get(f"bn{n}.bias", ()))
        shapes[f"upconv{n}.weight"] = (before, after, 4, 4)
        shapes[f"upconv{n}.bias"] = (after,)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"bn{n}.{leaf}"] = (after,)
        before = after
    shapes["final_conv.weight"] = (1, before, 1, 1)
    shapes["final_conv.bias"] = (1,)
    return shapes


def decode(head: dict[str, np.ndarray], patches: jax.Array, size) -> jax.Array:
    """Saliency of every pixel. [B, h, w, D] -> [B, *size] float32, from 0 to 1.

    head: from `read_head`
    patches: features after the last norm, such as `imagepiece_jax.features` returns
    size: (height, width) of the image
    """
    x = patches.astype(jnp.float32)
    for n in LAYERS:
        x = upsample(x, head[f"upconv{n}.weight"])
        factor = head[f"bn{n}.weight"] / jnp.sqrt(head[f"bn{n}.running_var"] + EPS)
        mean = head[f"bn{n}.running_mean"] - head[f"upconv{n}.bias"]
        shift = head[f"bn{n}.bias"] - mean * factor
        x = jax.nn.relu(x * factor[None, None, None] + shift[None, None, None])
    x = jnp.einsum("bhwd,d->bhw", x, head["final_conv.weight"].ravel())
    x = x + head["final_conv.bias"][0]
    # As PyTorch does it, which reads the nearest pixels of a larger map, too.
    x = jax.image.resize(x, (len(x), *size), "bilinear", antialias=False)
    return jax.nn.sigmoid(x)


def upsample(x, kernel):
    """PyTorch's ConvTranspose2d(kernel_size=4, stride=2, padding=1), without its bias.

    x: [B, h, w, I]
    kernel: [I, O, 4, 4]
    Returns [B, 2 h, 2 w, O]. A pixel of each parity reads 2 x 2 of the input, by every
    other row and column of the kernel: a quarter of the products of a convolution of
    the input with zeros between its pixels.
    """
    batch, height, width, _ = x.shape
    parities = []
    for row, column in itertools.product((0, 1), (0, 1)):
        convolved = lax.conv_general_dilated(
            x,
            kernel[:, :, 3 - row :: -2, 3 - column :: -2],
            window_strides=(1, 1),
            padding=[(1 - row, row), (1 - column, column)],
            dimension_numbers=("NHWC", "IOHW", "NHWC"),
        )
        parities.append(convolved)
    x = jnp.stack(parities, axis=3).reshape(batch, height, width, 2, 2, -1)
    return jnp.swapaxes(x, 2, 3).reshape(batch, 2 * height, 2 * width, -1)
