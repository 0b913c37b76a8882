"""What does the fast program cost in accuracy? The same images, before and after.

`evaluate --optimized` calls this: first the model in float32, then the program that
`optimize` makes of it, and the difference between the two, image by image.
"""

import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common import parallel
from imagepiece_jax.data import loader
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.evaluate.sweep import paired_difference
from imagepiece_jax.inference import optimize


def compare(config, model, variables, batches, images, gelu=None):
    """{"reference": figures, "optimized": figures} of one set; printed as they come.

    The reference is `model` in float32 at highest precision, with XLA's attention; the
    program has the dtype of `model` and, where it is given, another `gelu`. `batches`
    makes the batches of the `images` images; it takes batch_size and placement. The
    program runs on the first device. Its figures have the paired difference of acc1 to
    the reference and the 95 % interval, in points.
    """
    program = optimize.optimize(
        model,
        variables,
        batch_size=config.eval_batch_size,
        dtype=model.dtype.name,
        gelu=gelu,
        attention=config.model.attention,
        pixels=True,
    )
    exact = model.clone(dtype=jnp.dtype("float32"), backend="xla")
    rights = np.zeros((2, images), bool)
    step = accuracy.compiled(exact, config.seed, precision="highest")
    reference = accuracy.evaluate(
        step, parallel.replicate(variables), batches(), rights[0]
    )
    reference |= {"dtype": "float32", "gelu": model.gelu}
    print(_line(reference), flush=True)
    optimized = accuracy.evaluate(
        accuracy.of_program(program),
        None,
        batches(batch_size=config.eval_batch_size, placement=loader.ONE_DEVICE),
        rights[1],
    )
    optimized |= {"dtype": model.dtype.name, "gelu": program.model.gelu}
    optimized |= paired_difference(rights[1], rights[0])
    print(_line(optimized), flush=True)
    print(
        f"the program's cost: {optimized['difference']:+.2f} +- "
        f"{optimized['difference_error']:.2f} points of acc1 (95 %, paired, "
        f"{optimized['images']} images)"
    )
    return {"reference": reference, "optimized": optimized}


def _line(row):
    return (
        "{dtype}, {gelu} GELU: acc1 {acc1:.2f} %  acc5 {acc5:.2f} %  loss {loss:.4f}  "
        "images {images}  throughput {throughput:.1f} img/s".format(**row)
    )
