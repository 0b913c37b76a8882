"""How many images a second, beside each other? Models and methods on this device.

python -m imagepiece_jax.benchmark --config configs/deit_s.py \\
    --config configs/deit_s_imagepiece.py --batch_size 256 --dtype bfloat16 --json OUT

All configs take turns in one process and are compared with the first. The ceilings of
the device come first, large batches before small ones. --against timm,tome adds PyTorch
on the same device; --compile-only h200 compiles for a GPU that need not be there.
"""

import contextlib
import itertools
import os
import pathlib

from absl import flags

from imagepiece_jax import cli, options
from imagepiece_jax.benchmark import suite
from imagepiece_jax.errors import InputError

cli.define_config("a config file; several are compared with the first")
BATCH_SIZE = flags.DEFINE_multi_string(
    "batch_size", ["256"], "one or more, such as 1,8,256", allow_override=True
)
DTYPE = options.dtype("of weights and layers")
MODE = flags.DEFINE_list(
    "mode",
    ["inference"],
    f"one or more of {','.join(suite.MODES)}",
    allow_override=True,
)
DEVICE = flags.DEFINE_enum(
    "device",
    "default",
    ["default", "cpu", "gpu"],
    "JAX's, or this",
    allow_override=True,
)
AGAINST = flags.DEFINE_list(
    "against", [], "timm, tome: PyTorch in turns with ours", allow_override=True
)
RULES = options.rules()
JSON = flags.DEFINE_string(
    "json", None, "a line for each figure, as they come", allow_override=True
)
MARKDOWN = flags.DEFINE_string("markdown", None, "tables", allow_override=True)
PLOT = flags.DEFINE_string("plot", None, "a PNG", allow_override=True)
COMPILE_ONLY = flags.DEFINE_enum(
    "compile-only", None, ["h200"], "measure nothing: show what the compiler makes"
)
KERNELS = flags.DEFINE_boolean("kernels", False, "with --compile-only: list them all")


def main():
    configs = _named(cli.required_configs())
    sizes = suite.batch_sizes(BATCH_SIZE.value)
    modes = suite.modes(MODE.value)
    if KERNELS.value and not COMPILE_ONLY.value:
        raise InputError("--kernels goes with --compile-only h200")
    if COMPILE_ONLY.value:
        from tools import compile_only

        for config in configs.values():
            config.model.dtype = DTYPE.value or "bfloat16"
        for size, mode in itertools.product(sizes, modes):
            named = list(configs.items())
            print(compile_only.report(named, size, mode, KERNELS.value))
        return
    from imagepiece_jax.common.files import check_writable

    RULES()
    files = {}
    for holder in (JSON, MARKDOWN, PLOT):
        if holder.value:
            check_writable(f"--{holder.name}", holder.value)
            first = files.setdefault(os.path.realpath(holder.value), holder.name)
            if first != holder.name:
                raise InputError(
                    f"--{holder.name} {holder.value} is the file of --{first}; allowed "
                    "is another"
                )
    if AGAINST.value:
        from imagepiece_jax.benchmark import torch_baselines

        torch_baselines.prepare(AGAINST.value)
    _measure(configs, sizes)


def _named(given):
    """{file name without .py: config}; InputError for a name that comes twice."""
    configs = {}
    for path, config in given:
        file, colon, text = path.partition(":")
        name = pathlib.Path(file).stem + colon + text
        if name in configs:
            raise InputError(
                f"--config {path}: a config of this name is there already; allowed are "
                "files of different names"
            )
        configs[name] = config
    return configs


def _measure(configs, sizes):
    """Everything at every batch size: lines as they come, then tables and plot."""
    from imagepiece_jax.benchmark import device, peak_rates, report, timer
    from imagepiece_jax.common.files import append_line

    device.use(DEVICE.value)
    dtype = DTYPE.value or device.fast_dtype()
    rules = RULES()
    _note(rules, timer.Rules())
    groups = suite.groups(configs, sizes, dtype, MODE.value)
    print(f"{device.name()}, {dtype}, random weights and images", flush=True)
    limits = peak_rates.measure(dtype, rules)
    print(
        f"largest matmul rate {limits.matmul / 1e12:.3f} TFLOP/s, copy "
        f"{limits.copy / 1e9:,.0f} GB/s",
        flush=True,
    )
    found = []
    with contextlib.ExitStack() as stack:
        lines = JSON.value and stack.enter_context(open(JSON.value, "wb", buffering=0))
        for group in groups:
            new = suite.run(group, AGAINST.value, rules, limits)
            found += new
            print(f"\n{group.mode}\n{report.text(new)}", flush=True)
            for row in new if lines else ():
                append_line(lines, report.line(row))
            if MARKDOWN.value:
                report.write_markdown(MARKDOWN.value, found)
    for sentence in report.break_even(found):
        print(sentence)
    if PLOT.value:
        report.plot(PLOT.value, found)


def _note(rules, meant):
    """What was asked for less than a figure for others needs."""
    for field in ("warmup", "repeats", "seconds"):
        asked, least = getattr(rules, field), getattr(meant, field)
        if asked < least:
            print(f"note: --{field} {asked:g} is below {least:g}: not for publication")


if __name__ == "__main__":
    cli.run(main)
