"""Top-1, top-5 and loss of trained weights over every image of a set.

python -m imagepiece_jax evaluate --weights WORKDIR
python -m imagepiece_jax evaluate --weights FILE --data PATH --reduction tome:r=8

A run determines its model, its images and their crop. --reduction has the weights run
with another one, and other words of `load` change the rest. --optimized evaluates the
fast program of `imagepiece_jax.optimize` and the float32 model: its cost in
accuracy. --limit 100 takes 100 images, evenly spaced over the set. `compare --sweep`
evaluates several reductions.
"""

from imagepiece_jax import cli
from imagepiece_jax.commands import _images, _weights
from imagepiece_jax.common.files import check_writable, write_json
from imagepiece_jax.errors import InputError, flags_of, renamed

WEIGHTS = _weights.weights()
CHECK_DATA, IMAGES = _images.labeled_images()
JSON = cli.text("json", None, "write the results here, too")
OPTIMIZED = cli.switch(
    "optimized", False, "compare the optimized program with the float32 model"
)
GELU = cli.gelu()


def main():
    path = cli.path_of_weights()
    if GELU.value and not OPTIMIZED.value:
        hint = f"add --optimized, or give --model=gelu={GELU.value} for the model"
        problem = f"{GELU.value} is for the optimized program"
        raise InputError("--gelu", problem=problem, hint=hint)
    # These import JAX, which --help and a mistyped flag need not wait for.
    from imagepiece_jax.common import parallel
    from imagepiece_jax.evaluate import accuracy
    from imagepiece_jax.input import registry
    from imagepiece_jax.weights import runs

    CHECK_DATA()
    if JSON.value:
        check_writable("--json", JSON.value, [".json"], runs.own_files(path))
    vit = WEIGHTS()
    images = IMAGES(vit)
    if JSON.value:
        check_writable("--json", JSON.value, [".json"], registry.own_files(images.name))
    how = images.in_words(vit)
    if OPTIMIZED.value:
        print(*how, sep="  ", flush=True)
        figures = optimized(vit, images)
    else:
        step = accuracy.model_step(vit.model, vit.source.seed)
        variables = parallel.replicate(vit.variables)
        figures = accuracy.evaluate(step, variables, images.batches()).figures
        print(accuracy.line(figures, *how, f"gmacs {vit.gmacs:.3f}"))
    if unreadable := len(images.source.unreadable):
        print(f"unreadable images left out: {unreadable}")
    if JSON.value:
        write_json(JSON.value, figures | {"weights": path} | images.facts(vit))


def optimized(vit, images):
    """Print and return the figures of the optimized program and of the model."""
    from imagepiece_jax.evaluate import accuracy, statistics
    from imagepiece_jax.inference import optimize

    with renamed(flags_of("gelu")):
        program = optimize.optimize(
            vit,
            batch_size=min(images.batch, len(images.source)),
            dtype=vit.model.dtype.name,
            gelu=GELU.value,
            attention=vit.attention,
            pixels=True,
        )
    figures, change = accuracy.evaluate_program(
        vit.model,
        vit.variables,
        program,
        images.batches,
        vit.source.seed,
    )
    for name, each in figures.items():
        kind = f"{name}, {each['dtype']}, {each['gelu']} GELU"
        if each["sizes"] != figures["reference"]["sizes"]:
            kind += f", sizes by a {each['sizes']}"
        faster = each["reductions"] != figures["reference"]["reductions"]
        if faster and vit.reduction.name != "none":
            kind += f", {each['reductions']} reductions"
        print(f"{kind}: {accuracy.line(each)}", flush=True)
    print(
        f"the program's cost: acc1 {statistics.format_difference(change, 2)} "
        f"(points, 95 %, paired, {figures['optimized']['images']} images)"
    )
    return figures


if __name__ == "__main__":
    cli.run(main)
