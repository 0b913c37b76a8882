"""Images per second of models and methods, measured side by side on one device.

python -m imagepiece_jax benchmark --config configs/deit_s.py \\
    --config configs/deit_s_imagepiece.py --batch_size 256 --dtype bfloat16 --json OUT

All configs take turns in one process and are compared with the first. The device's peak
rates are measured first; large batches run before small ones. --weights
FILE_OR_WORKDIR measures trained weights beside the same without their reduction, and
--reduction 0.5 gives weights, or one config, another. --sweep tome:r=8,13
--sweep evit=0.5 measures one model dense and with each of these reductions. Without a
GPU, `python -m tools.compile_only` of the repository shows what the compiler makes of a
config.
"""

from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.commands import _weights
from imagepiece_jax.common import extras
from imagepiece_jax.common.timing_rules import Rules
from imagepiece_jax.errors import InputError, flags_of, renamed

cli.define_config("a config file; several are compared with the first")
WEIGHTS = _weights.weights()
DATA = cli.data("none: end_to_end of --weights needs it")
SWEEP = cli.sweep("these reductions of one model beside the dense one")
BATCH_SIZE = cli.repeated("batch_size", ["256"], "one or more, such as 1,8,256")
FORMS = [
    cli.gelu(),
    cli.choice("sizes", None, ["bias", "direction"], "how attention counts merges"),
    cli.choice("reductions", None, ["exact", "fast"], "how they compute, on GPUs"),
]
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
    configs = {}
    if not flags.FLAGS["weights"].value:
        values = "config files, or weights by --weights"
        cli.required(flags.FLAGS["config"], values)
        configs = cli.configs()
    # These import JAX, which --help and a mistyped flag need not wait for.
    from imagepiece_jax.benchmark import device, report, suite
    from imagepiece_jax.common import xla_options

    with renamed(_typed_names()):
        reductions = _weights.swept()
        if reductions and len(configs) > 1:
            problem = f"is given with {len(configs)} configs"
            allowed = "one --config, or --weights"
            raise InputError("--sweep", None, allowed, problem=problem)
        sizes = suite.batch_sizes(BATCH_SIZE.value)
        modes = suite.modes(MODE.value)
        rules = TIMING()
        if PLOT.value:
            extras.check("--plot", "matplotlib")
        files = report.Files(JSON.value, MARKDOWN.value, PLOT.value)
        device.use(DEVICE.value)
        dtype = flags.FLAGS["dtype"].value or xla_options.fast_dtype()
        compared = _compared(configs)
        if reductions:
            compared = suite.swept(compared, reductions)
        note_short_timing(rules)
        forms = {form.name: form.value for form in FORMS if form.value is not None}
        groups = suite.groups(compared, sizes, dtype, modes, forms, DATA.value)
        suite.run_all(groups, rules, files, others)


def _compared(configs):
    """{name: (config, None) or (None, Pretrained)} of what is timed in turns."""
    from imagepiece_jax.benchmark import suite  # imports JAX

    if not configs:
        return suite.weights_beside_dense(WEIGHTS())
    if len(configs) == 1 and cli.typed_cost():
        # The file's name is not that of the reduction.
        return suite.beside_dense(*configs.values())
    return {name: (config, None) for name, config in configs.items()}


def _typed_names():
    """{an argument: the flag or config field that has it}."""
    names = flags_of("batch_size", "device", "mode", "data", "reductions", "gelu")
    if flags.FLAGS["weights"].value:
        return names | {"name": "--data"}
    of_config = {"name": "config.data.name", "num_classes": "config.num_classes"}
    return names | of_config


def note_short_timing(rules):
    """Print which rules are below the defaults."""
    for field, least in vars(Rules()).items():
        used = getattr(rules, field)
        if used < least:
            print(f"note: --{field} {used:g} is below {least:g}: not for publication")


if __name__ == "__main__":
    cli.run(main, compiles=False)  # its time is measured
