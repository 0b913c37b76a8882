"""How accurate are these weights? Top-1, top-5 and loss over every image of a set.

python -m imagepiece_jax.evaluate --weights WORKDIR
python -m imagepiece_jax.evaluate --weights FILE --data folder:PATH \\
    --config configs/deit_s_imagepiece.py:deit_ti

A run tells its model and its data, a file its sizes: --config is for the reduction of a
file, and must agree with what the weights tell. Without it --config.FIELD=VALUE changes
what they tell, such as --config.reduction.keep_rate=.5 of a run.

With --sweep evit:keep_rate=.9,.7 --sweep tome:r=8,13 the same weights are evaluated
with each of these reductions, beside the dense model: one table, one plot. With
--optimized the fast program (`imagepiece_jax.optimize`) is evaluated beside the float32
model: what it costs in accuracy, --gelu=tanh included.
"""

import functools
import json

from absl import flags

from imagepiece_jax import cli, config_files
from imagepiece_jax.errors import InputError

cli.define_config()
WEIGHTS = cli.weights()
NORMALIZATION = cli.normalization()
CHECKPOINT = cli.checkpoint()
DATA = cli.data("config.data")
RESIZE = cli.resize()
JSON = flags.DEFINE_string(
    "json", None, "also write the results to this file", allow_override=True
)
SWEEP = cli.sweep("these settings instead of config.reduction")
OPTIMIZED = flags.DEFINE_bool(
    "optimized", False, "compare the optimised program with the float32 model"
)
GELU = flags.DEFINE_enum(
    "gelu", None, ["exact", "tanh"], "of the optimised program; default: the model's"
)
OUT = flags.DEFINE_string(
    "out",
    "runs/sweep",
    "folder of a sweep's table, plot and rows, replaced if there",
    allow_override=True,
)


def main():
    path, normalization = cli.required(WEIGHTS), NORMALIZATION()
    from imagepiece_jax.common.files import check_writable, replace_file
    from imagepiece_jax.models.pretrained import own_files

    _check_flags()
    from imagepiece_jax.benchmark import device
    from imagepiece_jax.common import parallel
    from imagepiece_jax.data import loader, sources
    from imagepiece_jax.evaluate import accuracy, sweep
    from imagepiece_jax.inference import optimized_accuracy
    from imagepiece_jax.models import registry, summary
    from imagepiece_jax.training import from_config, initial_weights

    settings = [setting for text in SWEEP.value for setting in sweep.parse(text)]
    config = from_config.of_weights(
        path,
        *cli.config_or_overrides(),
        base=config_files.load(config_files.BASE),
        dtype=device.fast_dtype(),
        normalization=normalization,
    )
    config.data.name = DATA.value or config.data.name
    config.data.resize = RESIZE.value or config.data.resize
    if JSON.value:
        read = (*own_files(path), *sources.own_files(config.data.name))
        check_writable("--json", JSON.value, read)
    model, transform = from_config.model(config), from_config.eval_transform(config)
    source = from_config.source(config, "val")
    _check_classes(path, source, config.data.name)
    place = loader.Placement(local_devices=len(parallel.local_devices()))
    batches = functools.partial(
        loader.eval_batches,
        source,
        transform,
        batch_size=from_config.eval_batch_size(config, place),
        placement=place,
        workers=config.data.workers,
        threads=config.data.threads,
    )
    load = functools.partial(initial_weights.load, path, which=CHECKPOINT.value)
    if settings:
        sweep.run(config, settings, load, batches, len(source), OUT.value)
        return
    variables = load(summary.shapes(model, config.image_size))
    gmacs = registry.model_macs(model, config.image_size) / 1e9
    if OPTIMIZED.value:
        result = optimized_accuracy.compare(
            config, model, variables, batches, len(source), GELU.value
        )
    else:
        step = accuracy.compiled(model, config.seed)
        result = accuracy.evaluate(step, parallel.replicate(variables), batches())
        print(
            "acc1 {acc1:.2f} %  acc5 {acc5:.2f} %  loss {loss:.4f}  images {images}  "
            "gmacs {gmacs:.3f}  throughput {throughput:.1f} img/s".format(
                gmacs=gmacs, **result
            )
        )
    result |= {"gmacs": gmacs, "unreadable": source.unreadable.count}
    if result["unreadable"]:
        print(f"unreadable images left out: {result['unreadable']}")
    if JSON.value:
        replace_file(JSON.value, json.dumps(result, indent=2) + "\n")


def _check_classes(path, source, data):
    """InputError where a run knows other classes; a line where nobody can tell."""
    from imagepiece_jax.training import run_dir

    run_dir.check_classes(path, source.class_names, data, run_dir.SAME_CLASSES)
    untold = run_dir.unnamed_classes(path, source.class_names, data)
    if untold is not None:
        print(untold)


def _check_flags():
    if SWEEP.value and OPTIMIZED.value:
        raise InputError("--sweep and --optimized are both given; allowed is one")
    if GELU.value and not OPTIMIZED.value:
        raise InputError(
            "--gelu is of the optimised program: add --optimized, or set "
            "--config.model.gelu for the model itself"
        )


if __name__ == "__main__":
    cli.run(main)
