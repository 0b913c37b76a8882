"""Top-1, top-5 and loss of trained weights over every image of a set.

python -m imagepiece_jax evaluate --weights WORKDIR
python -m imagepiece_jax evaluate --weights FILE --data PATH \\
    --config configs/deit_s_imagepiece.py:deit_ti

A run determines model and data, a file its sizes: --config gives a file a reduction,
and must agree with the weights. Without it, --config.FIELD=VALUE changes what they
determine, such as --config.reduction.keep_rate=.5 of a run. --optimized evaluates the
fast program of `imagepiece_jax.optimize` and the float32 model: its cost in
accuracy. --limit 100 takes 100 images, evenly spaced over the set. --valid_labels=data
has the model choose among the classes of the images alone, as published figures on
ImageNet-A, ImageNet-R and imagenette do. `compare --sweep` evaluates several
reductions.
"""

import functools

from imagepiece_jax import cli
from imagepiece_jax.common.files import check_writable, write_json
from imagepiece_jax.errors import InputError

MODEL = cli.trained_model(also_read=cli.OF_IMAGES)
IMAGES, DATA = cli.evaluated_images()
VALID_LABELS = cli.valid_labels()
JSON = cli.text("json", None, "write the results here, too")
OPTIMIZED = cli.switch(
    "optimized", False, "compare the optimized program with the float32 model"
)
GELU = cli.gelu()


def main():
    typed = MODEL()
    # These import JAX, which --help and a mistyped flag need not wait for.
    from imagepiece_jax.common import parallel
    from imagepiece_jax.config.images import eval_batches, labeled_images
    from imagepiece_jax.config.run import RunConfig
    from imagepiece_jax.data import valid_labels
    from imagepiece_jax.evaluate import accuracy, statistics
    from imagepiece_jax.inference import optimize
    from imagepiece_jax.input import registry
    from imagepiece_jax.pretrained import runs
    from imagepiece_jax.pretrained.with_config import load_with_config

    if GELU.value and not OPTIMIZED.value:
        raise InputError(
            f"{GELU.value} is for the optimized program",
            field="--gelu",
            value=GELU.value,
            hint="add --optimized, or set --config.model.gelu for the model itself",
        )
    if JSON.value:
        files = runs.own_files(typed["path"])
        check_writable("--json", JSON.value, files)
    if DATA.value:
        registry.check_found(DATA.value)
    config, vit = load_with_config(**typed)
    limit = IMAGES(config)
    model = vit.model
    loaded = vit.source
    if JSON.value:
        check_writable("--json", JSON.value, registry.own_files(config.data.name))
    run = RunConfig.from_config(config)
    try:
        source = labeled_images(run, vit, limit)
    except InputError as error:
        raise cli.with_data_flag(error) from error
    valid = valid_labels.read(VALID_LABELS.value, source)
    if note := valid_labels.note(valid, source):
        print(f"note: {note}", flush=True)
    placement = parallel.placement()
    transform = run.preprocessing()
    batches = functools.partial(eval_batches, run, source, placement=placement)
    how = [
        f"among {valid_labels.in_words(valid, run.num_classes)}",
        *["averaged weights"] * loaded.averaged,
        transform.text,
        *vit.differences_from_training(),
    ]
    if OPTIMIZED.value:
        print("  ".join(how), flush=True)
        program = optimize.optimize(
            vit,
            batch_size=config.eval_batch_size,
            dtype=model.dtype.name,
            gelu=GELU.value,
            attention=config.model.attention,
            pixels=True,
        )
        result, change = accuracy.evaluate_program(
            vit.model, vit.variables, program, batches, config.seed, valid
        )
        for figures in result.values():
            kind = f"{figures['dtype']}, {figures['gelu']} GELU"
            print(f"{kind}: {accuracy.line(figures)}", flush=True)
        print(
            f"the program's cost: acc1 {statistics.format_difference(change, 2)} "
            f"(points, 95 %, paired, {figures['images']} images)"
        )
    else:
        step = accuracy.model_step(model, config.seed, valid=valid)
        measured = accuracy.evaluate(step, parallel.replicate(vit.variables), batches())
        result = measured.figures
        print(accuracy.line(result, *how, f"gmacs {vit.gmacs:.3f}"))
    if unreadable := len(source.unreadable):
        print(f"unreadable images left out: {unreadable}")
    if JSON.value:
        size = loaded.config.image_size
        reduction = loaded.reduction and loaded.reduction.fields
        trained = {"reduction": reduction, "image_size": size}
        facts = {
            "preprocessing": transform.as_json,
            "weights": typed["path"],
            "checkpoint": loaded.checkpoint,
            "averaged": loaded.averaged,
            "data": run.data.name,
            "limit": limit,
            **source.part,
            "num_classes": run.num_classes,
            "valid_labels": valid,
            "dtype": model.dtype.name,
            "trained": trained,
            "recovered": vit.recovered and vit.recovered.form,
            "reduction": vit.reduction.fields,
            "gmacs": vit.gmacs,
            "unreadable": unreadable,
        }
        write_json(JSON.value, result | facts)


if __name__ == "__main__":
    cli.run(main)
