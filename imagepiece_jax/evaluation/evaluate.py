"""`evaluate`: accuracy of a model, an optimized program or an exported file."""

import os
from typing import Any

import jax

from imagepiece_jax.common import parallel
from imagepiece_jax.common.placement import Placement
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation import accuracy
from imagepiece_jax.evaluation.labeled_images import open_labeled_images
from imagepiece_jax.inference.optimize import optimize
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.program import Program, open_program


def evaluate(
    model: Pretrained | Program | str | os.PathLike,
    data: str | None = None,
    *,
    optimized: bool = False,
    gelu: str | None = None,
    data_dir: str | os.PathLike | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Measure top-1, top-5 and loss on every image of a data set.

    model: a loaded model, or the path of an exported .onnx file, which onnxruntime runs
    data: a folder with a folder of images per class, csv:FILE, hf:OWNER/NAME,
        imagenet2012 or digits; None: the run's validation data
    optimized: compare the program of `optimize` with the float32 model
    gelu: for the optimized program
    data_dir: folder of imagenet2012's files
    limit: evenly spaced images to take; None: all
    batch_size, workers, threads: how to read images; None: as in the run, or 512, 8 and
        2
    Returns acc1 and acc5 in percent, loss, images, throughput in images a second, and
        their settings; with `optimized`, figures are under "reference" and "optimized".
    Raises InputError for images of other classes, and for a model without classes.
    """
    vit = model
    if isinstance(model, str | os.PathLike):
        vit = open_program(model)
    has_weights = isinstance(vit, Pretrained)
    if gelu and not optimized:
        raise InputError(f"gelu is {gelu}, but only the optimized program takes it")
    if optimized and not has_weights:
        raise InputError("optimized is for weights, not for an exported file")
    images = open_labeled_images(
        vit,
        data,
        data_dir=data_dir,
        limit=limit,
        batch_size=batch_size,
        workers=workers,
        threads=threads,
    )
    if not has_weights:
        step = accuracy.program_step(lambda pixels: jax.device_put(vit(pixels)))
        batches = images.batches(placement=Placement())
        figures = accuracy.evaluate_model(step, None, batches).figures
        recovered = vit.facts.get("recovered")
        return figures | images.facts(vit, vit.facts["method"], recovered)
    if not optimized:
        step = accuracy.model_step(vit.model)
        variables = parallel.replicate(vit.variables)
        figures = accuracy.evaluate_model(step, variables, images.batches()).figures
    else:
        program = optimize(
            vit,
            batch_size=images.batch,
            dtype=vit.model.execution.dtype.name,
            gelu=gelu,
            attention=vit.model.execution.attention,
            pixels=True,
        )
        figures = accuracy.compare_program(
            vit.model, vit.variables, program, images.batches
        )
    recovered = vit.recovered and vit.recovered.name
    # After the pass, which finds unreadable images.
    return figures | images.facts(vit, vit.reduction, recovered)
