"""Top-1, top-5 and loss of trained weights over a whole data set."""

from typing import Literal

from imagepiece_jax.commands._arguments import Data, Weights
from imagepiece_jax.common.files import check_writable, write_json
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
    program of `imagepiece_jax.optimize` runs in the model's place.

    Example: imagepiece evaluate weights digits --limit 50

    Args:
        optimized: Evaluate the optimized program.
        gelu: The GELU variant in the optimized program.
        self_test: Instead, check an exported file by the outputs that its JSON has for
            a photograph. Status 1 if they differ.
        json: A file to write the results to.
    """
    from imagepiece_jax.evaluation.accuracy import format_metrics
    from imagepiece_jax.evaluation.evaluate import evaluate
    from imagepiece_jax.evaluation.labeled_images import find_data_name
    from imagepiece_jax.exporters.self_test import find_difference
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
        data_name = find_data_name(model, data.data)
        input_files = list_input_files(weights.weights, data_name)
        check_writable("json", json, (".json",), input_files)
    notes = [model.config.preprocessing.description]
    if model.origin.averaged:
        notes.insert(0, "averaged weights")
    metrics = evaluate(model, optimized=optimized, gelu=gelu, **vars(data))
    print(format_metrics(metrics, *notes, f"gmacs {metrics['gmacs']:.3f}"))
    if metrics["unreadable"]:
        print(f"unreadable images left out: {metrics['unreadable']}")
    if json is not None:
        write_json(json, metrics | {"weights": weights.weights})
    return None
