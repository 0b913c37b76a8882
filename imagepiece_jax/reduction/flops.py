"""Cost of a forward pass: multiply-adds of one image, from a plan.

One multiply-add is 1 MAC, which most papers print as one "FLOP". Norms, softmax,
ranking and gathers are not counted, as in the published figures.
"""

from imagepiece_jax.errors import InputError


def block_macs(layer, embed_dim, mlp_ratio=4):
    """MACs of one block: projections and attention, then the two MLP layers."""
    attention = 4 * layer.attn_tokens * embed_dim**2
    attention += 2 * layer.attn_tokens**2 * embed_dim
    return attention + 2 * layer.mlp_tokens * embed_dim * int(mlp_ratio * embed_dim)


def reducer_macs(layer, embed_dim, num_heads):
    """MACs of what the reducer of a block computes itself (a learned selector)."""
    if layer.counts is None:
        return 0
    return layer.step.reducer.extra_macs(layer.counts.n_in, embed_dim, num_heads)


def conv_stem_widths(embed_dim, patch_size):
    """Widths of the stride-2 convolutions: patch 2**k has k, doubling up to D."""
    steps = patch_size.bit_length() - 1
    if patch_size < 2 or patch_size != 2**steps or embed_dim % 2 ** (steps - 1):
        raise InputError(
            f"config.model.stem is 'conv' with patch_size {patch_size} and embed_dim "
            f"{embed_dim}; the conv stem needs a patch size that is a power of "
            "two (2 or more) and an embed_dim divisible by half of it"
        )
    return tuple(embed_dim // 2**i for i in reversed(range(steps)))


def stem_macs(stem, embed_dim, image_size=224, patch_size=16):
    """MACs that turn an RGB image into tokens; `stem` is "patch" or "conv"."""
    tokens = (image_size // patch_size) ** 2
    if stem == "patch":
        return tokens * 3 * patch_size**2 * embed_dim
    total, side, width_in = tokens * embed_dim**2, image_size, 3
    for width in conv_stem_widths(embed_dim, patch_size):
        side //= 2
        total += side**2 * 9 * width_in * width
        width_in = width
    return total


def macs(
    plan,
    embed_dim,
    num_heads,
    stem="patch",
    num_classes=1000,
    *,
    reducers=True,
    image_size=224,
    patch_size=16,
    mlp_ratio=4,
):
    """MACs of one image through the whole model, as an int.

    `reducers`: with what learned selectors compute themselves.
    """
    total = stem_macs(stem, embed_dim, image_size, patch_size) + embed_dim * num_classes
    for layer in plan:
        total += block_macs(layer, embed_dim, mlp_ratio)
        if reducers:
            total += reducer_macs(layer, embed_dim, num_heads)
    return total
