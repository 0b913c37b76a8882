"""Top-1, top-5 and loss of trained weights over a whole data set."""

from collections.abc import Mapping
from typing import Any, Literal

from imagepiece_jax.commands._arguments import Data, Weights
from imagepiece_jax.common.files import check_writable, write_json
from imagepiece_jax.common.tables import counted_noun
from imagepiece_jax.errors import InputError


def main(
    weights: Weights,
    data: Data,
    *,
    optimized: bool = False,
    gelu: Literal["exact", "tanh"] | None = None,
    self_test: bool = False,
    json: str | None = None,
) -> int | None:
    """Print top-1, top-5 and loss over a whole data set, with any --reduction.

    WEIGHTS may be an exported file, run in its runtime. With --optimized, the
    program of `imagepiece_jax.optimize` is compared with the float32 model, image by
    image. The difference is the program's cost in accuracy.

    Example: imagepiece evaluate weights digits --limit 50

    Args:
        optimized: Compare the optimized program with the float32 model.
        gelu: The GELU variant in the optimized program.
        self_test: Instead, check an exported file by the outputs that its JSON has for
            a photograph. Status 1 if they differ.
        json: A file to write the results to.
    """
    from imagepiece_jax.evaluation.accuracy import format_metrics
    from imagepiece_jax.evaluation.evaluate import evaluate
    from imagepiece_jax.evaluation.labeled_images import find_data_name
    from imagepiece_jax.exporters.self_test import find_difference
    from imagepiece_jax.models.pretrained import Pretrained
    from imagepiece_jax.weights.folder_files import list_input_files

    program = weights.open_exported()
    if self_test:
        if program is None:
            raise InputError(f"{weights.weights} is no exported file for self_test")
        difference, tolerance = find_difference(program)
        print(f"self-test: difference {difference:.2g}, tolerance {tolerance:.2g}")
        return int(not difference <= tolerance)  # NaN fails, too
    model = program or weights.load_model()
    if json is not None:
        inputs = (weights.weights, find_data_name(model, data.data))
        check_writable("json", json, (".json",), list_input_files(*inputs))
    notes = [model.config.preprocessing.description]
    if isinstance(model, Pretrained):
        notes += model.origin.describe_differences(model)
    if model.origin.averaged:
        notes.insert(0, "averaged weights")
    metrics = evaluate(model, optimized=optimized, gelu=gelu, **vars(data))
    if optimized:
        print(*notes, sep="  ")
        print_comparison(metrics)
    else:
        print(format_metrics(metrics, *notes, f"gmacs {metrics['gmacs']:.3f}"))
    if num_unreadable := metrics["unreadable"]:
        print(f"unreadable images left out: {num_unreadable}")
    if json is not None:
        write_json(json, metrics | {"weights": weights.weights})
    return None


def print_comparison(metrics: Mapping[str, Any]) -> None:
    """Print the metrics of `evaluate` with `optimized`: two rows, and their change."""
    from imagepiece_jax.common import statistics
    from imagepiece_jax.evaluation.accuracy import format_metrics

    for name in ("reference", "optimized"):
        row = metrics[name]
        variant = f"{name}, {row['dtype']}, {row['gelu']} GELU, sizes as {row['sizes']}"
        print(f"{variant}: {format_metrics(row)}", flush=True)
    # The last row, the optimized program's, has the difference.
    ends = ("difference", "difference_low", "difference_high")
    change = statistics.Estimate(*[row[name] for name in ends])
    change_text = statistics.format_difference(change, 2)
    interval_text = f"points, 95 %, paired, {counted_noun(row['images'], 'image')}"
    print(f"the program's cost: acc1 {change_text} ({interval_text})")
