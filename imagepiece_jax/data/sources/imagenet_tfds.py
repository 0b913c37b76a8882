"""imagenet2012: ImageNet-1k as prepared by TFDS, read without TensorFlow."""

import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from imagepiece_jax.common import extras
from imagepiece_jax.data import source
from imagepiece_jax.errors import InputError, RunError

IMAGENET_NAME = "data set imagenet2012"
TFDS_SPLIT_NAMES = {"train": "train", "val": "validation"}
IMAGE_COUNTS = {"train": 1_281_167, "val": 50_000}  # published
OPEN_FILE_LIMIT = 4096  # TFDS keeps files open; ImageNet has 1,024 + 64


def open_imagenet(path: str, request: source.SplitRequest) -> "TfdsSource":
    """Open a split of ImageNet from `request.data_dir`; the name has no `path`."""
    extras.check_installed(IMAGENET_NAME, "tensorflow_datasets")
    import tensorflow_datasets as tfds  # slow to import, and only this source needs it

    source.check_num_classes(request.num_classes, 1000, IMAGENET_NAME)
    _raise_file_limit()  # TFDS keeps every shard open
    try:
        examples: Any = tfds.data_source(
            "imagenet2012",
            split=TFDS_SPLIT_NAMES[request.split],
            data_dir=request.data_dir,
            download=False,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        examples[0]  # a missing or torn file shows only on reading
    except ImportError:  # a library is missing, not the data
        raise
    except Exception as error:  # TFDS has no error of its own for "not prepared"
        folder = request.data_dir or tfds.core.constants.DATA_DIR
        raise InputError(
            f"{folder} has no complete array_record files of imagenet2012; `tfds build "
            "imagenet2012 --file_format=array_record` makes them (docs/training.md)"
        ) from error
    return TfdsSource(examples)


class CountedSource(source.Source):
    """A split's published image count, for a plan without the data."""

    digest = "counted"

    def __init__(self, split: str, num_classes: int | None) -> None:
        source.check_num_classes(num_classes, 1000, IMAGENET_NAME)
        super().__init__(IMAGE_COUNTS[split], 1000)

    def stored_image(self, store_index: int) -> source.StoredImage:
        raise RunError(f"the images of {IMAGENET_NAME} are not on this machine")


def _raise_file_limit():
    """Raise the soft limit on open files, for this process and its children."""
    import resource  # not at the top: Windows lacks it, and never reads these files

    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft_limit < OPEN_FILE_LIMIT:  # -1: no limit
        limit = OPEN_FILE_LIMIT if hard_limit < 0 else min(OPEN_FILE_LIMIT, hard_limit)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard_limit))


class TfdsSource(source.Source):
    """Undecoded examples of `tfds.data_source`, with image, label and file_name."""

    upright = False  # published accuracies use ImageNet's images as stored

    def __init__(self, examples: Any) -> None:
        wordnet_ids = examples.dataset_info.features["label"].names
        super().__init__(len(examples), len(wordnet_ids), tuple(wordnet_ids))
        self._examples = examples

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read an image in a new process, before it has threads."""
        vars(self).update(state)
        # TFDS imports modules on first use, and two importing threads wait for each
        # other.
        self._read_example(0)

    def stored_image(self, store_index: int) -> source.StoredImage:
        example = self._read_example(store_index)
        return example["image"], int(example["label"]), example["file_name"].decode()

    def identity_bytes(self, indices: np.ndarray) -> Iterator[bytes]:
        dataset_info = self._examples.dataset_info
        file_entries = []
        for file in dataset_info.splits[self._examples.split].file_instructions:
            name = os.path.basename(file.filename)
            file_entries.append([name, file.take, os.path.getsize(file.filename)])
        yield json.dumps(file_entries).encode()
        if self.subset_record:
            yield indices.tobytes()

    def _read_example(self, store_index):
        try:
            return self._examples[store_index]
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            problem = f"{IMAGENET_NAME} cannot be read at {store_index}"
            raise RunError(f"{problem} ({reason})") from error
