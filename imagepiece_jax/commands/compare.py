"""Accuracy or fidelity of reductions and smaller images beside the dense model."""

from imagepiece_jax.commands._arguments import Data, Weights, option_values


def main(
    weights: Weights,
    data: Data,
    *,
    reductions: tuple[str, ...] | None = None,
    image_sizes: tuple[int, ...] | None = None,
    out: str = "runs/compare",
) -> None:
    """Compare reductions and smaller images with the dense model on the same images.

    Without labels, or for a model without classes, it compares outputs instead of
    accuracy. Without reductions or sizes, it compares 0.6 and 0.5. OUT gets a table, a
    plot and points.jsonl, from which the same command continues.

    Example: imagepiece compare weights digits --reductions 0.6 tome:r=1

    Args:
        reductions: Shares of the dense model's MACs, or methods.
        image_sizes: Pixels a side of smaller images for the dense model.
        out: The folder to write, or to complete.
    """
    from imagepiece_jax.evaluation import compare

    weights.refuse_reduction()
    report = compare.compare(
        weights.load_model(),
        reductions=option_values("reductions", reductions),
        image_sizes=option_values("image_sizes", image_sizes),
        out=out,
        **vars(data),
    )
    print(report, end="")
    print(f"written to {out}/{compare.TABLE_FILE_NAME} and {compare.PLOT_FILE_NAME}")
