"""Accuracy of all methods on one checkpoint at equal costs: which reduction to take.

python -m imagepiece_jax compare --weights FILE --data PATH --macs 0.5 --smaller_images
python -m imagepiece_jax compare --weights FILE_OR_WORKDIR --data csv:FILE
python -m imagepiece_jax compare --weights WORKDIR --sweep tome:r=8,13 --sweep evit=0.5

Each method takes the setting whose cost is nearest to --shares of the dense model's, by
MACs or (--metric ms) as timed here; differences are paired, and p is corrected by
Holm's rule. The last line says what to take. OUT gets compare.json with all figures,
its tables as compare.md, its plot as compare.png, and points.jsonl, by which a command
that was stopped resumes. --sweep compares the reductions that it names with the dense
model instead, whatever they cost, --config.reduction=tome does so with one, and
--macs 0.5 with the recommended one, in minutes. --smaller_images adds the same weights
on smaller images of about that cost. A run determines its model, a file its sizes: see
`evaluate`.
"""

import functools

from imagepiece_jax import cli
from imagepiece_jax.common import extras
from imagepiece_jax.common.fields import literal, share
from imagepiece_jax.common.files import check_folder
from imagepiece_jax.errors import InputError

MODEL = cli.trained_model(also_read=cli.OF_IMAGES)
IMAGES, DATA = cli.evaluated_images()
VALID_LABELS = cli.valid_labels()
SHARES = cli.listed(
    "shares", ["0.9", "0.75", "0.6", "0.5", "0.4"], "of the dense model's cost"
)
METHODS = cli.listed("methods", [], "these, tome and random; default: all")
METRIC = cli.choice("metric", "gmacs", ["gmacs", "ms"], "the cost")
SPEED_BATCH = cli.integer("speed_batch_size", 64, "images at once, if cost is time", 1)
SWEEP = cli.sweep("these reductions instead of methods at equal cost")
SMALLER_IMAGES = cli.switch(
    "smaller_images",
    False,
    "the dense model on smaller images of the same costs, too",
)
TIMING = cli.timing()
OUT = cli.text("out", None, "default: runs/compare")
AGAIN = cli.switch("again", False, "measure again what was measured before")


def main():
    typed = MODEL()
    rules = TIMING()
    macs = cli.typed_macs()
    others = [SHARES, METHODS, METRIC]
    given = ""
    if SWEEP.value:
        given = "--sweep"
    elif macs:
        given = "--macs"
        if METHODS.present:  # at this share
            others = [SHARES]
    elif typed_reduction := cli.typed_reduction():
        given = typed_reduction[0]
    for flag in others:
        if given and flag.present:
            raise InputError(
                f"is given with --{flag.name}",
                field=given,
                allowed="one of the two",
            )
    try:
        read = share().metadata["convert"]
        shares = [read(literal(text)) for text in SHARES.value or [""]]
    except InputError as error:
        raise error.inside("--shares") from error
    if macs:
        shares = [macs]
    # These import JAX, which --help and a mistyped flag need not wait for.
    from imagepiece_jax.benchmark import device
    from imagepiece_jax.benchmark.workloads import Clock
    from imagepiece_jax.common import parallel, xla_options
    from imagepiece_jax.config.images import eval_batches, labeled_images
    from imagepiece_jax.config.run import RunConfig
    from imagepiece_jax.data import valid_labels
    from imagepiece_jax.evaluate import compare, compare_tables
    from imagepiece_jax.evaluate.cache import MeasuredWeights, ResultCache, Split
    from imagepiece_jax.input import registry
    from imagepiece_jax.pretrained.with_config import load_with_config
    from imagepiece_jax.reduction.sweep_text import parse_sweeps

    out = OUT.value or "runs/compare"
    check_folder("--out", out)
    extras.check("the plot of a comparison", "matplotlib")
    compare.chosen(METHODS.value)
    reductions = parse_sweeps(SWEEP.value, macs)
    if DATA.value:
        registry.check_found(DATA.value)
    config, vit = load_with_config(**typed)
    if given not in ("", "--sweep"):
        # The reduction is one to compare, not that of the training.
        if not METHODS.present:
            reductions = [vit.reduction.as_asked]
        vit = vit.with_reduction(vit.source.reduction)
    reductions = compare.with_recommended(vit, reductions)
    compare.check_fit(vit, reductions)
    limit = IMAGES(config)
    run = RunConfig.from_config(config)
    try:
        source = labeled_images(run, vit, limit)
    except InputError as error:
        raise cli.with_data_flag(error) from error
    valid = valid_labels.read(VALID_LABELS.value, source)
    if note := valid_labels.note(valid, source):
        print(f"note: {note}", flush=True)
    images = Split(
        {
            "data": registry.short_name(run.data.name),
            "digest": source.digest,
            "images": len(source),
            "limit": limit,
            **source.part,
            **run.preprocessing().as_json,
        },
        functools.partial(eval_batches, run, source, placement=parallel.placement()),
        valid=valid,
    )
    cache = ResultCache(out, AGAIN.value, device.versions())
    # A config's dtype is for training, on another device.
    dtype = None
    if not cli.is_typed("model.dtype"):
        dtype = xla_options.fast_dtype()
    clock = Clock(SPEED_BATCH.value, rules)
    checkpoint = MeasuredWeights(vit.analyzed(dtype), images, cache, clock)
    try:
        if reductions:
            report = compare.sweep(checkpoint, reductions, SMALLER_IMAGES.value)
        else:
            report = compare.compare(
                checkpoint, shares, METHODS.value, METRIC.value, SMALLER_IMAGES.value
            )
    finally:
        cache.close()
    print(compare_tables.write(out, report), end="", flush=True)


if __name__ == "__main__":
    cli.run(main)
