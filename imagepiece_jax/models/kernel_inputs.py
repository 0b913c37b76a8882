"""Inputs of the fused kernels, captured from a forward pass of a model."""

import jax.numpy as jnp


def kernel_inputs(model, variables, images):
    """Return [(query, key, x, size)] of blocks that reduce after their attention.

    images: [B, S, S, 3], normalized; query, key [B, N, H, d], x [B, N, D], size [B, N].
    """

    def wanted(module, method):
        projects = method == "__call__" and module.name in ("q", "k")
        return projects or method == "attend"

    outputs, seen = model.apply(
        variables, images, capture_intermediates=wanted, mutable=["intermediates"]
    )
    reducing = [i for i, layer in enumerate(model.plan) if layer.counts]
    found = []
    for block, taps in zip(reducing, outputs.taps, strict=True):
        if model.plan[block].step.site != "mid":
            continue
        inside = seen["intermediates"][f"blocks_{block}"]
        (x, _), *_ = inside["attend"]
        heads = (*x.shape[:2], model.num_heads, -1)
        query, key = (inside["attn"][name]["__call__"][0] for name in "qk")
        size = jnp.pad(taps.size, ((0, 0), (1, 0)), constant_values=1.0)
        found.append((query.reshape(heads), key.reshape(heads), x, size))
    return found
