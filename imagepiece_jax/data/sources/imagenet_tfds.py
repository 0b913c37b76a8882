"""imagenet2012: ImageNet-1k as prepared by TFDS, read without TensorFlow."""

import json
import os

from imagepiece_jax.common import extras
from imagepiece_jax.data.source import Source, check_num_classes
from imagepiece_jax.errors import InputError, RunError

NAME = "data set imagenet2012"
SPLITS = {"train": "train", "val": "validation"}
COUNTS = {"train": 1_281_167, "val": 50_000}  # published
OPEN_FILES = 4096  # TFDS keeps files open; ImageNet has 1,024 + 64


def open_imagenet(path, split, num_classes, labeled, class_names, data_dir):
    """Open a split of ImageNet; arguments and errors as for `open_source`."""
    extras.check_installed(NAME, "tensorflow_datasets")
    import tensorflow_datasets as tfds  # slow to import, and only this source needs it

    check_num_classes(num_classes, 1000, NAME)
    _allow_open_files()
    try:
        examples = tfds.data_source(
            "imagenet2012",
            split=SPLITS[split],
            data_dir=data_dir,
            download=False,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        examples[0]  # a missing or torn file shows only on reading
    except ImportError:
        raise
    except Exception as error:  # TFDS has no error of its own for "not prepared"
        where = data_dir or tfds.core.constants.DATA_DIR
        raise InputError(
            f"{where} has no complete array_record files of imagenet2012; `tfds build "
            "imagenet2012 --file_format=array_record` makes them from ImageNet's tars "
            "(docs/training.md)"
        ) from error
    return TfdsSource(examples)


class Counted(Source):
    """A split's published image count, for a plan without the data."""

    digest = "counted"

    def __init__(self, split: str, num_classes: int | None):
        check_num_classes(num_classes, 1000, NAME)
        super().__init__(COUNTS[split], 1000)

    def stored(self, store_index):
        raise RunError(f"the images of {NAME} are not on this machine")

    def try_first(self, transform, **options):
        """Do nothing: there is no image to try."""


def _allow_open_files():
    """Raise the soft limit on open files, for this process and its children."""
    import resource  # not at the top: Windows lacks it, and never reads these files

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = OPEN_FILES
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


class TfdsSource(Source):
    """Undecoded examples of `tfds.data_source`, with image, label and file_name."""

    upright = False  # published accuracies use ImageNet's images as stored

    def __init__(self, examples):
        names = examples.dataset_info.features["label"].names  # WordNet IDs
        super().__init__(len(examples), len(names), tuple(names))
        self._examples = examples

    def __setstate__(self, state):
        """Read an image in a new process, before it has threads."""
        vars(self).update(state)
        # TFDS imports modules on first use, and two importing threads wait for each
        # other.
        self._example(0)

    def stored(self, store_index):
        example = self._example(store_index)
        return example["image"], int(example["label"]), example["file_name"].decode()

    def inventory(self, indices):
        info = self._examples.dataset_info
        rows = []
        for file in info.splits[self._examples.split].file_instructions:
            name = os.path.basename(file.filename)
            rows.append([name, file.take, os.path.getsize(file.filename)])
        yield json.dumps(rows).encode()
        if self.part:
            yield indices.tobytes()

    def _example(self, index):
        try:
            return self._examples[index]
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"{NAME} cannot be read at {index} ({reason})") from error
