"""Do the fused reductions decide as the plain ones do, on this device?

python -m imagepiece_jax.check_kernels
python -m imagepiece_jax.check_kernels --config configs/deit_ti_imagepiece.py \\
    --weights FILE --data folder:PATH

Random queries, keys and tokens; with --weights also those of a model, at
every reduction of its plan, on the images of a set. One table: how many images were
decided differently, and the largest gap of what was compared there, in units of what
rounding explains (measure.near_ties). The exit status is 1 if one of them is above 1,
so that it is no near tie, or if they are 1 % of the images or more.
"""

import jax
from absl import flags

from imagepiece_jax import cli, options
from imagepiece_jax.errors import InputError, RunError

CONFIG = cli.define_config("the config of a model, for real inputs")
WEIGHTS = options.weights()
NORMALIZATION = options.normalization()
DATA = options.data("config.data")
RANDOM = flags.DEFINE_integer(
    "random",
    10_000,
    "random images for each rule and dtype, in whole batches of 256",
    lower_bound=1,
)
DTYPES = ("float32", "bfloat16")
BATCH = 256
# Tokens, heads and head width of the random inputs: the first step of DeiT-S, and odd
# numbers of DeiT-Ti's.
SHAPES = ((196, 6, 64), (121, 3, 64))


@cli.completed_by_weights
def main():
    real, normalization = WEIGHTS.value is not None, NORMALIZATION()
    if not real and (CONFIG.value is not None or cli.overrides() or normalization):
        raise InputError(
            "--weights is missing: allowed without it are random inputs alone, without "
            "--config, --mean and --std"
        )
    from imagepiece_jax.reduction.kernels import fused

    device = jax.local_devices()[0]
    if lacking := fused.obstacle(device.platform):
        raise RunError(f"there is no fused reduction to check here: it needs {lacking}")
    if real:
        config, weights = options.model_config(CONFIG, WEIGHTS.value, normalization)
    print(f"on {device.device_kind}; gaps over rounding, errors in last places")
    print("| inputs | dtype | rule | images | differ | largest gap | error | |")
    print("|---|---|---|---|---|---|---|---|")
    agree = [*_check_random(RANDOM.value)]
    if real:
        agree += _check_real(config, weights, DATA.value)
    if not all(agree):
        raise RunError("the fused reductions differ from the plain ones: see the table")


def rules(n):
    """The reductions that are tried on `n` image tokens."""
    from imagepiece_jax.models.kernel_agreement import Reduction

    dealt = int(0.3 * n)
    return (
        Reduction("prune", n_out=int(0.7 * n)),
        Reduction("retokenize", n_out=n - dealt // 3, candidates=dealt),
        Reduction("bipartite", n_out=n - min(13, n // 2)),
    )


def _check_random(images):
    """Prints a line a rule and dtype; yields whether it agrees."""
    from imagepiece_jax.models.kernel_agreement import Comparison

    for dtype in DTYPES:
        for number in range(len(rules(SHAPES[0][0]))):
            comparison = Comparison()
            for seed in range(-(-images // BATCH)):
                shape = SHAPES[seed % len(SHAPES)]
                arrays = random_inputs(seed, BATCH, *shape, dtype)
                comparison.add(rules(shape[0])[number], arrays)
            yield _line("random", dtype, rules(1)[number].rule, comparison)


def _check_real(config, weights, data):
    """As `_check_random`, with what the blocks of a model hand to its reductions."""
    from imagepiece_jax.models.kernel_agreement import Comparison

    for dtype in DTYPES:
        comparisons = [Comparison() for _ in rules(1)]
        for arrays in real_inputs(config, weights, data, dtype):
            n = arrays[2].shape[1] - 1
            for reduction, comparison in zip(rules(n), comparisons, strict=True):
                comparison.add(reduction, arrays)
        for reduction, comparison in zip(rules(1), comparisons, strict=True):
            yield _line("real", dtype, reduction.rule, comparison)


def _line(inputs, dtype, rule, comparison):
    gap = max(comparison.gaps, default=0)
    cells = (inputs, dtype, rule, comparison.images, len(comparison.gaps))
    verdict = "agree" if comparison.agrees else "DIFFER"
    cells += (f"{gap:.2f}", f"{comparison.error:.2f}", verdict)
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return comparison.agrees


def random_inputs(seed, batch, n, heads, width, dtype):
    """(query, key, x, size) of a class token and `n` others; sizes are 1 to 4."""
    keys = jax.random.split(jax.random.key(seed), 4)
    shape = (batch, n + 1, heads, width)
    query, key = (jax.random.normal(k, shape, dtype) for k in keys[:2])
    x = jax.random.normal(keys[2], (batch, n + 1, heads * width), dtype)
    size = jax.random.randint(keys[3], (batch, n + 1), 1, 5).astype("float32")
    return query, key, x, size


def real_inputs(config, weights, data, dtype):
    """The same arrays of every reduction of a model and every batch of its images."""
    from imagepiece_jax.data import loader
    from imagepiece_jax.data.normalize import normalize
    from imagepiece_jax.models import summary
    from imagepiece_jax.training import from_config

    config.data.name = data or config.data.name
    config.model.dtype = dtype
    model = from_config.model(config)
    variables = weights.restore(summary.shapes(model, config.image_size))
    transform = from_config.eval_transform(config)
    source = from_config.source(config, "val")

    @jax.jit
    def run(images):
        return _taken(model, variables, normalize(images, model.mean, model.std))

    for batch in loader.eval_batches(source, transform, batch_size=64):
        kept = batch["mask"][0] > 0
        for arrays in run(batch["image"][0]):
            yield tuple(array[kept] for array in arrays)


def _taken(model, variables, images):
    """[(query, key, x, size)] of the blocks that reduce behind their attention."""

    def wanted(module, method):
        projects = method == "__call__" and module.name in ("q", "k")
        return projects or method == "attend"

    outputs, seen = model.apply(
        variables, images, capture_intermediates=wanted, mutable=["intermediates"]
    )
    reducing = [i for i, layer in enumerate(model.plan) if layer.counts]
    found = []
    for block, taps in zip(reducing, outputs.taps, strict=True):
        if model.plan[block].step.site != "mid":
            continue
        inside = seen["intermediates"][f"blocks_{block}"]
        (x, _), *_ = inside["attend"]
        heads = (*x.shape[:2], model.num_heads, -1)
        query, key = (inside["attn"][name]["__call__"][0] for name in "qk")
        size = jax.numpy.pad(taps.size, ((0, 0), (1, 0)), constant_values=1.0)
        found.append((query.reshape(heads), key.reshape(heads), x, size))
    return found


if __name__ == "__main__":
    cli.run(main)
