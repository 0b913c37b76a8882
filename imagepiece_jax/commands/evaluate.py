"""Top-1, top-5 and loss of trained weights over every image of a set."""

from typing import Literal

from imagepiece_jax.commands._arguments import Data, Weights
from imagepiece_jax.common.files import check_writable, write_json
from imagepiece_jax.errors import InputError


def main(
    weights: Weights,
    data: Data,
    *,
    optimized: bool = False,
    gelu: Literal["exact", "tanh"] | None = None,
    json: str | None = None,
):
    """Print top-1, top-5 and loss over every image of a set; --reduction changes it.

    With --optimized it compares the program of `imagepiece_jax.optimize` with the
    float32 model, image by image: its cost in accuracy.

    Example: python -m imagepiece_jax evaluate weights digits --limit 50

    Args:
        optimized: Compare the optimized program with the float32 model.
        gelu: Of the optimized program.
        json: A file to write the results to.
    """
    from imagepiece_jax.common import parallel
    from imagepiece_jax.deploy.weights import runs
    from imagepiece_jax.evaluate import accuracy
    from imagepiece_jax.input import registry

    if gelu and not optimized:
        raise InputError(f"gelu is {gelu}, which is for the optimized program alone")
    if json is not None:
        check_writable("json", json, [".json"], runs.own_files(weights.weights))
    vit = weights.load()
    images = data.open(vit)
    if json is not None:
        check_writable("json", json, [".json"], registry.own_files(images.name))
    how = images.in_words(vit)
    if optimized:
        print(*how, sep="  ", flush=True)
        figures = compared(vit, images, gelu)
    else:
        step = accuracy.model_step(vit.model)
        variables = parallel.replicate(vit.variables)
        figures = accuracy.evaluate(step, variables, images.batches()).figures
        print(accuracy.line(figures, *how, f"gmacs {vit.gmacs:.3f}"))
    if unreadable := len(images.source.unreadable):
        print(f"unreadable images left out: {unreadable}")
    if json is not None:
        facts = {"weights": weights.weights} | images.facts(vit)
        write_json(json, figures | facts)


def compared(vit, images, gelu):
    """Print and return the figures of the optimized program and the model."""
    from imagepiece_jax.deploy.inference import optimize
    from imagepiece_jax.evaluate import accuracy, statistics

    program = optimize.optimize(
        vit,
        batch_size=min(images.batch, len(images.source)),
        dtype=vit.model.execution.dtype.name,
        gelu=gelu,
        attention=vit.model.execution.attention,
        pixels=True,
    )
    figures, change = accuracy.evaluate_program(
        vit.model, vit.variables, program, images.batches
    )
    for name, each in figures.items():
        kind = f"{name}, {each['dtype']}, {each['gelu']} GELU, sizes as {each['sizes']}"
        print(f"{kind}: {accuracy.line(each)}", flush=True)
    print(
        f"the program's cost: acc1 {statistics.format_difference(change, 2)} "
        f"(points, 95 %, paired, {figures['optimized']['images']} images)"
    )
    return figures
