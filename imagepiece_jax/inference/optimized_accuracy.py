"""Accuracy of the fast program beside that of the float32 model, image by image."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from imagepiece_jax.common import parallel
from imagepiece_jax.common.layout import ONE_DEVICE
from imagepiece_jax.evaluate import accuracy, statistics
from imagepiece_jax.inference import optimize
from imagepiece_jax.pretrained.trained_model import Pretrained


def compare(
    vit: Pretrained,
    batches: Callable[..., Any],
    config: Any,
    gelu: str | None = None,
) -> dict[str, dict[str, Any]]:
    """{"reference": figures, "optimized": figures} of one split; printed on the way.

    The reference is the model in float32 at highest precision, with XLA's attention;
    the program is what `optimize` makes of it in its dtype with the config's attention
    and, where it is given, another `gelu`, for batches of config.eval_batch_size on the
    first device. `batches` makes the batches of the split; it takes batch_size and
    placement. The figures of the program have the paired difference of acc1 to the
    reference, in points, and its interval.
    """
    model = vit.model
    program = optimize.optimize(
        vit,
        batch_size=config.eval_batch_size,
        dtype=model.dtype.name,
        gelu=gelu,
        attention=config.model.attention,
        kernels=config.model.kernels,
        pixels=True,
    )
    exact = model.clone(dtype=jnp.dtype("float32"), backend="xla")
    step = accuracy.compiled(exact, config.seed, precision="highest")
    before = accuracy.evaluate(step, parallel.replicate(vit.variables), batches())
    reference = before.figures | {"dtype": "float32", "gelu": model.arch.gelu}
    print(f"float32, {model.arch.gelu} GELU: {before.line()}", flush=True)
    step = accuracy.of_program(program)
    whole = batches(batch_size=config.eval_batch_size, placement=ONE_DEVICE)
    after = accuracy.evaluate(step, None, whole)
    change = statistics.paired_difference(after.each["right"], before.each["right"])
    gelu = program.model.arch.gelu
    optimized = after.figures | {"dtype": model.dtype.name, "gelu": gelu}
    optimized |= {"difference": change.value}
    optimized |= {"difference_low": change.low, "difference_high": change.high}
    print(f"{model.dtype.name}, {gelu} GELU: {after.line()}", flush=True)
    print(
        f"the program's cost: acc1 {statistics.format_difference(change, 2)} (points, "
        f"95 %, paired, {after.images} images)"
    )
    return {"reference": reference, "optimized": optimized}
