"""`evaluate`: accuracy of a model, an optimized program or an exported file."""

import os
from typing import Any

import jax
import numpy as np

from imagepiece_jax.common import parallel, statistics
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
    optimized: compare the program of `optimize` with the float32 model
    gelu: for the optimized program
    options: fields of ReadOptions, where None means the run's or the default:
        data_dir: folder of imagenet2012's files
        limit: evenly spaced images to take
        batch_size, workers, threads: how to read images; 512, 8 and 2
    Returns acc1 and acc5 in percent, loss, images, throughput in images a second, and
        their settings; with `optimized`, metrics are under "reference" and "optimized".
    Raises InputError for images of other classes, and for a model without classes.
    """
    if isinstance(model, str | os.PathLike):
        model = open_program(model)
    if gelu and not optimized:
        raise InputError(f"gelu is {gelu}, but only the optimized program takes it")
    if optimized and not isinstance(model, Pretrained):
        raise InputError("optimized is for weights, not for an exported file")
    images = labeled_images.open_labeled_images(model, data, **options)
    if not isinstance(model, Pretrained):
        batches = images.read_batches(placement=Placement())  # of this process
        step = accuracy.make_program_step(lambda pixels: jax.device_put(model(pixels)))
        metrics = accuracy.evaluate_model(step, None, batches).metrics
    elif optimized:
        metrics = compare_optimized(model, images, gelu)
    else:
        batches = images.read_batches()
        result = accuracy.evaluate_weights(model.model, model.variables, batches)
        metrics = result.metrics
    # After the pass, which finds unreadable images.
    return metrics | images.model_facts(model)


def compare_optimized(
    vit: Pretrained, images: labeled_images.LabeledImages, gelu: str | None
) -> dict[str, dict[str, Any]]:
    """Compare the accuracy of a model's optimized program with the model's.

    The model runs in float32 with XLA's attention.
    Returns {"reference", "optimized"}: metrics of both, and under "optimized" the
        difference of acc1 in points with its interval.
    """
    execution = vit.model.execution
    program = optimize.optimize(
        vit,
        batch_size=images.pass_batch_size,
        dtype=execution.dtype.name,
        gelu=gelu,
        attention=execution.attention,
        pixels=True,
    )
    exact = {"dtype": np.dtype("float32"), "attention_impl": "xla"}
    exact_model = vit.model.with_execution(**exact)
    reference_result = accuracy.evaluate_weights(
        exact_model, vit.variables, images.read_batches(), precision="highest"
    )
    batches = images.read_batches(program.batch_size, Placement())
    step = accuracy.make_program_step(program)
    optimized_result = accuracy.evaluate_model(step, None, batches)
    difference = statistics.paired_difference(
        optimized_result.image_metrics["right"], reference_result.image_metrics["right"]
    )
    return {
        "reference": _describe_result(reference_result, exact_model, "exact"),
        "optimized": {
            **_describe_result(optimized_result, program.model, program.reductions),
            "difference": difference.value,
            "difference_low": difference.low,
            "difference_high": difference.high,
        },
    }


def _describe_result(result, model, reductions):
    return {
        **result.metrics,
        "dtype": model.execution.dtype.name,
        "gelu": model.config.arch.gelu,
        "sizes": model.execution.size_encoding,
        "reductions": reductions,
    }
