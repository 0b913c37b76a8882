"""Predicted speed of a reduced model on a CPU, without running it.

The time of a batch is a sum of what a program does, each with a cost that was fitted to
measured times (`python -m tools.cpu_time`; docs/inference.md has measured beside
predicted). MACs alone promise too much: norms, softmax and steps of a reduction take
time, and a single image waits for the weights.
"""

from imagepiece_jax.models import stems
from imagepiece_jax.reduction import flops

# Seconds on two cores of the CPU that they were fitted to; only their ratios matter.
COSTS = {
    "call": 5.39e-03,
    "weights": 2.69e-10,
    "steps": 2.85e-05,
    "products": 6.69e-12,
    "stem_pixels": 6.08e-09,
    "attention": 4.68e-09,
    "tokens": 4.56e-09,
}
BATCH_SIZES = (1, 8, 32)  # that `line` names


def work(model, image_size, batch_size: int) -> dict[str, float]:
    """What a batch does, by the names of COSTS.

    Of the whole batch: MACs of products, numbers that the stem's convolutions write and
    that attention's softmax reads, and numbers in the tokens of all layers. Once a
    call: weights that are read, and steps of the reduction.
    """
    width, plan = model.embed_dim, model.plan
    size = width, image_size, model.patch_size
    layers = 3 if model.arch.mlp == "swiglu" else 2
    ratio, heads = model.mlp_ratio, model.num_heads
    hidden = round(ratio * width)
    macs = sum(flops.plan_macs(plan, width, heads, ratio, layers))
    squares = sum(layer.attn_tokens**2 for layer in plan)
    image = {
        "products": macs - 2 * width * squares + stems.stem_macs(model.stem, *size),
        "stem_pixels": stems.stem_pixels(model.stem, *size),
        "attention": heads * squares,
        "tokens": width * sum(layer.attn_tokens + layer.mlp_tokens for layer in plan),
    }
    call = {
        "call": 1,
        "weights": len(plan) * (4 * width + layers * hidden) * width,
        "steps": sum(layer.counts is not None for layer in plan),
    }
    return call | {name: batch_size * count for name, count in image.items()}


def seconds(model, image_size, batch_size: int) -> float:
    """Predicted time of a batch; of use in ratios."""
    found = work(model, image_size, batch_size)
    return sum(COSTS[name] * count for name, count in found.items())


def line(model, dense, image_size) -> str:
    """How many times as fast as `dense`, at several batch sizes, as a sentence."""
    ratios = (
        seconds(dense, image_size, size) / seconds(model, image_size, size)
        for size in BATCH_SIZES
    )
    listed = ", ".join(
        f"{ratio:.2f}x at batch size {size}"
        for ratio, size in zip(ratios, BATCH_SIZES, strict=True)
    )
    return f"predicted speed on a CPU, relative to dense: {listed}"
