"""Accuracy of the fast program beside that of the float32 model, image by image."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from imagepiece_jax.common import parallel
from imagepiece_jax.data import loader
from imagepiece_jax.evaluate import accuracy, statistics
from imagepiece_jax.inference import optimize
from imagepiece_jax.models.vit import ViT


def compare(
    model: ViT,
    variables: Any,
    batches: Callable[..., Any],
    *,
    batch_size: int,
    attention: str = "auto",
    gelu: str | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """{"reference": figures, "optimized": figures} of one split; printed on the way.

    The reference is `model` in float32 at highest precision, with XLA's attention; the
    program is what `optimize` makes of `model` in its dtype with this `attention` and,
    where it is given, another `gelu`, for batches of `batch_size` on the first device.
    `batches` makes the batches of the split; it takes batch_size and placement. The
    figures of the program have the paired difference of acc1 to the reference, in
    points, and its interval.
    """
    program = optimize.optimize(
        model,
        variables,
        batch_size=batch_size,
        dtype=model.dtype.name,
        gelu=gelu,
        attention=attention,
        pixels=True,
    )
    exact = model.clone(dtype=jnp.dtype("float32"), backend="xla")
    step = accuracy.compiled(exact, seed, precision="highest")
    before = accuracy.evaluate(step, parallel.replicate(variables), batches())
    reference = before.figures | {"dtype": "float32", "gelu": model.gelu}
    print(_line(reference), flush=True)
    step = accuracy.of_program(program)
    whole = batches(batch_size=batch_size, placement=loader.ONE_DEVICE)
    after = accuracy.evaluate(step, None, whole)
    change = statistics.paired_difference(after.each["right"], before.each["right"])
    optimized = after.figures | {"dtype": model.dtype.name, "gelu": program.model.gelu}
    optimized |= {"difference": change.value}
    optimized |= {"difference_low": change.low, "difference_high": change.high}
    print(_line(optimized), flush=True)
    print(
        f"the program's cost: {statistics.format_difference(change, 2)} points of acc1 "
        f"(95 %, paired, {after.images} images)"
    )
    return {"reference": reference, "optimized": optimized}


def _line(row):
    return (
        "{dtype}, {gelu} GELU: acc1 {acc1:.2f} %  acc5 {acc5:.2f} %  loss {loss:.4f}  "
        "images {images}  throughput {throughput:.1f} img/s".format(**row)
    )
