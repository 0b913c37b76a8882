"""`evaluate`: accuracy of a model, an optimized program or an exported file."""

import os
from typing import Any

import jax

from imagepiece_jax.common import parallel
from imagepiece_jax.common.placement import Placement
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation import accuracy, labeled_images
from imagepiece_jax.inference import optimize
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.program import ExportedProgram, open_program


@parallel.without_mesh
def evaluate(
    model: Pretrained | ExportedProgram | str | os.PathLike,
    data: str | None = None,
    *,
    optimized: bool = False,
    gelu: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure top-1, top-5 and loss on every image of a data set.

    model: a loaded model, or the path of an exported file, which its runtime runs
    data: a folder with a folder of images per class, csv:FILE, hf:OWNER/NAME,
        imagenet2012 or digits; None: the run's validation data
    optimized: evaluate the program of `optimize`, which gets `gelu`
    options: fields of ReadOptions, where None means the run's or the default:
        data_dir: folder of imagenet2012's files
        limit: evenly spaced images to take
        batch_size, workers, threads: how to read images; 512, 8 and 2
    Returns acc1 and acc5 in percent, loss, images, throughput in images a second, and
        their settings.
    Raises InputError for images of other classes, and for a model without classes.
    """
    if isinstance(model, str | os.PathLike):
        model = open_program(model)
    if gelu and not optimized:
        raise InputError(f"gelu is {gelu}, but only the optimized program takes it")
    images = labeled_images.open_labeled_images(model, data, **options)
    program: Any = model
    if optimized:
        if not isinstance(model, Pretrained):
            raise InputError("optimized is for weights, not for an exported file")
        execution = model.model.execution
        program = optimize.optimize(
            model,
            batch_size=images.pass_batch_size,
            dtype=execution.dtype.name,
            gelu=gelu,
            attention=execution.attention,
            pixels=True,
        )
    if isinstance(program, Pretrained):
        batches = images.read_batches()
        step = accuracy.make_eval_step(program.model)
        variables = parallel.replicate(program.variables)
    else:  # on one device, so this process reads all batches
        batches = images.read_batches(Placement())

        def compute_logits(pixels):
            return jax.device_put(program(pixels))  # an exported file gives NumPy

        step = accuracy.make_program_step(compute_logits)
        variables = None
    result = accuracy.evaluate_model(step, variables, batches)
    # After the pass, which finds unreadable images.
    return result.metrics | images.evaluation_record(model)
