"""What sizes in a direction of the keys change, beside sizes by a bias.

python -m experiments.size_direction --weights FILE --data csv:FILE [--limit 200]

Programs of `optimize` at half the MACs answer the same photographs with sizes either
way, in float32 and bfloat16. All are compared with the dense model in float32, image by
image, and the two ways with each other. The dense model without a direction in all of
its blocks is compared with itself. Results are lines of docs/tables/sizes/points.jsonl,
of which README.md there has the tables.
"""

import contextlib
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

import imagepiece_jax
from experiments import results, study
from experiments.gelu import SIDE, distance, rounded
from imagepiece_jax import cli
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.data.normalize import as_normalized
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.cache import (
    FILE,
    ResultCache,
    decode_bits,
    encode_bits,
    read_lines,
)
from imagepiece_jax.evaluate.statistics import Estimate
from imagepiece_jax.inference import size_direction
from imagepiece_jax.inference.optimize import optimize

FOLDER = results.ROOT / "docs" / "tables" / "sizes"
PAGE = FOLDER / "README.md"
WEIGHTS = cli.weights()
DATA = cli.data()
LIMIT = cli.limit()

STAGES = {"name": "diffrate", "macs": 0.5, "counts": "stages-3-6-9"}
REDUCTIONS = {
    "most attended in 3 blocks": STAGES,
    "ToMe": {"name": "tome", "macs": 0.5},
}
TYPES = ("float32", "bfloat16")
SIZES = ("bias", "direction")
DENSE = "dense"


def measure(name: str, vit, images: Sequence[np.ndarray], cache: ResultCache):
    """Compare the programs of a model, and keep what they change.

    name: of the model, for the table
    images: batches uint8 of the model's size, all of study.BATCH images but the last
    """
    difference = study.divergence if vit.model.num_classes else distance

    @functools.cache
    def dense():
        return outputs(vit.model_with(None), vit.variables)

    def outputs(model, variables):
        """Logits, or pooled vectors of a model without classes. [images, ..]."""

        @jax.jit
        def program(variables, pixels):
            normalized = as_normalized(pixels, model.mean, model.std)
            return model.apply(variables, normalized).logits

        found = [np.asarray(program(variables, batch)) for batch in images]
        return np.concatenate(found)

    @functools.cache
    def answers(reduction, dtype, sizes):
        reduced = vit.with_reduction(REDUCTIONS[reduction])
        options = {"dtype": dtype, "sizes": sizes, "gelu": "exact", "pixels": True}
        program = optimize(reduced, batch_size=study.BATCH, **options)
        return np.concatenate([np.asarray(program(batch)) for batch in images])

    def result(found, twin=None):
        """What a program changes, as JSON values. twin: answers of the other way."""
        values = {"to_dense": rounded(difference(dense(), found))}
        if vit.model.num_classes:
            values["same"] = encode_bits(dense().argmax(axis=1) == found.argmax(axis=1))
        if twin is not None:
            values["to_bias"] = rounded(difference(twin, found))
        return values

    def everywhere():
        found = size_direction.directions(vit)
        model = vit.model_with(None)
        every = range(model.depth)
        folded = size_direction.folded(model, vit.variables, found, every)
        return result(outputs(*folded))

    def reduced(*key):
        twin = None
        reduction, dtype, sizes = key
        if sizes == "direction":
            twin = answers(reduction, dtype, "bias")
        return result(answers(*key), twin)

    count = sum(map(len, images))
    setting = {"model": name, "weights": vit.digest, "images": count}
    cache.result(setting | {"reduction": DENSE}, everywhere, DENSE)
    for key in itertools.product(REDUCTIONS, TYPES, SIZES):
        names = dict(zip(("reduction", "dtype", "sizes"), key, strict=True))
        measured = functools.partial(reduced, *key)
        cache.result(setting | names, measured, ", ".join(key))


# The tables


class Point(NamedTuple):
    """What a program changes, image by image."""

    to_dense: np.ndarray  # from the dense model in float32
    same: np.ndarray | None  # bool, of first classes; None: there are none
    to_bias: np.ndarray | None  # from the same program with a bias


def read_points() -> dict[str, dict[tuple[str, ...], Point]]:
    """All points, by the model and by (reduction, type, sizes), or by ("dense",)."""
    found = {}
    for entry in read_lines(FOLDER / FILE, "setting", "result"):
        setting = entry["setting"]
        result = entry["result"]
        names = ("reduction", "dtype", "sizes")
        key = tuple(setting[name] for name in names if name in setting)
        same = None
        if "same" in result:
            same = decode_bits(result["same"], setting["images"])
        to_bias = None
        if "to_bias" in result:
            to_bias = np.array(result["to_bias"])
        points = found.setdefault(setting["model"], {})
        points[key] = Point(np.array(result["to_dense"]), same, to_bias)
    return found


def paired(points, reduction: str, dtype: str, part: slice) -> Estimate:
    """How much farther from the dense model a direction is than a bias.

    part: images, such as every second one
    """
    bias, direction = (points[reduction, dtype, sizes] for sizes in SIZES)
    return statistics.mean_difference(direction.to_dense[part], bias.to_dense[part])


def of_types(points, reduction: str) -> Estimate:
    """The same of bfloat16 and float32, both with a bias, which differ by rounding."""
    exact, half = (points[reduction, dtype, "bias"] for dtype in TYPES)
    return statistics.mean_difference(half.to_dense, exact.to_dense)


EVERY = slice(None)
ODD = slice(1, None, 2)


def tables() -> dict[str, str]:
    """The tables of the page, by the names that stand in their marks."""
    rows = []
    dense_rows = []
    for model, points in read_points().items():
        for key, point in points.items():
            if key == (DENSE,):
                row = [model, f"{len(point.to_dense):,}"]
                row += [f"{point.to_dense.mean():.5f}", f"{point.to_dense.max():.5f}"]
                row.append("" if point.same is None else percent(point.same))
                dense_rows.append(row)
        for reduction, dtype in itertools.product(REDUCTIONS, TYPES):
            if (reduction, dtype, SIZES[0]) not in points:
                continue
            bias, direction = (points[reduction, dtype, sizes] for sizes in SIZES)
            row = [model, reduction, dtype]
            row += [f"{point.to_dense.mean():.5f}" for point in (bias, direction)]
            row.append(f"{direction.to_bias.mean():.5f}")
            for part in (EVERY, ODD):
                row.append(more(paired(points, reduction, dtype, part)))
            if dtype == TYPES[1]:
                row.append(more(of_types(points, reduction)))
            rows.append(row)
    head = ["model", "half of the MACs", "type", "bias", "direction", "between the two"]
    head += ["direction - bias", "of every second image", "bfloat16 - float32, bias"]
    dense_head = [
        "model",
        "images",
        "on average",
        "at worst",
        "first class the same, %",
    ]
    return {
        "sizes": markdown_table(head, rows),
        "sizes-dense": markdown_table(dense_head, dense_rows),
    }


def percent(right: np.ndarray) -> str:
    return statistics.format_estimate(statistics.accuracy(right))


def more(estimate: Estimate) -> str:
    return statistics.format_estimate(estimate, 5, signs=True)


def main():
    vit = imagepiece_jax.load(cli.required(WEIGHTS), image_size=SIDE)
    images = study.photographs(cli.required(DATA), LIMIT.value, SIDE)
    cache = ResultCache(FOLDER, versions=study.versions())
    with contextlib.closing(cache):
        measure(vit.name or vit.source.name, vit, images, cache)
    replace_file(PAGE, results.filled(PAGE.read_text("utf-8"), tables()))


if __name__ == "__main__":
    cli.run(main)
