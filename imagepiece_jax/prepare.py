"""How does ImageNet become a data set that trains fast? From its tars, once.

python -m imagepiece_jax.prepare --source FOLDER_OF_TARS --dir DIR [--short_side 256]

FOLDER_OF_TARS holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or folders
train and val, or imagenet2012 as TFDS itself writes it, in TFRECORD files. The result
is TFDS's imagenet2012 in array_record files, which training reads with
--config.data.dir=DIR. Nothing is unpacked on the way, TensorFlow is not needed, and a
run that was stopped goes on where it was.
"""

import contextlib
import os
import sys
import time

from absl import flags
from tqdm import tqdm

from imagepiece_jax import cli
from imagepiece_jax.errors import InputError

SHORT_SIDES = (64, 1024)
EVERY = 30  # seconds between lines where no bar can be shown

SOURCE = flags.DEFINE_string(
    "source",
    None,
    "folder of the ILSVRC2012 tars, of train and val, or of TFDS's TFRECORD files",
)
DIR = flags.DEFINE_string("dir", None, "where the data set goes, as config.data.dir")
SHORT_SIDE = flags.DEFINE_integer(
    "short_side",
    0,
    "shrink larger images to this short side, in pixels, which decode several times as "
    "fast; 0: keep the files as they are",
)
PROCESSES = flags.DEFINE_integer(
    "processes", None, "that write; 0: this one does; default: one a core"
)
PARTIAL = flags.DEFINE_bool(
    "partial", False, "accept one split alone, or fewer images than ImageNet has"
)


def main():
    source, data_dir = cli.required(SOURCE), os.path.expanduser(cli.required(DIR))
    short_side, workers = SHORT_SIDE.value, PROCESSES.value
    if short_side and not SHORT_SIDES[0] <= short_side <= SHORT_SIDES[1]:
        raise InputError(
            f"--short_side is {short_side}: allowed are 0 and {SHORT_SIDES[0]} to "
            f"{SHORT_SIDES[1]} pixels"
        )
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if workers < 0:
        raise InputError(f"--processes is {workers}: allowed are whole numbers from 0")
    from imagepiece_jax.data.imagenet import scan, shards, writer

    note = writer.existing(data_dir)
    if note is None:
        writer.make_folder(data_dir)  # before minutes of looking for images
        with progress("finding images") as advance:
            images = scan.find(source, PARTIAL.value, advance, workers)
        try:
            with progress("writing", sum(map(len, images.values()))) as advance:
                note = writer.write(images, data_dir, short_side, workers, advance)
        except KeyboardInterrupt:
            print(shards.GO_ON, file=sys.stderr)
            raise
    elif note["short_side"] != short_side:
        raise InputError(
            f"--dir {data_dir} holds a complete set with --short_side "
            f"{note['short_side']}, asked for is {short_side}: choose another --dir"
        )
    print(summary(data_dir, note))


def summary(data_dir, note):
    """What a complete set holds, and how to use it."""
    rows = [("complete", note["folder"])]
    for split, (images, files, size) in note["splits"].items():
        text = f"{images:,} images in {files} files, {tqdm.format_sizeof(size, 'B')}"
        rows.append((split, text))
    if note["short_side"]:
        text = f"at most {note['short_side']} pixels, JPEG quality {note['quality']}"
        rows.append(("short side", text))
    if note["reencoded"]:
        rows.append(("re-encoded", f"{note['reencoded']:,} images"))
    if note["left_out"]:
        names = ", ".join(note["left_out"])
        rows.append(("damaged", f"{len(note['left_out'])} images left out: {names}"))
    missing = [name for name in ("train", "validation") if name not in note["splits"]]
    if missing:
        rows += [
            (name, "missing: nothing can be trained on this set") for name in missing
        ]
        return _lined_up(rows)
    words = f"--config.data.name=imagenet2012 --config.data.dir={data_dir}"
    rows.append(("train with", words))
    return _lined_up(rows)


def _lined_up(rows):
    return "\n".join(f"{name:12s} {text}" for name, text in rows)


@contextlib.contextmanager
def progress(what, total=None):
    """Shows how far, and the time left: a bar, or lines where nobody watches.

    Gives a function to tell numbers of images to; those of an earlier run are told with
    `before=True` and do not count for the speed.
    """
    bar = tqdm(desc=what, total=total, unit=" images", dynamic_ncols=True, disable=None)
    start = told = time.monotonic()
    done = initial = 0

    def advance(images, before=False):
        nonlocal done, initial, told
        done += images
        if before:
            initial = bar.initial = bar.n = bar.last_print_n = done
            return
        bar.update(images)
        if bar.disable and (time.monotonic() - told > EVERY or done == total):
            told = time.monotonic()
            line = tqdm.format_meter(
                done, total, told - start, 0, what, unit=" images", initial=initial
            )
            print(line, file=sys.stderr, flush=True)

    with bar:
        yield advance


if __name__ == "__main__":
    cli.run(main)
