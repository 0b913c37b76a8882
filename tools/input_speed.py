"""Benchmark of the input: images a second of one core, and of the loader.

python -m tools.input_speed --data folder:PATH

Input pipelines take turns over the same files with one core and one thread; images/s
are per second of that core's time, so that other work on the machine does not count.
They are what PyTorch users have (Pillow: decode, random resized crop, flip; timm's own
code with RandAugment too where it is installed) and ours, which leaves RandAugment to
the device. The files are the data set's and a temporary copy at short
side 256, as `python -m imagepiece_jax prepare --short_side 256` makes it.

Then the loader reads with all its processes: images/s of the clock, and memory.
"""

import json
import os
import pathlib
import re
import tempfile

from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.common.files import check_writable, replace_file
from imagepiece_jax.errors import InputError

DATA = cli.data()
DIR = flags.DEFINE_string("data_dir", None, "where imagenet2012 is prepared")
IMAGES = flags.DEFINE_integer(
    "images", None, "so many, spread over the set; default: 200", 1, allow_override=True
)
ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "turns of every pipeline: their median counts", 1
)
SIZE = flags.DEFINE_integer("image_size", 224, "pixels a side of a crop", 1)
CANVAS = flags.DEFINE_integer("canvas", 384, "pixels a side for crops on the device", 1)
COPIES = flags.DEFINE_integer("copies", 3, "of an image, for repeated augmentation", 1)
WORKERS = flags.DEFINE_integer("workers", os.cpu_count(), "processes of the loader", 0)
THREADS = flags.DEFINE_integer("threads", 2, "in each of them", 0)
SECONDS = flags.DEFINE_float("seconds", 10, "of the loader each time; 0: leave out", 0)
RESAVE = flags.DEFINE_string(
    "resave",
    None,
    "WIDTHxHEIGHT:KB, such as 500x375:110 (about ImageNet's means): make JPEGs of this "
    "size, so large on average, from the images, and use them instead",
)
JSON = flags.DEFINE_string("json", None, "also write the results to this file")
SHORT_SIDE = 256


def main():
    # They import JAX: after the flags.
    from imagepiece_jax.data import sources
    from tools import input_pipelines

    cli.finite(SECONDS)
    data = cli.required(DATA)
    if JSON.value:
        check_writable("--json", JSON.value, sources.own_files(data))
    size, kilobytes = _resave(RESAVE.value) if RESAVE.value else (None, None)
    # A CSV file may have test images alone, and any images will do.
    split = "val" if data.startswith("csv:") else "train"
    source = sources.open_source(data, split, data_dir=DIR.value)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        files, small = folder / "as they are", folder / "short side"
        count, mean_bytes = IMAGES.value or 200, 1000 * (kilobytes or 0)
        paths = input_pipelines.save(source, count, files, size, mean_bytes)
        sets = {
            "as they are": paths,
            f"short side {SHORT_SIDE}": input_pipelines.shrink(
                paths, small, SHORT_SIDE
            ),
        }
        sizes = (SIZE.value, CANVAS.value, COPIES.value)
        rows = input_pipelines.compare(sets, *sizes, ROUNDS.value)
        if SECONDS.value:
            readers = (WORKERS.value, THREADS.value)
            rows += input_pipelines.compare_loader(
                sets, *sizes, *readers, SECONDS.value
            )
    if JSON.value:
        text = json.dumps(rows, indent=2) + "\n"
        replace_file(JSON.value, text)


def _resave(text):
    found = re.fullmatch(r"(\d+)x(\d+):(\d+)", text)
    if not found or not all(map(int, found.groups())):
        raise InputError(
            f"--resave is {text!r}; allowed is WIDTHxHEIGHT:KB, such as 500x375:110"
        )
    width, height, kilobytes = map(int, found.groups())
    return (width, height), kilobytes


if __name__ == "__main__":
    cli.run(main, compiles=False)
