"""How fast is each method here? The benchmark over all methods, modes and batch sizes.

As `python -m imagepiece_jax.benchmark`: everything in turns with the dense model; the
model alone, with the copy of its pixels, from files to answers, and training.
"""

import dataclasses

from imagepiece_jax import config_files
from imagepiece_jax.benchmark import device, peak_rates, report, suite
from imagepiece_jax.experiments import published, render
from imagepiece_jax.reduction.methods import METHODS


def run(lab):
    """Measure what was asked for, and write throughput.md."""
    named = configs(lab)
    dtype = lab.options["dtype"] or device.fast_dtype()
    groups = suite.groups(
        named, lab.options["batch_sizes"], dtype, lab.options["modes"]
    )
    parts = [_group(lab, group) for group in groups]
    ratios = published.THROUGHPUT.items()
    listed = ", ".join(f"{name} {ratio:g}" for name, ratio in ratios)
    note = (
        "x first: how many times as fast as the dense model, round by round. Published "
        f"ratios to DeiT-S on an RTX 3090: {listed}. They are of another device, and "
        "batch size and precision are not stated: claim what is measured here."
    )
    render.page(lab, "throughput", "img/s of all methods", *parts, note)


def configs(lab):
    """{name: config}: dense first, then every method, of the size asked for."""
    files = ["deit_s", *(f"deit_s_{name}" for name in METHODS if name != "none")]
    folder, size = config_files.CONFIGS, lab.options["size"]
    paths = [f"{folder}/{name}.py:{size}" for name in files]
    found = {config_files.name(path): config_files.load(path) for path in paths}
    for config in found.values():
        if lab.images is not None:
            config.data.name = lab.images.name
            config.data.resize = lab.images.resize
    return found


def _group(lab, group):
    """The table of one batch size and mode; all its programs are one point."""
    setting = {
        "kind": "throughput",
        "configs": list(group.configs),
        "batch_size": group.batch_size,
        "mode": group.mode,
        "dtype": group.dtype,
        "device": device.name(),
        **dataclasses.asdict(lab.rules),
    }

    def measure():
        limits = peak_rates.measure(group.dtype, lab.rules)
        return {"rows": suite.run(group, (), lab.rules, limits)}

    what = f"{group.mode} of all methods, batches of {group.batch_size}"
    return report.markdown(lab.points.result(setting, measure, what)["rows"])
