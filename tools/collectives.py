"""Collectives of a training step on hosts of eight H200s, compiled without a GPU.

python -m tools.collectives --config configs/deit_s.py --images 128,64,16 \
    --config configs/deit_s_imagepiece.py --markdown docs/collectives.md

Needs JAX's CUDA wheels (pip install "jax[cuda13]"), no GPU and no driver. Compiles the
step of each config for one host of eight at each number of images a GPU, lists what the
GPUs exchange, and calculates how long that would take on several hosts.
"""

import pathlib
import sys

import jax
from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.common.files import check_writable
from imagepiece_jax.errors import InputError
from tools import compile_only, exchange, h200, hlo

cli.define_config("a config file; several are listed one after the other")
IMAGES = flags.DEFINE_list("images", ["128"], "a GPU and step: one or more")
HOSTS = flags.DEFINE_list("hosts", ["1", "2", "8"], "of eight GPUs: one or more")
NVLINK = flags.DEFINE_float(
    "nvlink", 900, "GB/s of a GPU, both directions together", lower_bound=1
)
NETWORK = flags.DEFINE_float(
    "network", 50, "GB/s between hosts, a host and direction", lower_bound=1
)
LATENCY = flags.DEFINE_float(
    "latency", 20, "us of a collective within a host", lower_bound=0
)
FARTHER = flags.DEFINE_float(
    "network_latency", 50, "us that other hosts add to it", lower_bound=0
)
MARKDOWN = flags.DEFINE_string("markdown", None, "a file for the tables")

HEAD = """# Collectives of a training step

Written by `python -m tools.collectives`. Compiled for a host of eight NVIDIA H200s, not
run. The time of a step is a guess from bytes and products (see performance.md), that of
the collectives is calculated: rings, {nvlink:g} GB/s NVLink (half of it in each
direction), {network:g} GB/s between a host and the others, {latency:g} us a collective
and {farther:g} us more between hosts (assumed), none of it hidden behind other work.
"""


def main():
    configs = [(pathlib.Path(path).stem, c) for path, c in cli.configs()]
    images, hosts = _numbers(IMAGES), _numbers(HOSTS)
    if MARKDOWN.value:
        check_writable("--markdown", MARKDOWN.value)
    rates = NVLINK.value * 1e9 / 2, NETWORK.value * 1e9
    links = exchange.Links(*rates, LATENCY.value * 1e-6, FARTHER.value * 1e-6)
    jax.config.update("jax_platforms", "cpu")  # a GPU that is there is left alone
    h200.device()  # before JAX is used otherwise
    head = HEAD.format(
        nvlink=NVLINK.value,
        network=NETWORK.value,
        latency=LATENCY.value,
        farther=FARTHER.value,
    )
    parts, rows = [head], [exchange.PLAN_HEADING]
    for name, config in configs:
        for count in images:
            config.batch_size = exchange.GPUS * count
            text = compile_only.train_text(config, exchange.GPUS)
            rows.append(exchange.plan(name, text, count, hosts, links))
            if count == images[0]:
                parts.append(_section(name, count, text))
            print(f"{name}, {count} images a GPU: compiled", file=sys.stderr)
    parts.append("## Hosts\n\n" + "\n".join(rows))
    report = "\n".join(parts) + "\n"
    print(report)
    if MARKDOWN.value:
        pathlib.Path(MARKDOWN.value).write_text(report, "utf-8")


def _numbers(holder):
    if not all(word.isdigit() and int(word) for word in holder.value):
        raise InputError(
            f"--{holder.name} is {','.join(holder.value)!r}; allowed are whole numbers "
            "from 1, such as 1,2,8"
        )
    return [int(word) for word in holder.value]


def _section(name, images, text):
    waits = hlo.host_waits(text)
    return (
        f"## {name}, {images} images a GPU\n\n{exchange.inventory(text)}\n\n"
        f"{len(hlo.kernels(text))} kernels; waits for the host: "
        f"{', '.join(waits) or 'none'}.\n"
    )


if __name__ == "__main__":
    cli.run(main)
