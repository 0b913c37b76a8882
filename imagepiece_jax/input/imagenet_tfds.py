"""imagenet2012, ImageNet-1k as TFDS's array_record files."""

import functools
import io
import logging
import sys

from imagepiece_jax.common import extras
from imagepiece_jax.data import decode
from imagepiece_jax.data.source import Source, check_num_classes
from imagepiece_jax.errors import InputError
from imagepiece_jax.input import records

NAME = "data set imagenet2012"

log = logging.getLogger("imagepiece_jax.data")


def open_imagenet(split, num_classes, data_dir):
    """The images of a split of ImageNet, with arguments and errors of `open_source`."""
    if sys.platform == "win32":
        raise InputError(
            f"{NAME} cannot be read on Windows, which has no array_record; take "
            "folder:PATH there"
        )
    extras.check(NAME, "tensorflow_datasets", "array_record")
    import tensorflow_datasets as tfds  # slow to import, and only this source needs it

    check_num_classes(num_classes, 1000, NAME)
    tfds_split = {"train": "train", "val": "validation"}[split]
    try:
        builder = tfds.builder(
            "imagenet2012", data_dir=data_dir, file_format="array_record"
        )
        if builder.info.splits and tfds_split not in builder.info.splits:
            raise InputError(
                f"{builder.data_path} has no split {tfds_split}; prepare both into a "
                "new folder"
            )
        files = builder.info.splits[tfds_split].file_instructions
        stored = records.ArrayRecords([(file.filename, file.take) for file in files])
        names = builder.info.features["label"].names  # WordNet IDs
        source = RecordSource(stored, 1000, tuple(names))
        source.encoded(0)  # a missing or torn file shows only when it is read
    except InputError:
        raise
    except Exception as error:  # TFDS has no error of its own for "not prepared"
        where = data_dir or tfds.core.constants.DATA_DIR
        raise InputError(
            f"{where} has no complete array_record files of imagenet2012; `python -m "
            "tools.prepare_imagenet`, in a clone of the repository, makes them from "
            "ImageNet's tar or parquet files"
        ) from error
    note = dict(builder.info.metadata.items())
    if note.get("short_side"):
        _warn_shrunk(builder.data_path, note["short_side"])
    return source


class RecordSource(Source):
    """Records of TFDS's imagenet2012: serialized examples with encoded images."""

    def __init__(self, serialized, num_classes, class_names=None):
        super().__init__(num_classes, class_names)
        self.serialized = serialized

    def __len__(self):
        return len(self.serialized)

    def read(self, index):
        features = self._features(index)
        (label,) = features["label"].int64_list.value
        file = io.BytesIO(_bytes(features, "image"))
        pixels = decode.decode(file, _file_name(features))
        return pixels, label

    def name(self, index):
        return _file_name(self._features(index))

    def encoded(self, index):
        return _bytes(self._features(index), "image")

    def inventory(self, indices):
        yield self.serialized.inventory()
        if len(indices) < len(self):
            yield indices.tobytes()

    def content(self, index):
        return self.serialized[index]

    def _features(self, index):
        return records.parse_example(self.serialized[index])


def _file_name(features):
    return _bytes(features, "file_name").decode()


def _bytes(features, name):
    """The one value of a feature that holds bytes."""
    (value,) = features[name].bytes_list.value
    return value


@functools.cache  # once, though a run opens two splits
def _warn_shrunk(folder, short_side):
    log.warning(
        "%s: images are not ImageNet's files but shrunk to short side %d",
        folder,
        short_side,
    )
