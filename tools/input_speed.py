"""Benchmark of the input: images a second of one core.

python -m tools.input_speed --data folder:PATH

Input pipelines take turns over the same files with one core and one thread; images/s
are per second of that core's time, so that other work on the machine does not count.
They are what PyTorch users have (Pillow: decode, random resized crop, flip; timm's own
code with RandAugment too where it is installed) and ours, which leaves RandAugment to
the device. The files are the data set's and a temporary copy at short
side 256, as `python -m tools.prepare_imagenet --short-side 256` makes it.
"""

import contextlib
import io
import os
import pathlib
import tempfile
import time

import numpy as np
from PIL import Image

from configs import base
from imagepiece_jax import cli
from imagepiece_jax.common import signals
from imagepiece_jax.common.files import check_writable, write_json
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.data import train_crop
from imagepiece_jax.data.decode import UnreadableImage, decode
from imagepiece_jax.errors import InputError
from imagepiece_jax.input import registry
from tools.imagenet import writer

SHORT_SIDE = 256
BASE = "Pillow: decode, crop, flip"


def main(
    *,
    data: str,
    data_dir: str | None = None,
    subset: int = 200,
    rounds: int = 5,
    side: int = 224,
    copies: int = 3,
    json: str | None = None,
):
    """Time input pipelines in turns, on one core.

    Args:
        data: A folder of images for each class, csv:FILE, imagenet2012 or digits.
        data_dir: Where imagenet2012 is prepared.
        subset: Images of the data, evenly spaced.
        rounds: Turns of every pipeline: their median counts.
        side: Pixels a side of a crop.
        copies: Of an image, for repeated augmentation.
        json: Also write the results to this file.
    """
    if json:
        check_writable("json", json, [".json"], registry.own_files(data))
    # A CSV file may have test images alone, and any images will do.
    split = "val" if data.startswith("csv:") else "train"
    source = registry.open_source(data, split, data_dir=data_dir)
    with tempfile.TemporaryDirectory() as folder, signals.unfinished(folder):
        folder = pathlib.Path(folder)
        files = folder / "as they are"
        small = folder / "short side"
        paths = save(source, subset, files)
        sets = {
            "as they are": paths,
            f"short side {SHORT_SIDE}": shrink(paths, small, SHORT_SIDE),
        }
        rows = compare(sets, side, copies, rounds)
    if json:
        write_json(json, rows)


def compare(sets, size, copies, rounds):
    """Print and return images/s of one core: a row for each pipeline and set of files.

    sets: {name: paths of files}
    size, copies: of the images that pipelines make
    """
    measured = rates(sets, pipelines(size, copies), rounds)
    base = np.array(next(iter(measured.values()))[BASE])
    rows = []
    for files, paths in sets.items():
        kilobytes = np.mean([os.path.getsize(path) for path in paths]) / 1000
        print(
            f"\nfiles {files}: {len(paths)} of {kilobytes:.0f} KB on average\n"
            f"{'one core, images/s':50}{'median':>8}{'lowest':>8}{'highest':>8}  ratio"
        )
        for name, values in measured[files].items():
            row = {"files": files, "kilobytes": kilobytes, "way": name}
            row |= {"lowest": min(values), "highest": max(values)}
            row |= {"median": np.median(values), "ratio": np.median(values / base)}
            rows.append(row)
            print(
                f"{name:50}{row['median']:8,.0f}{row['lowest']:8,.0f}"
                f"{row['highest']:8,.0f}  {row['ratio']:.2f}"
            )
    print(f"ratio: to {BASE!r} on the files as they are, round by round")
    return rows


def pipelines(size, copies):
    """{name: (function of a path and a random generator, images that it makes)}."""
    crop = _crop(size)

    def ours(transform, times):
        def make(path, rng):
            image = decode(path, path)
            return [transform(image, rng) for _ in range(times)]

        return make

    def pillow(flip):
        return lambda path, rng: _pillow(path, rng, size, flip)

    return {
        "Pillow: decode": (lambda path, rng: _open_image(path), 1),
        "Pillow: decode, crop": (pillow(False), 1),
        BASE: (pillow(True), 1),
        **_timm(size),
        "ours: decode": (lambda path, rng: decode(path, path), 1),
        "ours: decode, crop, flip": (ours(crop, 1), 1),
        f"ours: decode; crop, flip {copies} times": (ours(crop, copies), copies),
    }


def _crop(size):
    """The training transform of configs/base.py."""
    return RunConfig.from_config(base.get_config()).data.train_transform(size)


def _open_image(path):
    return Image.open(path).convert("RGB")


def _pillow(path, rng, size, flip):
    """torchvision's pipeline with Pillow; the generator is NumPy's."""
    picture = _open_image(path)
    top, left, height, width = train_crop.crop_box(
        picture.height, picture.width, rng, _crop(size).area
    )
    picture = picture.crop((left, top, left + width, top + height))
    picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    if flip and rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture)


def _timm(size):
    """timm's own code, where it is installed; without its conversion to tensors."""
    try:
        from timm.data import create_transform
    except ImportError:
        return {}
    transform = create_transform(
        size,
        is_training=True,
        use_prefetcher=True,
        color_jitter=None,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
    )

    def make(path, rng):
        with contextlib.suppress(ValueError):  # Pillow 13 refuses a posterize to 0 bits
            return transform(_open_image(path))

    return {"timm: decode, crop, flip, RandAugment": (make, 1)}


def rates(sets, compared, rounds):
    """Images/s of one core's time: [set][pipeline] -> one for each round.

    The process is held on one core, and everything takes its turn in every round.
    """
    rng = np.random.default_rng(0)
    result = {files: {name: [] for name in compared} for files in sets}
    with _one_core():
        for _ in range(rounds):
            for files, paths in sets.items():
                for name, (make, images) in compared.items():
                    began = time.thread_time()
                    for path in paths:
                        make(path, rng)
                    seconds = time.thread_time() - began
                    result[files][name].append(images * len(paths) / seconds)
    return result


@contextlib.contextmanager
def _one_core():
    """Context in which this process runs on one core."""
    if not hasattr(os, "sched_setaffinity"):  # only Linux can
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def save(source, count, folder):
    """Write `count` images of `source`, spread over it, as they are; return the paths.

    Raises InputError where no image can be read.
    """
    folder.mkdir()
    count = min(count, len(source))
    chosen = [i * len(source) // count for i in range(count)]
    stored = [data for i in chosen if (data := _readable(source, i)) is not None]
    if not stored:
        raise InputError(f"--data has {count} images, none of which can be read")
    return _write(folder, stored)


def shrink(paths, folder, short_side):
    """Write the images of `paths` as the prepare command stores them; return paths."""
    folder.mkdir()
    read = (pathlib.Path(path).read_bytes() for path in paths)
    return _write(folder, [writer.encode(data, "image", short_side) for data in read])


def _write(folder, stored):
    paths = [str(folder / f"{number}.jpg") for number in range(len(stored))]
    for path, data in zip(paths, stored, strict=True):
        pathlib.Path(path).write_bytes(data)
    return paths


def _readable(source, index):
    data = source.encoded(index)
    try:
        decode(io.BytesIO(data), source.name(index))
    except UnreadableImage:
        return None
    return data


if __name__ == "__main__":
    cli.run(main, compiles=False)
