"""Time of one reduction alone, as one fused kernel and as XLA's own.

python -m tools.reduction_speed --images 256 --dtype bfloat16

By default the first step of DeiT-S on images of 224 pixels: 196 image tokens of width
384. "Floor" is the time in which the device's copy rate moves keys, tokens and results
once; what stays in a cache can be faster.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp

from imagepiece_jax import cli
from imagepiece_jax.benchmark import device
from imagepiece_jax.common import timer, xla_options
from imagepiece_jax.common.files import check_writable, replace_file
from imagepiece_jax.common.tables import text_table
from imagepiece_jax.reduction.kernels import fused
from tools import kernel_agreement as agreement

BATCH = cli.integer("images", 256, "reduced at once", 1)
PATCHES = cli.integer("patches", 196, "of an image, before the step", 8)
HEADS = cli.integer("heads", 6, "of attention, each 64 wide", 1)
DTYPE = cli.dtype("of tokens")
TIMING = cli.timing()
JSON = cli.text("json", None, "a line each")
CHAIN = 8  # reductions per program
HEAD_WIDTH = 64


def main():
    if JSON.value:
        check_writable("--json", JSON.value)
    rules = TIMING()
    dtype = DTYPE.value or xla_options.fast_dtype()
    copy = device.peak_rates(dtype, rules).copy
    if lacking := unsupported_reason(dtype):
        print(f"note: no fused reduction here, it needs {lacking}")
    works = workloads(BATCH.value, PATCHES.value, HEADS.value, dtype)
    readings = timer.measure({(w.rule, w.version): w.job for w in works}, rules)
    rows = []
    for work in works:
        seconds = readings[work.rule, work.version]
        ms = [1e3 * s / CHAIN for s in seconds]
        row = {"rule": work.rule, "way": work.version, **timer.spread(ms)._asdict()}
        row |= {"floor": 1e3 * work.bytes / copy, "batch_size": BATCH.value}
        row |= {"tokens": PATCHES.value, "heads": HEADS.value, "dtype": dtype}
        rows.append(row | {"device": device.name(), **dataclasses.asdict(rules)})
    print(f"{device.name()}, {dtype}, ms a reduction of {BATCH.value} images")
    table = [["median", "lowest", "highest", "floor", ""]]
    for row in rows:
        cells = (f"{row[key]:.4f}" for key in ("median", "low", "high", "floor"))
        table.append([*cells, f"{row['rule']}, {row['way']}"])
    print(text_table(table))
    if JSON.value:
        replace_file(JSON.value, "".join(json.dumps(row) + "\n" for row in rows))


@dataclasses.dataclass(frozen=True)
class ReductionWorkload:
    """A job of `CHAIN` reductions."""

    rule: str  # as in PlainAndFused
    version: str  # "plain" or "fused"
    job: timer.TimedCall
    bytes: int  # the fewest that one reduction must move


def workloads(batch, tokens, heads, dtype):
    """Return the compiled ReductionWorkloads of every rule and available version."""
    width = heads * HEAD_WIDTH
    inputs = [
        agreement.random_inputs(seed, batch, tokens, heads, HEAD_WIDTH, dtype)
        for seed in range(CHAIN)
    ]
    compiled = []
    for reduction in agreement.reductions(tokens):
        # Keys and tokens read and tokens written, each once.
        rows = 2 * (tokens + 1) + reduction.n_out + 1
        moved = batch * rows * width * jnp.dtype(dtype).itemsize
        for version in versions(dtype):
            run = _chained(getattr(reduction, version))
            program = jax.jit(run).lower(inputs).compile()
            job = timer.TimedCall(lambda number, program=program: program(inputs))
            compiled.append(ReductionWorkload(reduction.rule, version, job, moved))
    return compiled


def versions(dtype):
    """Return ("plain", "fused"), or "plain" alone where the device lacks the kernel."""
    return ("plain",) if unsupported_reason(dtype) else ("plain", "fused")


def unsupported_reason(dtype):
    """The requirement that the fused reduction lacks here, in words, or None."""
    if dtype not in fused.DTYPES:
        return f"dtype {' or '.join(fused.DTYPES)}"
    capability = getattr(jax.devices()[0], "compute_capability", None)
    return fused.unsupported_reason(device.platform(), capability)


def _chained(reduce):
    """Return a function of a list of inputs that reduces one after the other."""

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


if __name__ == "__main__":
    cli.run(main, compiles=False)
