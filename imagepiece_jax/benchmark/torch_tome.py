"""How does ToMe run in PyTorch? On timm's model, as its paper describes it.

Token merging (Bolya et al., ICLR 2023), section 3: in every block, between attention
and MLP, tokens at even positions look for the most similar of those at odd positions,
by the cosine of their keys averaged over heads; the r most similar pairs become one
token each, the mean over the patches behind them. Attention counts a token as often as
it has patches ("proportional attention").

Nothing here is used by the models of this package; it is what they are timed against.
"""

import torch
from torch.nn import functional


def forward(vit, images, r):
    """Logits of timm's `vit`, r tokens merged a block. [B, 3, H, W] -> [B, C]."""
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    size = torch.ones_like(x[..., :1])
    for block in vit.blocks:
        attended, key = _attend(block.attn, block.norm1(x), size)
        x = x + attended
        merges = min(r, (x.shape[1] - 1) // 2)
        if merges:
            x, size = merge(x, size, key.mean(dim=1), merges)
        x = x + block.mlp(block.norm2(x))
    return vit.forward_head(vit.norm(x))


def _attend(attention, x, size):
    """timm's attention with log(size) on the logits, and its keys [B, H, N, d].

    In one fused kernel, although the published code builds the matrix: the faster way
    is the fairer rival.
    """
    batch, length, dim = x.shape
    shape = (batch, length, 3, attention.num_heads, dim // attention.num_heads)
    query, key, value = attention.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4)
    bias = size.log().transpose(1, 2)[:, None]  # [B, 1, 1, N]
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return attention.proj(out.transpose(1, 2).reshape(batch, length, dim)), key


def merge(x, size, metric, merges):
    """The most similar pairs become their means: (x, size), `merges` tokens fewer.

    x [B, N, D], size [B, N, 1] patches, metric [B, N, d]. The class token, at position
    0, stays. First come the even tokens that are left, in order, then the odd ones.
    """
    metric = functional.normalize(metric, dim=-1)
    similarity = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
    similarity[:, 0] = -torch.inf
    best, partner = similarity.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    leaving, staying = order[:, :merges, None], order[:, merges:, None]
    staying = staying.sort(dim=1).values
    joined = partner[..., None].gather(1, leaving)

    def summed(values):
        even, odd = values[:, ::2], values[:, 1::2]
        width = values.shape[-1]
        gone = even.gather(1, leaving.expand(-1, -1, width))
        odd = odd.scatter_add(1, joined.expand(-1, -1, width), gone)
        return torch.cat([even.gather(1, staying.expand(-1, -1, width)), odd], dim=1)

    total, size = summed(x * size), summed(size)
    return total / size, size
