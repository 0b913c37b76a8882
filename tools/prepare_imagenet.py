"""Prepare ImageNet for fast training: from its tars to a TFDS data set, once.

python -m tools.prepare_imagenet --source FOLDER --dir DIR [--short-side 256]

FOLDER holds one of

- ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
- folders train and val
- tars of the webdataset format, as in timm/imagenet-1k-wds on the Hugging Face hub
- parquet files with columns image and label, as in ILSVRC/imagenet-1k there
- imagenet2012 as TFDS itself writes it, in TFRECORD files

Tars and parquet files tell their split by the word train, validation or val in their
names; otherwise flags do: --train-files "part-0*.tar" --validation-files "part-1*.tar".
The result is TFDS's imagenet2012 in array_record files, which training reads with
--config.data.dir=DIR. TensorFlow is not needed, and a run that was stopped resumes.
Nothing is unpacked on the way but parquet files, whose images need as much room again
until the set is complete.
"""

import contextlib
import sys

from tqdm import tqdm

from imagepiece_jax import cli
from imagepiece_jax.common import machine, signals
from imagepiece_jax.errors import InputError
from tools.imagenet import scan, writer

SHORT_SIDES = (64, 1024)


def main(
    *,
    source: str,
    dir: str,
    train_files: str = "",
    validation_files: str = "",
    short_side: int = 0,
    processes: int | None = None,
    partial: bool = False,
):
    """Write TFDS's imagenet2012 from its tars, folders, parquet or TFRECORD files.

    Args:
        source: Folder of ImageNet.
        dir: Where the data set goes, as config.data.dir.
        train_files: Tars or parquet files of this split: a pattern of names in source.
        validation_files: Likewise.
        short_side: Shrink larger images to this short side, in pixels, which decode
            several times as fast; 0: keep the files as they are.
        processes: That write: one per core; 0: only this one.
        partial: Accept one split alone, or fewer images than ImageNet has.
    """
    data_dir = dir
    workers = processes
    low, high = SHORT_SIDES
    if short_side and not low <= short_side <= high:
        text = f"short_side is {short_side}; it must be 0, or {low} to {high} pixels"
        raise InputError(text)
    if workers is None:
        workers = machine.cores()
    note = writer.existing(data_dir)
    if note is None:
        writer.make_folder(data_dir)  # before minutes of looking for images
        patterns = {"train": train_files, "validation": validation_files}
        room = writer.room(data_dir, short_side)
        with signals.deferring(say_resumes):
            with progress("finding images") as advance:
                images = scan.find(source, partial, advance, workers, patterns, room)
            with progress("writing", sum(map(len, images.values()))) as advance:
                note = writer.write(images, data_dir, short_side, workers, advance)
    elif note["short_side"] != short_side:
        problem = f"has a complete set with --short_side {note['short_side']}"
        allowed = f"another folder for --short_side {short_side}"
        raise writer.refused(data_dir, problem, allowed)
    else:
        writer.clear(note["folder"])
    print(writer.summary(data_dir, note))


def say_resumes(signum):
    """Say what a signal leaves, and let the processes that write be ended."""
    print(scan.RESUMES, file=sys.stderr)
    raise KeyboardInterrupt


@contextlib.contextmanager
def progress(label, total=None):
    """A bar, in a log every 30 seconds; yields `advance` as `writer.write` takes it."""
    every = 0.1 if sys.stderr.isatty() else 30
    with tqdm(
        desc=label, total=total, unit=" images", mininterval=every, delay=every
    ) as bar:

        def advance(images, before=False):
            bar.initial += images * before  # they do not count for the speed
            bar.update(images)

        yield advance


if __name__ == "__main__":
    cli.run(main, compiles=False)
