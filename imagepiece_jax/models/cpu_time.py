"""Predicted speed of a reduced model on a CPU, without running it.

The time of a batch is a sum of what a program does, each with a cost that was fitted to
measured times (`python -m tools.cpu_time`; docs/inference.md has measured beside
predicted). MACs alone promise too much: norms, softmax and steps of a reduction take
time, and a single image waits for the weights.
"""

from imagepiece_jax.models import stems
from imagepiece_jax.reduction import flops

# Seconds of one core's clock at which they were fitted; only their ratios matter.
COSTS: dict[str, float] = {}
BATCH_SIZES = (1, 8, 32)  # that `line` names


def work(model, image_size, batch_size: int) -> dict[str, float]:
    """What a batch does, by the names of COSTS."""
    width, heads, plan = model.embed_dim, model.num_heads, model.plan
    hidden = round(model.mlp_ratio * width)
    stem = stems.stem_macs(model.stem, width, image_size, model.patch_size)
    macs = sum(flops.plan_macs(plan, width, heads, model.mlp_ratio))
    squares = sum(layer.attn_tokens**2 for layer in plan)
    steps = [layer.counts for layer in plan if layer.counts]
    image = {
        "products": macs - 2 * width * squares,
        "attention": 2 * width * squares,
        "softmax": heads * squares,
        "stem": stem,
        "tokens": sum(layer.attn_tokens + layer.mlp_tokens for layer in plan) * width,
        "gelu": hidden * sum(layer.mlp_tokens for layer in plan),
        "moves": width * sum(counts.n_in for counts in steps),
    }
    call = {
        "call": 1,
        "weights": len(plan) * (4 * width + 2 * hidden) * width,
        "steps": len(steps),
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
        f"{ratio:.2f} at batch size {size}"
        for ratio, size in zip(ratios, BATCH_SIZES, strict=True)
    )
    return f"predicted on a CPU, times the speed of dense: {listed}"
