"""The table by time: accuracies and ratios of the same settings."""

import json

import numpy as np
import pytest

from experiments import clock
from imagepiece_jax.evaluate.cache import encode_bits
from imagepiece_jax.reduction import settings

NAME = "most attended in 3 blocks .5"
OURS = {"name": "diffrate", "macs": 0.5, "counts": "stages-3-6-9"}
SYSTEMS = {
    "dense": ({"name": "none"}, 224),
    NAME: (OURS, 224),
    "dense at 160 pixels": ({"name": "none"}, 160),
}


def point(experiment, reduction, right, **more):
    setting = {"reduction": settings.completed(reduction)} | more
    result = {"right": encode_bits(np.array(right, bool)), "images": len(right)}
    return {"experiment": experiment, "setting": setting, "result": result}


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def folder(tmp_path):
    ours, dense = OURS, {"name": "none"}
    write(tmp_path / "points.jsonl", [point("parts", ours, [0, 1, 0, 0, 0, 1])])
    elsewhere = [
        point("carried", dense, [1, 1, 1]),
        point("carried", dense, [0, 0, 0], damage="noise .2"),
        point("carried", dense, [1, 0, 0], resized=[160, 160]),
        point("level", dense, [1, 1, 1, 1, 0, 0, 0, 0]),
        point("level", ours, [1, 1, 1, 0, 0, 0, 0, 0]),
        point("saliency", dense, [0]),
    ]
    write(tmp_path / "elsewhere.jsonl", elsewhere)
    speeds = [
        {"model": "dense", "runtime": "JAX", "batch": 8, "ratio": [1, 1, 1], "macs": 1},
        {"model": NAME, "runtime": "JAX", "batch": 8, "ratio": [1.5, 1.2, 1.8]},
        {"model": NAME, "runtime": "H200", "batch": 256, "ratio": [1.45]},
        {"model": "dense at 160 pixels", "runtime": "JAX", "batch": 1, "ratio": [2]},
    ]
    for speed in speeds:
        reduction, side = SYSTEMS[speed["model"]]
        speed |= {"reduction": reduction, "image_size": side}
    write(tmp_path / "clock.jsonl", [{"macs": 2} | speed for speed in speeds])
    return tmp_path


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_has_the_accuracy_and_the_times_of_its_setting(folder):
    head, _, *lines = clock.table(folder).splitlines()
    rows = [dict(zip(cells(head), cells(line), strict=True)) for line in lines]
    rows = {row["setting"]: row for row in rows}
    assert [*rows] == ["dense", NAME, "dense at 160 pixels"]
    ours, dense, small = rows[NAME], rows["dense"], rows["dense at 160 pixels"]
    assert ours["acc1, photographs"] == "66.7"  # of rows 1, 3, 5
    assert dense["acc1, photographs"] == "100.0" and not dense["points, imagenette"]
    assert small["acc1, photographs"] == "33.3" and not small["points, imagenette"]
    assert ours["points, imagenette"].startswith("-12.5 [")
    assert ours["JAX, CPU"] == "1.50 [1.20, 1.80]" and not ours["JAX, CPU, batch 1"]
    assert ours["H200, estimated"] == "1.45" and small["JAX, CPU, batch 1"] == "2.00"
    assert ours["MACs"] == "0.50" and dense["MACs"] == "1.00"
