"""Accuracy of all methods on one checkpoint at equal costs: which reduction to take.

python -m imagepiece_jax compare --weights FILE --data PATH --reduction 0.5 \\
    --smaller_images
python -m imagepiece_jax compare --weights FILE_OR_WORKDIR --data csv:FILE
python -m imagepiece_jax compare --weights WORKDIR --sweep tome:r=8,13 --sweep evit=0.5

Each method takes the setting whose cost is nearest to --shares of the dense model's, by
MACs or (--metric ms) as timed here; differences are paired, and p is corrected by
Holm's rule. The last line says what to take. OUT gets compare.json with all figures,
its tables as compare.md, its plot as compare.png, and points.jsonl, by which a command
that was stopped resumes. --sweep compares the reductions that it names with the dense
model instead, whatever they cost, --reduction tome does so with one, and 0.5
with the recommended one, in minutes. --smaller_images adds the same weights on smaller
images of about that cost. A run determines its model and its images: see `evaluate`.
"""

from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.commands import _images, _weights
from imagepiece_jax.common import extras
from imagepiece_jax.common.fields import as_share, literal
from imagepiece_jax.common.files import check_folder
from imagepiece_jax.config import command_line
from imagepiece_jax.errors import InputError, flags_of, inside, renamed

WEIGHTS = _weights.weights()
CHECK_DATA, IMAGES = _images.labeled_images()
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
    cli.path_of_weights()
    rules = TIMING()
    shares = read_shares()
    # These import JAX, which --help and a mistyped flag need not wait for.
    from imagepiece_jax.benchmark import device
    from imagepiece_jax.benchmark.workloads import Clock
    from imagepiece_jax.common.xla_options import fast_dtype
    from imagepiece_jax.evaluate import compare, compare_tables
    from imagepiece_jax.evaluate.cache import MeasuredWeights, ResultCache, Split
    from imagepiece_jax.reduction.reduction import Reduction

    out = OUT.value or "runs/compare"
    check_folder("--out", out)
    extras.check("the plot of a comparison", "matplotlib")
    names = {"folder": "--out", **flags_of("shares", "methods")}
    with renamed(names):
        compare_tables.check_folder(out)
        compare.with_references(METHODS.value)
        reductions = _weights.swept()
        CHECK_DATA()
        vit = WEIGHTS()
        if command_line.reduction():
            # The reduction is one to compare, not that of the training.
            if not METHODS.present:
                typed = command_line.reduction()
                reductions = [Reduction.read(typed, vit.reduction.prop_attn)]
            vit = vit.with_reduction(vit.source.reduction)
        compare.check_fit(vit, reductions)
        images = IMAGES(vit)
        split = Split(images.setting, images.batches)
        # A run's own dtype is for training, on another device.
        vit = vit.analyzed(flags.FLAGS["dtype"].value or fast_dtype())
        clock = Clock(SPEED_BATCH.value, rules)
        with ResultCache(out, AGAIN.value, device.versions()) as cache:
            checkpoint = MeasuredWeights(vit, split, cache, clock)
            if reductions:
                report = compare.sweep(checkpoint, reductions, SMALLER_IMAGES.value)
            else:
                given = shares, METHODS.value, METRIC.value, SMALLER_IMAGES.value
                report = compare.compare(checkpoint, *given)
    print(compare_tables.write(out, report), end="", flush=True)


def read_shares():
    """The costs to compare at: that of --reduction, or --shares.

    Raises InputError for flags that have no effect beside the typed ones.
    """
    cost = cli.typed_cost()
    others = [SHARES, METHODS, METRIC]
    given = "--sweep" if SWEEP.value else ""
    if command_line.reduction():
        given = "--reduction"
        if cost and METHODS.present:  # at this share
            others = [SHARES]
    for flag in others:
        if given and flag.present:
            problem = f"is given with --{flag.name}"
            raise InputError(given, None, "one of the two", problem=problem)
    if cost:
        return [cost]
    with inside("--shares"):
        return [as_share(literal(text)) for text in SHARES.value or [""]]


if __name__ == "__main__":
    cli.run(main)
