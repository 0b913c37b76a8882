"""Time of one reduction alone, as one fused kernel and as XLA's own.

python -m tools.reduction_speed --images 256 --dtype bfloat16

By default the first step of DeiT-S on images of 224 pixels: 196 image tokens of width
384. "Floor" is the time in which the device's copy rate moves keys, tokens and results
once; what stays in a cache can be faster.
"""

import dataclasses
import json

from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.common.files import check_writable, replace_file

BATCH = flags.DEFINE_integer("images", 256, "reduced at once", 1)
TOKENS = flags.DEFINE_integer("tokens", 196, "of an image, before the step", 8)
HEADS = flags.DEFINE_integer("heads", 6, "of attention, each 64 wide", 1)
DTYPE = cli.dtype("of tokens")
TIMING = cli.timing()
JSON = flags.DEFINE_string("json", None, "a line each", allow_override=True)


def main():
    # They import JAX: after the flags.
    from imagepiece_jax.benchmark import device
    from imagepiece_jax.common import timer, xla_options
    from imagepiece_jax.models.summary import format_table
    from tools import reduction_workloads

    if JSON.value:
        check_writable("--json", JSON.value)
    rules = timer.Rules(*TIMING())
    dtype = DTYPE.value or xla_options.fast_dtype()
    copy = device.peak_rates(dtype, rules).copy
    if lacking := reduction_workloads.obstacle(dtype):
        print(f"note: no fused reduction here, it needs {lacking}")
    works = reduction_workloads.workloads(BATCH.value, TOKENS.value, HEADS.value, dtype)
    readings = timer.measure({(w.rule, w.version): w.job for w in works}, rules)
    rows = []
    for work in works:
        seconds = readings[work.rule, work.version]
        ms = [1e3 * s / reduction_workloads.CHAIN for s in seconds]
        row = {"rule": work.rule, "way": work.version, **timer.spread(ms)._asdict()}
        row |= {"floor": 1e3 * work.bytes / copy, "batch_size": BATCH.value}
        row |= {"tokens": TOKENS.value, "heads": HEADS.value, "dtype": dtype}
        rows.append(row | {"device": device.name(), **dataclasses.asdict(rules)})
    print(f"{device.name()}, {dtype}, ms a reduction of {BATCH.value} images")
    table = [["median", "lowest", "highest", "floor", ""]]
    for row in rows:
        cells = (f"{row[key]:.4f}" for key in ("median", "low", "high", "floor"))
        table.append([*cells, f"{row['rule']}, {row['way']}"])
    print(format_table(table))
    if JSON.value:
        replace_file(JSON.value, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    cli.run(main, compiles=False)
