"""Accuracy of all methods on one checkpoint at equal costs: which reduction to take.

python -m imagepiece_jax compare --weights FILE_OR_WORKDIR --data csv:FILE

Each method stands where its cost is nearest to --shares of the dense model's, by MACs
or (--metric ms) as timed here; differences are paired, and p is corrected by Holm's
rule. OUT gets compare.json with all figures, its tables as compare.md, its plot as
compare.png, and points.jsonl, by which a command that was stopped resumes. A run
determines its model, a file its sizes: see `evaluate`.
"""

import functools

from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.errors import InputError

cli.define_config()
WEIGHTS = cli.weights()
NORMALIZATION = cli.normalization()
CHECKPOINT = cli.checkpoint()
AVERAGED = cli.averaged()
DATA = cli.data("config.data")
RESIZE = cli.resize()
LIMIT = cli.limit()
SHARES = flags.DEFINE_list(
    "shares", ["0.9", "0.75", "0.6", "0.5", "0.4"], "of the dense model's cost"
)
METHODS = flags.DEFINE_list("methods", [], "these, tome and random; default: all")
METRIC = flags.DEFINE_enum("metric", "gmacs", ["gmacs", "ms"], "what is cost")
SPEED_BATCH = flags.DEFINE_integer(
    "speed_batch_size", 64, "images at once where cost is time", 1, allow_override=True
)
TIMING = cli.timing()
OUT = flags.DEFINE_string("out", None, "default: runs/compare", allow_override=True)
AGAIN = flags.DEFINE_bool(
    "again", False, "measure what was measured before, too", allow_override=True
)


def main():
    path, normalization = cli.required(WEIGHTS), NORMALIZATION()
    shares, timing = [share(text) for text in SHARES.value], TIMING()
    typed = cli.config_or_base()
    if not shares:
        raise InputError("--shares is empty; allowed are one or more, such as 0.9,0.5")
    # They import JAX: after the flags.
    from imagepiece_jax.benchmark import compare, compare_tables, device
    from imagepiece_jax.benchmark.cache import Checkpoint, ResultCache, Split
    from imagepiece_jax.common import parallel
    from imagepiece_jax.common.timer import Rules
    from imagepiece_jax.data.sources import short_name
    from imagepiece_jax.training.config import RunConfig
    from imagepiece_jax.training.weights_config import of_weights, open_images

    compare.chosen(METHODS.value)
    config, weights = of_weights(
        path, *typed, normalization, CHECKPOINT.value, AVERAGED.value
    )
    config.data.name = DATA.value or config.data.name
    config.data.resize = RESIZE.value or config.data.resize
    run = RunConfig.read(config)
    source, notes = open_images(run, weights, LIMIT.value)
    for note in notes:
        print(note, flush=True)
    images = Split(
        {
            "data": short_name(config.data.name),
            "digest": source.digest,
            "images": len(source),
            "limit": LIMIT.value,
            **run.eval_transform().facts,
        },
        functools.partial(run.eval_batches, source, placement=parallel.placement()),
    )
    out = OUT.value or "runs/compare"
    cache = ResultCache(out, AGAIN.value, device.versions())
    checkpoint = Checkpoint(
        weights.analyzed(), images, cache, SPEED_BATCH.value, Rules(*timing)
    )
    try:
        report = compare.compare(checkpoint, shares, METHODS.value, METRIC.value)
    finally:
        cache.close()
    print(compare_tables.write(out, report), flush=True)


def share(text):
    """A share of a cost; InputError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise InputError(
            f"--shares is {text!r}; allowed are shares of the dense model's cost, "
            "between 0 and 1, such as 0.5"
        )
    return value


if __name__ == "__main__":
    cli.run(main)
