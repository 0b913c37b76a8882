"""Cost of the blocks of a plan: multiply-adds of one image.

One multiply-add is 1 MAC, which most papers print as one "FLOP". Norms, softmax,
ranking and gathers are not counted, as in the published figures.
"""


def block_macs(layer, embed_dim, mlp_ratio=4, mlp_layers=2):
    """MACs of one block: projections and attention, then the MLP's layers.

    mlp_layers: two, or three where one of them is a gate.
    """
    scored = read = layer.attn_tokens
    if layer.counts and layer.step.site == "attention":
        read = layer.mlp_tokens
    # Queries, keys and their products; then values, what is read of them, and proj.
    attention = 2 * (scored + read) * embed_dim**2
    attention += (scored**2 + read**2) * embed_dim
    mlp = mlp_layers * embed_dim * round(mlp_ratio * embed_dim)
    return attention + layer.mlp_tokens * mlp


def reducer_macs(layer, embed_dim, num_heads):
    """MACs of what the reducer of a block computes itself (a learned selector)."""
    if layer.counts is None:
        return 0
    return layer.step.reducer.extra_macs(layer.counts.n_in, embed_dim, num_heads)


def plan_macs(plan, embed_dim, num_heads, mlp_ratio=4, mlp_layers=2):
    """MACs of every block of `plan`, reducers included: a list of ints."""
    return [
        block_macs(layer, embed_dim, mlp_ratio, mlp_layers)
        + reducer_macs(layer, embed_dim, num_heads)
        for layer in plan
    ]
