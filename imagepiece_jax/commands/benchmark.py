"""Images per second of models and methods, measured side by side on one device.

python -m imagepiece_jax benchmark --config configs/deit_s.py \\
    --config configs/deit_s_imagepiece.py --batch_size 256 --dtype bfloat16 --json OUT

All configs take turns in one process and are compared with the first. The device's peak
rates are measured first; large batches run before small ones. --weights
FILE_OR_WORKDIR measures trained weights under each config, or without --config their
own model beside the same without its reduction, as --macs 0.5 does with one config;
--config.FIELD=VALUE changes it, as in `evaluate`. --sweep tome:r=8,13 --sweep evit=0.5
measures one model dense and with each of these reductions. Without a GPU, `python -m
tools.compile_only` of the repository shows what the compiler makes of a config.
"""

from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.common import extras
from imagepiece_jax.common.timing_rules import Rules

cli.define_config("a config file; several are compared with the first")
WEIGHTS = cli.weights()
cli.macs()
SWEEP = cli.sweep("these reductions of one model beside the dense one")
BATCH_SIZE = cli.repeated("batch_size", ["256"], "one or more, such as 1,8,256")
DTYPE = cli.dtype("of weights and layers")
GELU = cli.gelu()
MODE = cli.listed(
    "mode", ["inference"], "one or more of inference,copy,end_to_end,train"
)
DEVICE = cli.choice("device", "default", ["default", "cpu", "gpu"], "JAX's, or this")
TIMING = cli.timing()
JSON = cli.text("json", None, "a file of one line per figure, written at once")
MARKDOWN = cli.text("markdown", None, "tables")
PLOT = cli.text("plot", None, "a PNG")


def main(others=None):
    """others: as for `suite.run`."""
    path = WEIGHTS.value
    configs = {}
    base = None
    if path is None or flags.FLAGS["config"].value:
        configs = cli.configs()
    else:
        base = cli.config_or_base()
    # These import JAX, which --help and a mistyped flag need not wait for.
    from imagepiece_jax.benchmark import device, report, suite
    from imagepiece_jax.common import xla_options
    from imagepiece_jax.reduction.sweep_text import parse_sweeps

    reductions = parse_sweeps(SWEEP.value, cli.typed_macs())
    sizes = suite.batch_sizes(BATCH_SIZE.value)
    modes = suite.modes(MODE.value)
    rules = TIMING()
    if PLOT.value:
        extras.check("--plot", "matplotlib")
    files = report.Files(JSON.value, MARKDOWN.value, PLOT.value)
    device.use(DEVICE.value)
    dtype = DTYPE.value or xla_options.fast_dtype()
    if path is None and len(configs) == 1 and cli.typed_macs():
        # The file's name is not that of the reduction.
        pairs = suite.beside_dense(*configs.values())
    elif path is None:
        pairs = {name: (config, None) for name, config in configs.items()}
    elif base is None:
        pairs = suite.load_for_configs(path, configs)
    else:
        pairs = suite.load_beside_dense(path, *base)
    if reductions:
        pairs = suite.swept(pairs, configs, reductions)
    note_short_timing(rules)
    groups = suite.groups(pairs, sizes, dtype, modes, GELU.value)
    suite.run_all(groups, rules, files, others)


def note_short_timing(rules):
    """Print which rules are below the defaults."""
    for field, least in vars(Rules()).items():
        used = getattr(rules, field)
        if used < least:
            print(f"note: --{field} {used:g} is below {least:g}: not for publication")


if __name__ == "__main__":
    cli.run(main, compiles=False)  # its time is measured
