"""Accuracy of reductions and smaller images beside the dense model, image by image."""

from imagepiece_jax.commands._arguments import Data, Weights, several
from imagepiece_jax.common import extras
from imagepiece_jax.errors import InputError


def main(
    weights: Weights,
    data: Data,
    *,
    reductions: tuple[str, ...] | None = None,
    image_sizes: tuple[int, ...] | None = None,
    out: str = "runs/compare",
):
    """Compare reductions with the dense model on the same images, and smaller images.

    Without a row they are 0.6 and 0.5. OUT gets a table, a plot and points.jsonl, by
    which a command that was stopped goes on.

    Example: python -m imagepiece_jax compare weights digits --reductions 0.6 tome:r=1

    Args:
        reductions: Shares of the dense model's MACs, or methods.
        image_sizes: Pixels a side of smaller images, which the dense model sees.
        out: The folder to write, or to complete.
    """
    from imagepiece_jax.benchmark import device
    from imagepiece_jax.deploy.compare import compare
    from imagepiece_jax.deploy.compare.cache import MeasuredWeights, ResultCache, Split

    if weights.reduction is not None:
        text = f"reduction is {weights.reduction}; what is compared is in reductions"
        raise InputError(text)
    texts = several("reductions", reductions)
    sizes = several("image_sizes", image_sizes)
    compare.check_folder(out)
    extras.check("the plot of a comparison", "matplotlib")
    # A run's own dtype is for training, on another device.
    vit = weights.load().analyzed(weights.dtype)
    images = data.open(vit)
    measured = MeasuredWeights(vit, Split(images.setting, images.batches))
    rows = compare.rows_of(measured, texts, sizes)  # before files are made
    with ResultCache(out, versions=device.versions()) as cache:
        report = compare.compare(measured, rows, cache)
        print(compare.write(out, report), end="", flush=True)
