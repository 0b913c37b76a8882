"""Comparison of the fused reductions with the plain ones on this device.

python -m tools.check_kernels
python -m tools.check_kernels --config configs/deit_s_imagepiece.py:deit_ti \\
    --weights FILE --data folder:PATH

Inputs are random queries, keys and tokens; with --weights also those of a model, at
every reduction of its plan, on the images of a data set. The table shows how many
images were decided differently, and the largest gap there, in units of rounding
(tools/kernel_agreement.py). The exit status is 1 if a gap is above 1, which no near tie
has, or if 1 % or more of the images differ. On a CPU it takes minutes; --random sets
the number of images.
"""

from imagepiece_jax import cli
from imagepiece_jax.errors import InputError, RunError

cli.define_config("a config file, of a model for real inputs")
WEIGHTS = cli.weights()
NORMALIZATION = cli.normalization()
DATA = cli.data("config.data")
RANDOM = cli.integer(
    "random",
    10_000,
    "random images for each rule and dtype, in whole batches of 256",
    least=1,
)


def main():
    # These import JAX, which --help and a mistyped flag need not wait for.
    import jax

    from imagepiece_jax.pretrained.with_config import load_with_config
    from imagepiece_jax.reduction.kernels import fused
    from tools import kernel_agreement as agreement

    real = WEIGHTS.value is not None
    normalization = NORMALIZATION()
    config, overrides = cli.config_or_base()
    if not real and (overrides != () or normalization):
        raise InputError(
            "is missing",
            field="--weights",
            allowed="without it, random inputs and no --config, --mean and --std",
        )
    if real:
        config, vit = load_with_config(WEIGHTS.value, config, overrides, normalization)
    device = jax.local_devices()[0]
    capability = getattr(device, "compute_capability", None)
    if reason := fused.unsupported_reason(device.platform, capability):
        raise RunError(f"there is no fused reduction to check here: it needs {reason}")
    print(f"on {device.device_kind}; gaps over rounding, errors in last places")
    print("| inputs | dtype | rule | images | differ | largest gap | error | |")
    print("|---|---|---|---|---|---|---|---|")
    agree = True
    for dtype in agreement.DTYPES:
        inputs = agreement.random_batches(RANDOM.value, dtype)
        agree &= agrees("random", dtype, inputs)
    if real:
        for dtype in agreement.DTYPES:
            inputs = real_inputs(config, vit, DATA.value, dtype)
            agree &= agrees("real", dtype, inputs)
    if not agree:
        raise RunError("the fused reductions differ from the plain ones: see the table")


def agrees(kind, dtype, inputs):
    """Print a line per rule; return whether all rules agree."""
    from tools import kernel_agreement as agreement

    comparisons = agreement.compare(inputs)
    for rule, comparison in comparisons.items():
        gap = max(comparison.gaps, default=0)
        cells = [
            *(kind, dtype, rule, comparison.images, len(comparison.gaps)),
            *(f"{gap:.2f}", f"{comparison.error:.2f}"),
            "agree" if comparison.agrees else "DIFFER",
        ]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return all(comparison.agrees for comparison in comparisons.values())


def real_inputs(config, vit, data, dtype):
    """Yield (query, key, x, size) of every reduction of a model and batch of images."""
    import jax

    from imagepiece_jax.config.images import open_images
    from imagepiece_jax.config.run import RunConfig
    from imagepiece_jax.data import loader
    from imagepiece_jax.data.normalize import normalize
    from tools import kernel_agreement as agreement

    config.data.name = data or config.data.name
    config.model.dtype = dtype
    run = RunConfig.from_config(config)
    model = run.create_model()
    variables = vit.variables
    source = open_images(run, "val")
    transform = run.preprocessing()

    @jax.jit
    def inputs(variables, images):
        images = normalize(images, model.mean, model.std)
        return agreement.model_inputs(model, variables, images)

    for batch in loader.EvalBatches(source, transform, batch_size=64).batches():
        real = batch["mask"][0] > 0
        found = jax.device_get(inputs(variables, batch["image"][0]))
        for arrays in found:  # NumPy's: to choose images of them compiles nothing
            yield tuple(array[real] for array in arrays)


if __name__ == "__main__":
    cli.run(main)
