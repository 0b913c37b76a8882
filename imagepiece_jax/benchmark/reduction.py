"""How long does one reduction take, alone: as one kernel, and as XLA's own?

python -m imagepiece_jax.benchmark.reduction --batch 256 --dtype bfloat16

By default the first step of DeiT-S on images of 224 pixels: 196 image tokens of width
384. A program holds several reductions, one after the other, of different random
inputs, so that what is timed is the device and not the launch. "Floor" is the time in
which the device's copy rate moves keys, tokens and results once; what stays in a cache
can be faster.
"""

import dataclasses
import json

from absl import flags

from imagepiece_jax import cli

BATCH = flags.DEFINE_integer("batch", 256, "images that are reduced at once", 1)
TOKENS = flags.DEFINE_integer("tokens", 196, "of an image, before the step", 8)
HEADS = flags.DEFINE_integer("heads", 6, "of attention, each 64 wide", 1)
DTYPE = cli.dtype("of tokens")
TIMING = cli.timing()
JSON = flags.DEFINE_string("json", None, "a line each", allow_override=True)
CHAIN = 8  # reductions of one program
HEAD_WIDTH = 64


def main():
    from imagepiece_jax.common.files import check_writable, replace_file

    if JSON.value:
        check_writable("--json", JSON.value)
    from imagepiece_jax.benchmark import device, peak_rates, timer
    from imagepiece_jax.models.summary import format_table

    rules = timer.Rules(*TIMING())
    dtype = DTYPE.value or device.fast_dtype()
    copy = peak_rates.measure(dtype, rules).copy
    jobs, floors = _jobs(dtype)
    readings = timer.measure(jobs, rules)
    rows = []
    for name, (rule, way) in zip(jobs, floors, strict=True):
        ms = [1e3 * seconds / CHAIN for seconds in readings[name]]
        row = {"rule": rule, "way": way, **timer.spread(ms)._asdict()}
        row |= {"floor": 1e3 * floors[rule, way] / copy, "batch_size": BATCH.value}
        row |= {"tokens": TOKENS.value, "heads": HEADS.value, "dtype": dtype}
        rows.append(row | {"device": device.name(), **dataclasses.asdict(rules)})
    shown = ("median", "low", "high", "floor")
    cells = [[f"{row[key]:.4f}" for key in shown] for row in rows]
    print(f"{device.name()}, {dtype}, ms a reduction of {BATCH.value} images")
    named = [
        [*cell, f"{row['rule']}, {row['way']}"]
        for cell, row in zip(cells, rows, strict=True)
    ]
    print(format_table([["median", "lowest", "highest", "floor", ""], *named]))
    if JSON.value:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        replace_file(JSON.value, lines)


def reductions(tokens):
    """What ImagePiece merges, EViT keeps and ToMe merges of so many image tokens."""
    from imagepiece_jax.models.kernel_agreement import Reduction

    candidates = int(0.3 * tokens)
    merged = min(round(0.08 * (tokens + 1)), candidates // 2)
    return (
        Reduction("retokenize", n_out=tokens - merged, candidates=candidates),
        Reduction("prune", n_out=round(0.7 * tokens)),
        Reduction("bipartite", n_out=tokens - min(13, tokens // 2)),
    )


def _jobs(dtype):
    """({name: Job}, {(rule, way): fewest bytes of one reduction})."""
    import jax

    from imagepiece_jax.benchmark import device

    inputs = [_inputs(seed, dtype) for seed in range(CHAIN)]
    jobs, floors = {}, {}
    for reduction in reductions(TOKENS.value):
        for way in _ways(dtype):
            program = jax.jit(_chained(getattr(reduction, way))).lower(inputs).compile()
            jobs[f"{reduction.rule} {way}"] = device.job(
                lambda number, program=program: program(inputs)
            )
            floors[reduction.rule, way] = _fewest(reduction, dtype)
    return jobs, floors


def _ways(dtype):
    """ "fused" only where the device has it; what it lacks is told."""
    from imagepiece_jax.benchmark import device
    from imagepiece_jax.reduction.kernels import fused

    lacking = fused.obstacle(device.platform())
    if dtype not in fused.DTYPES:
        lacking = f"dtype {' or '.join(fused.DTYPES)}"
    if lacking:
        print(f"note: no fused reduction here, it needs {lacking}")
    return ("plain",) if lacking else ("plain", "fused")


def _chained(reduce):
    """A list of inputs -> a list of results, one after the other."""
    import jax

    def run(inputs):
        results = []
        for arrays in inputs:
            if results:  # else XLA may join their small kernels
                arrays, results[-1] = jax.lax.optimization_barrier(
                    (arrays, results[-1])
                )
            results.append(reduce(*arrays))
        return results

    return run


def _inputs(seed, dtype):
    """Random (query, key [B, N, H, d], x [B, N, D], size [B, N] of ones)."""
    import jax
    import jax.numpy as jnp

    length = TOKENS.value + 1
    keys = jax.random.split(jax.random.key(seed), 3)
    shape = (BATCH.value, length, HEADS.value, HEAD_WIDTH)
    query, key = (jax.random.normal(k, shape, dtype) for k in keys[:2])
    x = jax.random.normal(keys[2], (*shape[:2], shape[2] * shape[3]), dtype)
    return query, key, x, jnp.ones(shape[:2], "float32")


def _fewest(reduction, dtype):
    """Bytes of keys and tokens read and tokens written, each once."""
    import jax.numpy as jnp

    rows = 2 * (TOKENS.value + 1) + reduction.n_out + 1
    width = HEADS.value * HEAD_WIDTH * jnp.dtype(dtype).itemsize
    return BATCH.value * rows * width


if __name__ == "__main__":
    cli.run(main)
