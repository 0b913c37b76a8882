"""DeiT in NumPy and float64, one image at a time, from the papers' definitions.

Nothing here is imported from the package. The oracle repeats the model's reductions, so
the numbers around them are comparable.
"""

import dataclasses

import numpy as np

from tests.helpers import oracles
from tests.helpers.oracles import dense, gelu, layer_norm


@dataclasses.dataclass
class BlockRecord:
    """One block's attention, and its tokens after the attention residual."""

    query: np.ndarray  # [N, H, d]
    key: np.ndarray  # [N, H, d]
    size: np.ndarray  # [N], in attention
    x: np.ndarray  # [N, D]


def forward(params, image, *, heads, patch, reduce_tokens, prop_attn=False, scale=None):
    """image [S, S, 3] -> (logits, tokens [N, D], size [N], a BlockRecord per block).

    reduce_tokens: (block, x, size, BlockRecord) -> (x, size) of image tokens, before
        the MLP
    scale: [depth, 2], factors of the residual branches
    """
    x = embed(params, image, patch)
    blocks = []
    size = np.ones(len(x))
    for i in range(sum(name.startswith("blocks_") for name in params)):
        block = params[f"blocks_{i}"]
        factors = (1.0, 1.0) if scale is None else scale[i]
        normed = layer_norm(x, block["norm1"])
        weight = size if prop_attn else np.ones(len(x))
        out, record = attention(normed, block["attn"], heads, weight)
        x = record.x = x + factors[0] * out
        left, sizes = reduce_tokens(i, x[1:], size[1:], record)
        x = np.concatenate([x[:1], left])
        size = np.concatenate([size[:1], sizes])
        hidden = dense(layer_norm(x, block["norm2"]), block["mlp"]["fc1"])
        x = x + factors[1] * dense(gelu(hidden), block["mlp"]["fc2"])
        blocks.append(record)
    tokens = layer_norm(x, params["norm"])
    return dense(tokens[0], params["head"]), tokens, size, blocks


def embed(params, image, patch):
    stem = params["patch_embed"]["proj"]
    tokens = [params["cls_token"][0, 0]]
    for top in range(0, image.shape[0], patch):
        for left in range(0, image.shape[1], patch):
            pixels = image[top : top + patch, left : left + patch]
            tokens.append(np.tensordot(pixels, stem["kernel"], 3) + stem["bias"])
    return np.stack(tokens) + params["pos_embed"][0]


def attention(x, params, heads, size):
    shape = len(x), heads, x.shape[1] // heads
    query, key, value = (dense(x, params[name]).reshape(shape) for name in "qkv")
    out, _ = oracles.attention(query, key, value, np.log(size))
    record = BlockRecord(query, key, size, x)
    return dense(out.reshape(x.shape), params["proj"]), record
