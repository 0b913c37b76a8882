"""Speed of all methods: the benchmark over methods, modes and batch sizes.

As `python -m imagepiece_jax benchmark`: everything in turns with the dense model; the
model alone, with the copy of its pixels, from files to logits, and training.
"""

import dataclasses

from experiments import published, render
from experiments.context import package_config
from imagepiece_jax.benchmark import device, report, suite
from imagepiece_jax.common import xla_options
from imagepiece_jax.reduction.methods import METHODS


def throughput(context):
    """Measure every batch size and mode of the options, and write throughput.md."""
    parts = [_group(context, group) for group in groups(context)]
    ratios = published.THROUGHPUT.items()
    listed = ", ".join(f"{name} {ratio:g}" for name, ratio in ratios)
    note = (
        "x first: how many times as fast as the dense model, round by round. Published "
        f"ratios to DeiT-S on an RTX 3090: {listed}. They are of another device, and "
        "batch size and precision are not stated: claim what is measured here."
    )
    render.page(context, "throughput", "img/s of all methods", *parts, note)


def groups(context) -> list[suite.Group]:
    """Every batch size in every mode, but odd ones in training: mixup pairs images.

    InputError for an odd one where training is all that is asked for.
    """
    settings, measured = context.settings, []
    dtype, compared = settings.dtype or xla_options.fast_dtype(), configs(context)
    for size in sorted(settings.batch_sizes, reverse=True):
        modes = [mode for mode in settings.modes if mode != "train" or size % 2 == 0]
        measured += suite.groups(compared, [size], dtype, modes or settings.modes)
    return measured


def configs(context) -> dict:
    """{name: config}: dense first, then every method, of the size in the options."""
    size = context.settings.size
    ends = ["", *(f"_{name}" for name in METHODS if name != "none")]
    loaded = {size + end: package_config(f"deit_s{end}.py:{size}") for end in ends}
    for config in loaded.values():
        if context.images is not None:
            config.data.name = context.images.name
            config.data.resize = context.images.resize
    return loaded


def _group(context, group):
    """The table of one batch size and mode; all its programs are one cached result."""
    setting = {
        "kind": "throughput",
        "configs": list(group.configs),
        "batch_size": group.batch_size,
        "mode": group.mode,
        "dtype": group.dtype,
        "device": device.name(),
        **dataclasses.asdict(context.settings.rules),
    }

    def measure():
        limits = device.peak_rates(group.dtype, context.settings.rules)
        return {"rows": suite.run(group, (), context.settings.rules, limits)}

    what = f"{group.mode} of all methods, batches of {group.batch_size}"
    return report.markdown(context.cache.result(setting, measure, what)["rows"])
