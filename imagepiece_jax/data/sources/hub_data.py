"""hf:OWNER/NAME and hf:FOLDER: images read by Hugging Face's `datasets`."""

import os

import numpy as np

from imagepiece_jax.common import extras
from imagepiece_jax.data.class_names import shortened
from imagepiece_jax.data.source import (
    SPLIT_NAMES,
    Source,
    check_num_classes,
    file_sizes,
    find_splits,
)
from imagepiece_jax.errors import InputError, NoLabels


def open_hub_data(path, split, num_classes, labeled, *_):
    """Open a split of hf:PATH; arguments and errors as for `open_source`."""
    data = f"hf:{path}"
    extras.check_installed(data, "datasets")
    import datasets  # slow to import, and only this source needs it

    # Errors for a broken file, or for several sets, are not OSErrors.
    mistakes = (ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    try:
        # Written once to the cache, as a file that processes map into memory.
        splits = datasets.load_dataset(os.path.expanduser(path))
    except mistakes as error:
        raise InputError(f"{data} cannot be opened: {one_line(error)}") from error
    name = find_splits(splits, data).get(split)
    if name is None:
        raise InputError(
            f"{data} has the splits {', '.join(splits)}; a split must be named "
            f"{', '.join(SPLIT_NAMES)}"
        )
    if not len(splits[name]):
        raise InputError(f"{data} has no row with split {name!r}")
    columns = ["image", "label"][: 1 + labeled]
    try:
        rows = splits[name].select_columns(columns)
        rows = rows.cast_column("image", datasets.Image(decode=False))
    except mistakes as error:
        missing = " and ".join(columns)
        kind = NoLabels if labeled else InputError
        raise kind(f"{data} has no {missing} ({one_line(error)})") from error
    if not labeled:
        return HubSource(rows, f"{data}/{name}", np.full(len(rows), -1), 0)
    labels = rows.select_columns("label").with_format("numpy")[:]["label"]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:  # also if some are missing
        raise InputError(f"{data} has labels that are not whole numbers")
    names = None
    classes = num_classes or int(labels.max()) + 1
    if isinstance(rows.features["label"], datasets.ClassLabel):
        names = shortened(tuple(rows.features["label"].names))
        classes = len(names)
    check_num_classes(num_classes, classes, data)
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"{data} has labels from {labels.min()} to {labels.max()}; they must be "
            f"from 0 to {classes - 1}"
        )
    source = HubSource(rows, f"{data}/{name}", labels, classes, names)
    source.split = name
    return source


def one_line(error):
    """Error text on one line."""
    return " ".join(str(error).split())


class HubSource(Source):
    """Rows of a `datasets.Dataset`; `title` (data and split) is in image names."""

    def __init__(self, rows, title, labels, num_classes, class_names=None):
        super().__init__(len(rows), num_classes, class_names)
        self._rows = rows
        self._title = title
        self.labels = np.asarray(labels, np.int32)

    def stored(self, store_index):
        # A row may lack an image.
        image = self._rows[store_index]["image"] or {"bytes": b""}
        data = image["bytes"]
        if data is None:  # a repository of image files
            data = image["path"] or b""  # empty bytes do not decode
        return data, int(self.labels[store_index]), f"{self._title}/{store_index}"

    def inventory(self, indices):
        import pyarrow.compute  # which `datasets` needs

        images = self._rows.data.column("image")
        files = pyarrow.compute.struct_field(images, "bytes")
        sizes = pyarrow.compute.binary_length(files).fill_null(-1).to_numpy()[indices]
        yield sizes.tobytes()
        yield self.labels[indices].tobytes()
        paths = pyarrow.compute.struct_field(images, "path").to_numpy()[indices]
        paths = [path for path in paths[sizes < 0] if path]  # image files
        if paths:
            names = [os.path.basename(path) for path in paths]
            yield "\0".join(names).encode(errors="surrogateescape")
            yield file_sizes(paths).tobytes()
