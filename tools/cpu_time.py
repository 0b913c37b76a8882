"""Costs of `models/cpu_time.py`, fitted to times of this CPU, and the table of both.

python -m tools.cpu_time --times times.jsonl

Programs of `optimize` in float32 are timed in turns: sizes, methods and batch sizes
below. The table has the measured and, in brackets, the predicted ratio to the dense
model with the same stem. Times that the file holds are not taken again.
"""

import json
import pathlib

import numpy as np
from absl import flags
from scipy import optimize as fitting

from imagepiece_jax import cli
from imagepiece_jax.common import tables, timer
from imagepiece_jax.inference import advice
from imagepiece_jax.inference.optimize import optimize
from imagepiece_jax.models import cpu_time, registry, summary

SIZES = ("deit_ti", "deit_s")
METHODS = {
    "dense": {"name": "none"},
    "EViT .7": {"name": "evit", "keep_rate": 0.7},
    "EViT .5": {"name": "evit", "keep_rate": 0.5},
    "ToMe r=8": {"name": "tome", "r": 8},
    "ToMe r=13": {"name": "tome", "r": 13},
    "ImagePiece": {"name": "imagepiece"},
}
STEMS = ("patch", "conv")
BATCHES = (1, 2, 4, 8, 16, 32)
SIDE = 224
RULES = timer.Rules(warmup=2, repeats=5, seconds=0.2)
TIMES = flags.DEFINE_string("times", None, "a file of one line per program")


def main():
    file = pathlib.Path(cli.required(TIMES))
    lines = file.read_text().splitlines() if file.exists() else []
    times = {tuple(key): seconds for key, seconds in map(json.loads, lines)}
    for size in SIZES:
        for batch in BATCHES:
            keys = [(size, stem, m, batch) for stem in STEMS for m in METHODS]
            keys = [key for key in keys if _wanted(key)]
            if {*keys} <= times.keys():
                continue
            jobs = {key: _job(key) for key in keys}
            for key, found in timer.measure(jobs, RULES).items():
                times[key] = timer.spread(found).median
                with open(file, "a") as out:
                    out.write(json.dumps([key, times[key]]) + "\n")
                print(*key, f"{1e3 * times[key]:.1f} ms", flush=True)
    cpu_time.COSTS = fit(times)
    print(json.dumps({k: float(f"{v:.3g}") for k, v in cpu_time.COSTS.items()}))
    print("\n".join(table(times)))
    found = ratios(times)
    print(f"{near(found)} of {len(found)} within 10 %")


def _wanted(key):
    """The conv stem is measured of the dense model and of ImagePiece."""
    _, stem, method, _ = key
    return stem == "patch" or method in ("dense", "ImagePiece")


def _model(size, stem, method):
    options = {"reduction": METHODS[method], "stem": stem}
    return registry.create_model(size, dtype="float32", **options)


def _job(key):
    *what, batch = key
    model = _model(*what)
    variables = summary.fresh(model, SIDE, 0)
    return advice.job(optimize(model, variables, batch_size=batch, dtype="float32"))


def fit(times):
    """Costs that give `times` by the least relative error; none is negative."""
    keys = sorted(times)
    rows = [cpu_time.work(_model(*what), SIDE, batch) for *what, batch in keys]
    names = list(rows[0])
    work = np.array([[row[name] for name in names] for row in rows])
    relative = work / np.array([[times[key]] for key in keys])
    scale = relative.max(axis=0)
    costs, _ = fitting.nnls(relative / scale, np.ones(len(keys)))
    return dict(zip(names, (costs / scale).tolist(), strict=True))


def ratios(times):
    """{(size, stem, method, batch): (measured, predicted)} of all but dense models."""
    found = {}
    for size, stem, method, batch in times:
        if method == "dense":
            continue
        dense, reduced = (
            cpu_time.seconds(_model(size, stem, name), SIDE, batch)
            for name in ("dense", method)
        )
        key = size, stem, method, batch
        measured = times[size, stem, "dense", batch] / times[key]
        found[key] = measured, dense / reduced
    return found


def near(found, limit=0.1):
    """How many of these ratios are predicted within `limit` of the measured one."""
    return sum(abs(predicted / is_ - 1) <= limit for is_, predicted in found.values())


def table(times):
    """Measured ratios and, in brackets, predicted ones as lines of Markdown."""
    found = ratios(times)
    rows = [
        [size, method + " (conv stem)" * (stem == "conv")]
        + ["{:.2f} ({:.2f})".format(*found[size, stem, method, b]) for b in BATCHES]
        for size, stem, method in dict.fromkeys(key[:3] for key in found)
    ]
    head = ["model", "reduction", *(f"batch {batch}" for batch in BATCHES)]
    return tables.markdown(head, rows)


if __name__ == "__main__":
    cli.run(main, compiles=False)
