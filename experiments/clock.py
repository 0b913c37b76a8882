"""The table of docs/comparison.md by time: what a setting costs, and what it gives.

Accuracy is that of the points that `parts`, `level` and `carried` measured, times are
those of `tools.onnx_speed` on a CPU and of `tools.compile_only` for a GPU.
"""

import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments import parts, render
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.cache import decode_bits
from imagepiece_jax.reduction import settings

# (runtime, batch size): heading
TIMED = {
    ("JAX", 8): "JAX, CPU",
    ("OpenVINO", 8): "OpenVINO, CPU",
    ("onnxruntime", 8): "onnxruntime, CPU",
    ("JAX", 1): "JAX, CPU, batch 1",
    ("OpenVINO", 1): "OpenVINO, CPU, batch 1",
    ("H200", 256): "H200, estimated",
    ("H200, DeiT-S", 256): "H200, DeiT-S, estimated",
}
SIDE = 224
HERE = ("parts", "level", "carried")


def table(folder: pathlib.Path, leaving: tuple[str, ...] = ()) -> str:
    """Every timed setting, the dense model first.

    folder: docs/tables/parts
    leaving: words; without spreads, and settings and columns that have one of them
    """
    speeds = list(_lines(folder / "clock.jsonl"))
    photographs, imagenette = rights(folder)
    dense = key(settings.DENSE, SIDE)
    rows = []
    for name in dict.fromkeys(speed["model"] for speed in speeds):
        own = [speed for speed in speeds if speed["model"] == name]
        setting = key(own[0]["reduction"], own[0]["image_size"])
        ratios = {(speed["runtime"], speed["batch"]): speed["ratio"] for speed in own}
        odd, whole = photographs.get(setting), imagenette.get(setting)
        points = (
            ""
            if setting == dense or whole is None
            else _points(whole, imagenette[dense])
        )
        rows.append(
            [
                name,
                f"{1 / own[0]['macs']:.2f}",
                "" if odd is None else f"{100 * odd.mean():.1f}",
                points,
                *(_ratio(ratios.get(place), not leaving) for place in TIMED),
            ]
        )
    head = ["setting", "MACs", "acc1, photographs", "points, imagenette"]
    lines = [[*head, *TIMED.values()], *rows]
    stays = [not _has(name, leaving) for name in lines[0]]
    lines = [list(itertools.compress(line, stays)) for line in lines]
    return render.table(lines[0], [x for x in lines[1:] if not _has(x[0], leaving)])


def rights(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], ...]:
    """{setting: bool [images]} of odd photographs, and of all of imagenette."""
    photographs, imagenette = {}, {}
    files = (folder / name for name in ("points.jsonl", "elsewhere.jsonl"))
    for point in itertools.chain.from_iterable(map(_lines, files)):
        setting, result = point["setting"], point["result"]
        if point["experiment"] not in HERE or "damage" in setting:
            continue
        count = result["images"] if "images" in result else len(result["kl"])
        right = decode_bits(result["right"], count)
        side = setting.get("resized", [SIDE])[0]
        found = imagenette if point["experiment"] == "level" else photographs
        odd = right[parts.ODD] if point["experiment"] == "parts" else right
        found.setdefault(key(setting["reduction"], side), odd)
    return photographs, imagenette


def _has(text, words):
    return any(word in text for word in words)


def key(reduction, side) -> str:
    """Key of a reduction, its defaults filled in, at an image size."""
    return json.dumps([settings.completed(reduction), side], sort_keys=True)


def _points(ours, theirs):
    return statistics.format_difference(statistics.paired_difference(ours, theirs))


def _ratio(ratio, spread):
    if ratio is None:
        return ""
    value, *ends = ratio
    shown = spread and ends and ends != [value, value]
    return f"{value:.2f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if shown else "")


def _lines(path) -> Iterator[dict[str, Any]]:
    return map(json.loads, path.read_text("utf-8").splitlines())
