"""Time of one reduction alone.

python -m tools.reduction_speed --images 256 --dtype bfloat16

By default the first step of DeiT-S on images of 224 pixels: 196 image tokens of width
384. "Floor" is the time in which the device's copy rate moves keys, tokens and results
once; what stays in a cache can be faster. "Most attended" (join) also has a fast form
(`optimize(reductions="fast")`), which for the other rules is the same program.
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
from tools import near_ties

BATCH = cli.integer("images", 256, "reduced at once", 1)
PATCHES = cli.integer("input", 196, "patches of an image, before the step", 8)
HEADS = cli.integer("heads", 6, "of attention, each 64 wide", 1)
DTYPE = cli.dtype("of tokens")
TIMING = cli.timing()
JSON = cli.text("json", None, "a line each")
CHAIN = 8  # reductions per program
HEAD_WIDTH = 64


def main():
    if JSON.value:
        check_writable("--json", JSON.value, [".json", ".jsonl"])
    rules = TIMING()
    dtype = DTYPE.value or xla_options.fast_dtype()
    copy = device.peak_rates(dtype, rules).copy
    works = workloads(BATCH.value, PATCHES.value, HEADS.value, dtype)
    readings = timer.measure({work.name: work.job for work in works}, rules)
    rows = []
    for work in works:
        ms = [1e3 * s / CHAIN for s in readings[work.name]]
        row = {"rule": work.name, **timer.spread(ms)._asdict()}
        row |= {"floor": 1e3 * work.bytes / copy, "batch_size": BATCH.value}
        row |= {"tokens": PATCHES.value, "heads": HEADS.value, "dtype": dtype}
        rows.append(row | {"device": device.name(), **dataclasses.asdict(rules)})
    print(f"{device.name()}, {dtype}, ms a reduction of {BATCH.value} images")
    table = [["median", "lowest", "highest", "floor", ""]]
    for row in rows:
        cells = (f"{row[key]:.4f}" for key in ("median", "low", "high", "floor"))
        table.append([*cells, row["rule"]])
    print(text_table(table))
    if JSON.value:
        replace_file(JSON.value, "".join(json.dumps(row) + "\n" for row in rows))


@dataclasses.dataclass(frozen=True)
class ReductionWorkload:
    """A job of `CHAIN` reductions."""

    name: str  # the rule, as in OneReduction, and the form if it is the fast one
    job: timer.TimedCall
    bytes: int  # the fewest that one reduction must move


def workloads(batch, tokens, heads, dtype):
    """Return the compiled ReductionWorkload of every rule and form."""
    width = heads * HEAD_WIDTH
    inputs = [
        near_ties.random_inputs(seed, batch, tokens, heads, HEAD_WIDTH, dtype)
        for seed in range(CHAIN)
    ]
    compiled = []
    usual = near_ties.reductions(tokens)
    named = {reduction.rule: reduction for reduction in usual}
    named["join, fast"] = near_ties.Fast.form_of(named["join"])
    options = xla_options.options(device.platform())
    for name, reduction in named.items():
        # Keys and tokens read and tokens written, each once.
        rows = 2 * (tokens + 1) + reduction.n_out + 1
        moved = batch * rows * width * jnp.dtype(dtype).itemsize
        lowered = jax.jit(_chained(reduction)).lower(inputs)
        program = lowered.compile(compiler_options=options)
        job = timer.TimedCall(lambda number, program=program: program(inputs))
        compiled.append(ReductionWorkload(name, job, moved))
    return compiled


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
