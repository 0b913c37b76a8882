"""Collectives of a training step on hosts of eight H200s, compiled without a GPU.

python -m tools.collectives --config configs/deit_s.py --images_per_gpu 128,64,16 \
    --config configs/deit_s_imagepiece.py --markdown docs/tables/collectives.md

Needs JAX's CUDA wheels (pip install ".[train,gpu]"), no GPU and no driver. Compiles the
step of each config for one host of eight at each number of images per GPU, lists its
collectives, and calculates their time on several hosts from their bytes. Nothing is
measured.

python -m tools.collectives --trainings --config configs/deit_s.py --hosts 1,2

prints instead what whole trainings on ImageNet cost: docs/tables/trainings.md.
One H200 takes the config's batch, and hosts of eight `images_per_gpu`; the steps alone
count. Where a keep rate warms up, the time of an epoch lies between those of the dense
and the last step as its MACs do.
"""

import collections
import dataclasses
import pathlib
import sys

import jax
from ml_collections import config_dict

from imagepiece_jax import cli
from imagepiece_jax.common.files import check_writable
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.errors import whole_numbers
from imagepiece_jax.training.data import length
from imagepiece_jax.training.report import macs_by_epoch, training_flop
from tools import compile_only, h200, hlo
from tools.imagenet.scan import SPLITS

cli.define_config("a config file; several are listed one after the other")
IMAGES = cli.listed("images_per_gpu", ["128"], "of a step: one or more")
HOSTS = cli.listed("hosts", ["1", "2", "8"], "of eight GPUs: one or more")
TRAININGS = cli.switch("trainings", False, "the cost of whole trainings instead")
MARKDOWN = cli.text("markdown", None, "a file for the tables")

HEAD = """# Collectives of a training step

Written by `python -m tools.collectives`. Compiled for a host of eight NVIDIA H200s, not
run. The time of a step is estimated from bytes and products (see PERFORMANCE.md), that
of the collectives is calculated: rings, {nvlink:g} GB/s NVLink (half of it in each
direction), {network:g} GB/s between a host and the others, {latency:g} us a collective
and {farther:g} us more between hosts (assumed), none of it hidden behind other work.
"""


GPUS = 8  # of a host
KILOBYTES = 115.4  # of a file: ImageNet's 147.9 GB by its training images
TRAINING_IMAGES = SPLITS["train"][2]
FORWARD = "forward batch statistics"
BACKWARD = "backward batch statistics"
KINDS = ("gradients", "metrics", FORWARD, BACKWARD, "mixed images")


@dataclasses.dataclass(frozen=True)
class Links:
    """Bandwidths in one direction, bytes/s, and assumed latencies of a collective."""

    nvlink: float = 450e9  # of one GPU: an H200's 900 GB/s are both directions together
    network: float = 50e9  # of one host to the others
    latency_s: float = 20e-6  # within a host
    network_latency_s: float = 50e-6  # what other hosts add

    def seconds(self, collective, hosts):
        """Return the time of a hlo.Collective between the 8 GPUs of each of `hosts`.

        An all-reduce is a reduce-scatter within each host, a ring between the hosts for
        each part, and an all-gather within each host. In any other collective every
        byte leaves its host.
        """
        if collective.op == "all-reduce":
            inside = 2 * (GPUS - 1) / GPUS * collective.bytes
            between = 2 * (hosts - 1) / hosts * collective.bytes
        else:
            inside = collective.bytes
            between = GPUS * collective.bytes
        seconds = self.latency_s + inside / self.nvlink
        if hosts > 1:
            seconds += self.network_latency_s + between / self.network
        return seconds


def kinds(collective):
    """Return the contents of a training step's hlo.Collective, in the order of `KINDS`.

    The statistics of a batch norm are the mean and the mean square, [2, channels].
    """
    if collective.op == "collective-permute":
        return ("mixed images",)
    contents = set()
    for part in collective.parts:
        if "/norm_" in part.source and "[2," in part.shape:
            contents.add(BACKWARD if "transpose(" in part.source else FORWARD)
        else:
            contents.add("metrics" if "[]" in part.shape else "gradients")
    return tuple(kind for kind in KINDS if kind in contents)


def inventory(text):
    """Return a Markdown table of a compiled step's collectives, a row per content."""
    rows = collections.defaultdict(list)
    for collective in hlo.collectives(text):
        rows[collective.op, kinds(collective)].append(collective)
    lines = []
    for (op, contents), group in rows.items():
        arrays = sum(len(collective.parts) for collective in group)
        sizes = ", ".join(f"{collective.bytes:,}" for collective in group)
        lines.append([", ".join(contents), op, len(group), arrays, sizes])
    head = ["what", "collective", "number", "arrays", "bytes each"]
    return markdown_table(head, lines)


def step_seconds(text):
    """Return the estimated time of a step without its collectives."""
    return sum(map(h200.estimate, hlo.kernels(text)))


PLAN_HEADING = ["config", "images a GPU", "hosts of 8", "images a step", "step, ms"]
PLAN_HEADING += ["collectives, ms", "share", "images/s", "times one host"]


def plan(name, text, images, hosts, links):
    """Return rows of cells, one for each of `hosts`, for `images` images per GPU."""
    compute = step_seconds(text)
    rows = []
    exchanged = {n: _exchange(text, n, links) for n in {1, *hosts}}
    one_host = GPUS * images / (compute + exchanged[1])
    for count in hosts:
        total = compute + exchanged[count]
        batch = count * GPUS * images
        row = [name, images, count, f"{batch:,}", f"{1e3 * compute:.2f}"]
        row += [f"{1e3 * exchanged[count]:.2f}", f"{exchanged[count] / total:.0%}"]
        rows.append([*row, f"{batch / total:,.0f}", f"{batch / total / one_host:.2f}"])
    return rows


COSTS_HEADING = ["config", "EFLOP", "GB read", "1 H200: images/s", "hours"]


def run_costs(configs, images, hosts, links, kilobytes):
    """Return a Markdown table: what trainings on ImageNet cost, calculated.

    configs: [(name, config)]
    images: per GPU, on hosts of eight; one GPU takes the config's batch
    hosts: numbers of them
    kilobytes: of an image file
    """
    heading = list(COSTS_HEADING)
    programs = {}
    rows = []
    for count in hosts:
        where = f"{count} x {GPUS}" if count > 1 else f"{GPUS} H200"
        heading += [f"{where}: images/s", "hours"]

    def seconds(config, batch, gpus, count):
        """Time of a step on `count` hosts, each with `gpus` GPUs and `batch` images."""
        config = config.copy_and_resolve_references()
        config.batch_size = batch
        key = config.to_json(), gpus
        if key not in programs:
            programs[key] = compile_only.train_text(config, gpus)
        return step_seconds(programs[key]) + _exchange(programs[key], count, links)

    for name, config in configs:
        run = RunConfig.from_config(config)
        macs = macs_by_epoch(run)
        seen = length(run, TRAINING_IMAGES).steps * run.optim.batch_size
        cells = [name, f"{training_flop(run, TRAINING_IMAGES) / 1e18:#.3g}"]
        cells.append(f"{seen / run.data.repeats * kilobytes / 1e6:,.0f}")
        layouts = [(1, 1, run.optim.batch_size)]
        layouts += [(count, GPUS, GPUS * images) for count in hosts]
        for count, gpus, batch in layouts:
            step = seconds(config, batch, gpus, count)
            if macs[0] != macs[-1]:
                dense = config.copy_and_resolve_references()
                dense.reduction = config_dict.ConfigDict({"name": "none"})
                mean = sum(macs) / len(macs)
                share = (mean - macs[-1]) / (macs[0] - macs[-1])  # 1: as dense
                step += share * (seconds(dense, batch, gpus, count) - step)
            rate = count * batch / step
            hours = seen / rate / 3600
            digits = 1 if hours >= 1 else 2
            cells += [f"{rate:,.0f}", f"{hours:.{digits}f}"]
        rows.append(cells)
    return markdown_table(heading, rows)


def _exchange(text, hosts, links):
    return sum(links.seconds(c, hosts) for c in hlo.collectives(text))


def main():
    configs = list(cli.configs().items())
    images = whole_numbers("--images_per_gpu", IMAGES.value)
    hosts = whole_numbers("--hosts", HOSTS.value)
    if MARKDOWN.value:
        check_writable("--markdown", MARKDOWN.value, [".md"])
    links = Links()
    jax.config.update("jax_platforms", "cpu")  # a GPU that is there is left alone
    h200.device()  # before JAX is used otherwise
    if TRAININGS.value:
        table = run_costs(configs, images[0], hosts, links, KILOBYTES)
        print(table)
        _write([table])
        return
    head = HEAD.format(
        nvlink=2 * links.nvlink / 1e9,
        network=links.network / 1e9,
        latency=1e6 * links.latency_s,
        farther=1e6 * links.network_latency_s,
    )
    parts = [head]
    rows = []
    for name, config in configs:
        for count in images:
            config.batch_size = GPUS * count
            text = compile_only.train_text(config, GPUS)
            rows += plan(name, text, count, hosts, links)
            if count == images[0]:
                parts.append(_section(name, count, text))
            print(f"{name}, {count} images a GPU: compiled", file=sys.stderr)
    parts.append("## Hosts\n\n" + markdown_table(PLAN_HEADING, rows))
    print("\n".join(parts))
    _write(parts)


def _write(parts):
    if MARKDOWN.value:
        pathlib.Path(MARKDOWN.value).write_text("\n".join(parts) + "\n", "utf-8")


def _section(name, images, text):
    waits = hlo.host_waits(text)
    return (
        f"## {name}, {images} images a GPU\n\n{inventory(text)}\n\n"
        f"{len(hlo.kernels(text))} kernels; waits for the host: "
        f"{', '.join(waits) or 'none'}.\n"
    )


if __name__ == "__main__":
    cli.run(main)
