"""Microseconds that a call of a Program takes before the device computes.

    python -m tools.host_time deit_s --inside 0 65536 1000000000

Programs for one image of random weights, compiled one after another, each with what it
adds to the memory of the process, at most and in the end, and to JAX's cache. In their
place stands an executable of the same arguments that computes next to nothing, so that
a call takes its host's time alone. All calls take turns in one process.
"""

import dataclasses
import pathlib
import tempfile
import time
from unittest import mock

import jax
import numpy as np
import tyro

from imagepiece_jax import cli
from imagepiece_jax.benchmark.workloads import with_random_weights
from imagepiece_jax.common import timer
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.deploy.inference import optimize
from imagepiece_jax.models import registry
from imagepiece_jax.models.create import create_model

RULES = timer.Rules(warmup=50, repeats=101, seconds=0.002)
STATUS = pathlib.Path("/proc/self/status")  # of Linux


def main(
    size: tyro.conf.Positional[str],
    *,
    inside: tuple[int, ...] = (0, optimize.SMALL),
    dtype: str | None = None,
):
    """Time the host's part of a call for one image.

    Args:
        size: A public name.
        inside: Bytes of the largest array inside of a program; one or more.
        dtype: Of weights and layers.
    """
    vit = with_random_weights(create_model(registry.config(size)))
    built = []
    jobs = {}
    for limit in inside:
        with tempfile.TemporaryDirectory() as cache:
            options = {"dtype": dtype, "pixels": True, "cache_dir": cache}
            compiled = optimize.compiler(
                vit, optimize.CompileOptions(batch_size=1, **options)
            )
            before = memory(forget=True)
            with mock.patch.object(optimize, "SMALL", limit):
                program = compiled(1)
            after = memory()
            files = [path for path in pathlib.Path(cache).rglob("*") if path.is_file()]
            kept = sum(path.stat().st_size for path in files) / 1e6
        row = [limit, len(program.arguments), program.compile_seconds]
        row += [after["HWM"] - before["RSS"], after["RSS"] - before["RSS"], kept]
        built.append(row)
        for name, call in calls(program).items():
            jobs[limit, name] = timer.TimedCall(call)
    times = timer.measure(jobs, RULES, now=time.thread_time)
    weights = sum(array.nbytes for array in jax.tree.leaves(program.variables)) / 1e6
    print(f"{size}, {weights:.0f} MB of weights, {program.device.device_kind}\n")
    head = [
        "inside, bytes",
        "arguments",
        "compiled in, s",
        "MB at most",
        "MB in the end",
    ]
    print(markdown_table([*head, "MB in the cache"], [rounded(row) for row in built]))
    lines = []
    for (limit, name), seconds in times.items():
        low, middle, high = 1e6 * np.percentile(seconds, [10, 50, 90])
        lines.append([limit, name, f"{middle:.0f} [{low:.0f}, {high:.0f}]"])
    print(markdown_table(["inside, bytes", "call", "us [10 %, 90 %]"], lines))


def calls(program):
    """Functions of a number that call a program, by names."""

    def first_pixel(arguments, images):
        return images[:, 0, 0].astype(np.float32)

    def stand_in(arguments):
        run = jax.jit(first_pixel, keep_unused=True)
        return run.lower(arguments, program.images).compile()

    nested = stand_in(program.variables)
    alone = stand_in(program.arguments)
    program = dataclasses.replace(program, compiled=alone)
    on_host = np.random.default_rng(0).integers(0, 256, program.images.shape, np.uint8)
    images = jax.device_put(on_host, program.device)

    def put(number):
        return nested(program.variables, jax.device_put(on_host, program.device))

    return {
        "executable of all arrays, in dicts": lambda _: nested(
            program.variables, images
        ),
        "the same, device_put of NumPy's image": put,
        "executable": lambda _: alone(program.arguments, images),
        "Program": lambda _: program(images),
        "Program, NumPy's image": lambda _: program(on_host),
    }


def memory(forget=False):
    """MB that the process holds, RSS, and held at most, HWM.

    forget: whether the second counts from now on
    """
    if forget:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return {name: int(lines[f"Vm{name}"].split()[0]) / 1e3 for name in ("RSS", "HWM")}


def rounded(row):
    """Numbers as text, without digits that mean nothing."""
    return [f"{number:.1f}" if isinstance(number, float) else number for number in row]


if __name__ == "__main__":
    cli.run(main, compiles=False)
