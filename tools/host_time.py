"""Microseconds of the host in a Program's call, by the size of arrays inside it.

    python -m tools.host_time deit_small_patch16_224 --inside 0 65536 1000000000

Programs have random weights and one image, in the order of --inside. A row has the peak
of additional memory while its program compiled (later ones reuse freed memory; this
needs a Linux whose /proc can be written), and its addition to JAX's cache. The clock
times a stand-in executable of the same arguments, which computes next to nothing. Times
are the calling thread's, which other processes disturb less: the median of turns, and
the 10th and 90th percentile. The last row passes all arrays in dicts, and puts images
on the device.
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
from imagepiece_jax.inference import optimize
from imagepiece_jax.models import registry
from imagepiece_jax.models.create import create_model

STATUS = pathlib.Path("/proc/self/status")
RULES = timer.Timing(warmup=50, repeats=201, seconds=0.002)
HEAD = ["inside, up to", "arguments", "compiled in, s", "MB at most", "MB cached"]
CALLS = ["executable, us", "Program, us", "Program, image of NumPy, us"]


def main(
    name: tyro.conf.Positional[str],
    *,
    inside: tuple[int, ...] = (0, optimize.SMALL_WEIGHT),
    dtype: str | None = None,
):
    """Time the host's part of a call for one image.

    Args:
        name: A public name.
        inside: Bytes of the largest array inside of a program; one or more.
        dtype: Of weights and layers.
    """
    rows = {}
    jobs = {}
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        vit = with_random_weights(create_model(registry.model_config(name)))
        compile_for = optimize.make_program_compiler(vit, dtype=dtype, pixels=True)
        compile_for(2)  # loads what all programs share
        for limit in inside:
            with mock.patch.object(optimize, "SMALL_WEIGHT", limit):
                program, *facts = compile_program(compile_for, pathlib.Path(cache))
            rows[limit] = [limit, len(program.arguments), *facts]
            for title, call in program_calls(program).items():
                jobs[limit, title] = timer.TimedCall(call)
        # pyrefly: ignore[unbound-name]  (inside has an entry)
        arrays = jax.tree.leaves(program.variables)
        rows["dicts"] = ["all in dicts", len(arrays), *[None] * (len(HEAD) - 2)]
        for title, call in program_calls(program, former=True).items():
            jobs["dicts", title] = timer.TimedCall(call)
    times = timer.time_in_turns(jobs, RULES, read_clock=time.thread_time)
    for (key, _), seconds in times.items():
        low, median, high = 1e6 * np.percentile(seconds, [10, 50, 90])
        rows[key].append(f"{median:.0f} [{low:.0f}, {high:.0f}]")
    megabytes = sum(array.nbytes for array in arrays) / 1e6
    print(f"{name}, {megabytes:.0f} MB of weights, {program.device.device_kind}\n")
    print(markdown_table([*HEAD, *CALLS], rows.values()))


def compile_program(compile_for, cache):
    """A program, its seconds of compilation, its peak MB, and its MB in the cache."""
    STATUS.with_name("clear_refs").write_text("5")  # forgets the largest size
    before = process_megabytes("VmRSS"), folder_megabytes(cache)
    program = compile_for(1)
    after = process_megabytes("VmHWM"), folder_megabytes(cache)
    numbers = [program.compile_seconds, *np.subtract(after, before)]
    return program, *[f"{number:.1f}" for number in numbers]


def folder_megabytes(folder):
    """MB of the files of a folder."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def process_megabytes(field):
    """MB of the process: VmRSS, now, or VmHWM, at most."""
    lines = STATUS.read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[field].split()[0]) / 1e3


def program_calls(program, former=False):
    """Functions of a number that call a program, in the order of CALLS, by names.

    former: pass all arrays in dicts, and put images on the device
    """
    shape = program.input_spec.shape
    on_host = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    on_device = jax.device_put(on_host, program.device)
    arguments = program.variables if former else program.arguments

    def first_pixel(arguments, images):
        return images[:, 0, 0].astype(np.float32)

    run = jax.jit(first_pixel, keep_unused=True)
    run = run.lower(arguments, program.input_spec).compile()
    call = dataclasses.replace(program, compiled=run)
    if former:

        def call(images):
            return run(arguments, jax.device_put(images, program.device))

    executable, resident, of_numpy = CALLS
    return {
        executable: lambda number: run(arguments, on_device),
        resident: lambda number: call(on_device),
        of_numpy: lambda number: call(on_host),
    }


if __name__ == "__main__":
    cli.run_command(main, keeps_programs=False)
