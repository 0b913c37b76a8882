"""How many images a second does one core of this host make ready, and do all of them?

python -m imagepiece_jax.benchmark.input --data folder:PATH

Each way of reading takes its turn over the same files with one core and one thread;
images/s are per second of that core's time, so that other work on the machine does not
count. The ways are what PyTorch users have (Pillow: decode, random resized crop, flip,
RandAugment; timm's own code too where it is installed) and ours, which leaves the
augmentation to the device. The files are the data set's and a temporary copy at short
side 256, as `python -m imagepiece_jax.prepare --short_side 256` makes it.

Then the loader reads with all its processes: images/s of the clock, and memory.
"""

import json
import os
import pathlib
import re
import tempfile

import numpy as np
from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.benchmark import input_ways
from imagepiece_jax.common.files import check_writable, replace_file
from imagepiece_jax.data import sources, transforms
from imagepiece_jax.errors import InputError

DATA = flags.DEFINE_string("data", None, "folder:PATH, csv:FILE or imagenet2012")
DIR = flags.DEFINE_string("data_dir", None, "where imagenet2012 is prepared")
IMAGES = flags.DEFINE_integer(
    "images", None, "so many, spread over the set; default: 200", 1, allow_override=True
)
ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "turns of every way: their median is told", 1
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
        paths = input_ways.save(
            source,
            IMAGES.value or 200,
            folder / "as they are",
            size,
            1000 * (kilobytes or 0),
        )
        small = input_ways.shrink(paths, folder / "short side", SHORT_SIDE)
        sets = {"as they are": paths, f"short side {SHORT_SIDE}": small}
        rows = _core(sets)
        if SECONDS.value:
            rows += _loader(sets)
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


def _core(sets):
    """Print and return what one core does on each set of files."""
    found = input_ways.ways(SIZE.value, CANVAS.value, COPIES.value)
    rates = input_ways.rates(sets, found, ROUNDS.value)
    base = np.array(next(iter(rates.values()))[input_ways.BASE])
    rows = []
    for files, paths in sets.items():
        kilobytes = np.mean([os.path.getsize(path) for path in paths]) / 1000
        print(
            f"\nfiles {files}: {len(paths)} of {kilobytes:.0f} KB on average\n"
            f"{'one core, images/s':50}{'median':>8}{'lowest':>8}{'highest':>8}  ratio"
        )
        for way, values in rates[files].items():
            row = {"files": files, "kilobytes": kilobytes, "way": way}
            row |= {"lowest": min(values), "highest": max(values)}
            row |= {"median": np.median(values), "ratio": np.median(values / base)}
            rows.append(row)
            print(
                f"{way:50}{row['median']:8,.0f}{row['lowest']:8,.0f}"
                f"{row['highest']:8,.0f}  {row['ratio']:.2f}"
            )
    print(f"ratio: to {input_ways.BASE!r} on the files as they are, round by round")
    return rows


def _loader(sets):
    """Print and return what the loader does with all its processes."""
    rows = []
    print(f"\nloader with {WORKERS.value} processes of {THREADS.value} threads")
    for files, paths in sets.items():
        for transform, repeats in (
            (transforms.TrainTransform(SIZE.value), 1),
            (transforms.TrainTransform(SIZE.value), COPIES.value),
            (transforms.CanvasTransform(CANVAS.value), COPIES.value),
        ):
            rate, memory = input_ways.read_all(
                paths,
                transform,
                repeats=repeats,
                workers=WORKERS.value,
                threads=THREADS.value,
                seconds=SECONDS.value,
            )
            kind = type(transform).__name__
            row = {"files": files, "way": f"loader: {kind}, {repeats} copies"}
            rows.append(row | {"images_per_s": rate, "memory_mb": memory})
            held = "" if None in memory else f", {max(memory):,.0f} MB at most"
            print(f"{files}, {kind}, {repeats} copies: {rate:,.0f} images/s{held}")
    return rows


if __name__ == "__main__":
    cli.run(main)
