"""What tanh GELU changes, beside what bfloat16 changes anyway.

python -m experiments.gelu --weights FILE --data csv:FILE [--limit 200] [--types ..]

Programs of `optimize` answer the same photographs, dense and at half the MACs, each in
float32 and bfloat16 with either GELU. All are compared, image by image, with the same
model in float32 with the exact GELU: by the KL divergence and the first class, or by
the cosine of pooled vectors where there are no classes. CPUs compute no attention in
float16: with --types float16 it is computed in float32, of rounded operands. Results
are lines of docs/tables/gelu/points.jsonl, of which README.md there has the tables.
"""

import contextlib
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple
from unittest import mock

import jax.numpy as jnp
import numpy as np

import imagepiece_jax
from experiments import results, study
from imagepiece_jax import cli
from imagepiece_jax.common import xla_options
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.cache import (
    FILE,
    ResultCache,
    decode_bits,
    encode_bits,
    read_lines,
)
from imagepiece_jax.evaluate.statistics import Estimate
from imagepiece_jax.inference.optimize import optimize
from imagepiece_jax.models import attention

FOLDER = results.ROOT / "docs" / "tables" / "gelu"
PAGE = FOLDER / "README.md"
WEIGHTS = cli.weights()
DATA = cli.data()
LIMIT = cli.limit()
TYPES = cli.listed("types", ["float32", "bfloat16"], "of layers")
SIDE = 224  # of images

EXACT = ("float32", "exact")
FORMS = ("exact", "tanh")
DENSE = "dense"
REDUCTIONS = {DENSE: None, "half of the MACs": 0.5}
DIGITS = 4  # of a change


def measure(
    name: str,
    vit,
    images: Sequence[np.ndarray],
    cache: ResultCache,
    types: Sequence[str],
):
    """Compare the programs of a model, and keep what they change.

    name: of the model, for the table
    images: batches uint8 of the model's size, all of study.BATCH images but the last
    types: of layers
    """

    @functools.cache
    def answers(reduction, dtype, gelu):
        """Logits, or pooled vectors of a model without classes. [images, ..]."""
        reduced = vit.with_reduction(REDUCTIONS[reduction])
        options = {"dtype": dtype, "gelu": gelu, "pixels": True}
        with attention_in_float32(dtype):
            program = optimize(reduced, batch_size=study.BATCH, **options)
        return np.concatenate([np.asarray(program(batch)) for batch in images])

    def changes(reduction, dtype, gelu):
        """What a program changes, as JSON values."""
        found = answers(reduction, dtype, gelu)
        exact = answers(reduction, *EXACT)
        change = distance
        result = {}
        if vit.model.num_classes:
            change = study.divergence
            result["same"] = encode_bits(exact.argmax(axis=1) == found.argmax(axis=1))
        if reduction != DENSE:
            result["to_dense"] = rounded(change(answers(DENSE, *EXACT), found))
        return {"change": rounded(change(exact, found)), **result}

    count = sum(map(len, images))
    for reduction, dtype, gelu in itertools.product(REDUCTIONS, types, FORMS):
        if (reduction, dtype, gelu) == (DENSE, *EXACT):
            continue
        setting = {"model": name, "weights": vit.digest, "images": count}
        setting |= {"reduction": reduction, "dtype": dtype, "gelu": gelu}
        compare = functools.partial(changes, reduction, dtype, gelu)
        cache.result(setting, compare, f"{reduction}, {dtype}, {gelu} GELU")


@contextlib.contextmanager
def attention_in_float32(dtype: str):
    """Context in which attention of float16 is computed in float32; of others: none."""
    if dtype != "float16":
        yield
        return
    attend = attention.attend

    def wide(query, key, value, key_bias=None, **options):
        heads = [part.astype(jnp.float32) for part in (query, key, value)]
        return attend(*heads, key_bias, **options).astype(query.dtype)

    with (
        mock.patch.object(attention, "attend", wide),
        mock.patch.object(xla_options, "check_dtype", lambda *_: None),
    ):
        yield


def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 - cosine of vectors. [images, D] twice -> [images]."""
    one = np.float64(one)
    other = np.float64(other)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return 1 - np.sum(one * other, axis=1) / lengths


def rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]


# The tables


class Point(NamedTuple):
    """What a program changes, image by image."""

    change: np.ndarray  # from the same model in float32 with the exact GELU
    to_dense: np.ndarray  # from the dense model in float32 with the exact GELU
    same: np.ndarray | None  # bool, of first classes; None: there are none


def read_points() -> dict[str, dict[tuple[str, str, str], Point]]:
    """All points, by the model and by (reduction, type, form of GELU)."""
    found = {}
    for entry in read_lines(FOLDER / FILE, "setting", "result"):
        setting = entry["setting"]
        result = entry["result"]
        change = np.array(result["change"])
        same = None
        if "same" in result:
            same = decode_bits(result["same"], setting["images"])
        key = tuple(setting[name] for name in ("reduction", "dtype", "gelu"))
        to_dense = np.array(result.get("to_dense", change))
        points = found.setdefault(setting["model"], {})
        points[key] = Point(change, to_dense, same)
    return found


def tables() -> dict[str, str]:
    """The tables of the page, by the names that stand in their marks."""
    rows = {"gelu-classes": [], "gelu-features": []}
    for model, points in read_points().items():
        for key, point in points.items():
            row = [model, f"{len(point.change):,}", *key]
            table = rows["gelu-features"]
            change = [small(mean(point.change)), f"{point.change.max():.5f}"]
            if point.same is not None:
                table = rows["gelu-classes"]
                changed = statistics.accuracy(~point.same)
                change[1] = statistics.format_estimate(changed)
            if key[1:] == EXACT:  # that is what others are compared with
                change = ["", ""]
            row += change
            row.append(small(mean(point.to_dense)))
            row.append(than_exact(points, key))
            table.append(row)
    head = ["model", "images", "reduction", "type", "GELU"]
    of_classes = ["KL", "first classes that change, %", "KL to dense"]
    of_features = ["1 - cosine", "the largest", "1 - cosine to dense"]
    more = "more than exact, to dense"
    return {
        "gelu-classes": markdown_table(
            [*head, *of_classes, more], rows["gelu-classes"]
        ),
        "gelu-features": markdown_table(
            [*head, *of_features, more], rows["gelu-features"]
        ),
    }


def mean(values: np.ndarray) -> Estimate:
    """The mean over images, with its interval."""
    return statistics.mean_difference(values, np.zeros(len(values)))


def than_exact(points, key) -> str:
    """What tanh GELU adds to the distance from the dense model, in the same type."""
    reduction, dtype, gelu = key
    exact = points.get((reduction, dtype, "exact"))
    if gelu == "exact":
        return ""
    base = np.zeros(len(points[key].to_dense))
    if exact is not None:
        base = exact.to_dense
    return small(statistics.mean_difference(points[key].to_dense, base), signs=True)


def small(estimate: Estimate, signs: bool = False) -> str:
    return statistics.format_estimate(estimate, 5, signs)


def main():
    vit = imagepiece_jax.load(cli.required(WEIGHTS), image_size=SIDE)
    images = study.photographs(cli.required(DATA), LIMIT.value, SIDE)
    cache = ResultCache(FOLDER, versions=study.versions())
    with contextlib.closing(cache):
        measure(vit.name or vit.source.name, vit, images, cache, TYPES.value)
    replace_file(PAGE, results.filled(PAGE.read_text("utf-8"), tables()))


if __name__ == "__main__":
    cli.run(main)
