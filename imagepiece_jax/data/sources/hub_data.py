"""hf:OWNER/NAME and hf:FOLDER: images read by Hugging Face's `datasets`."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike

from imagepiece_jax.common import extras
from imagepiece_jax.data import source
from imagepiece_jax.data.class_names import shorten_imagenet_names
from imagepiece_jax.errors import InputError, NoLabels


def open_hub_data(path: str, request: source.SplitRequest) -> "HubSource":
    """Open a split of hf:PATH."""
    title = f"hf:{path}"
    extras.check_installed(title, "datasets")
    # pyrefly: ignore[missing-import]
    import datasets  # slow to import, and only this source needs it

    # Errors for a broken file, or for several sets, are not OSErrors.
    data_errors = (ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    try:
        # Written once to the cache, as a file that processes map into memory.
        splits = datasets.load_dataset(path)
    except data_errors as error:
        raise InputError(f"{title} cannot be opened: {one_line(error)}") from error
    split_name = source.find_splits(splits, title).get(request.split)
    if split_name is None or not len(splits[split_name]):
        split_names = ", ".join(splits)
        raise InputError(f"{title} has {split_names}, and no row for {request.split}")
    columns = ["image", "label"] if request.labeled else ["image"]
    try:
        rows = splits[split_name].select_columns(columns)
        rows = rows.cast_column("image", datasets.Image(decode=False))
    except data_errors as error:
        error_type = NoLabels if request.labeled else InputError
        raise error_type(f"{title} needs {columns}: {one_line(error)}") from error
    split_title = f"{title}/{split_name}"
    if not request.labeled:
        return HubSource(rows, split_title, np.full(len(rows), -1), 0)  # -1: no label
    labels = rows.select_columns("label").with_format("numpy")[:]["label"]
    class_names = None
    # A missing label makes all of them floats.
    are_integers = labels.dtype.kind in "iu" and labels.ndim == 1  # u: unsigned
    num_classes = request.num_classes or (int(labels.max()) + 1 if are_integers else 0)
    if isinstance(rows.features["label"], datasets.ClassLabel):
        stored_names = tuple(rows.features["label"].names)
        class_names = shorten_imagenet_names(stored_names)
        num_classes = len(stored_names)
    source.check_num_classes(request.num_classes, num_classes, title)
    if not are_integers or labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(f"{title} has labels other than 0 to {num_classes - 1}")
    hub_source = HubSource(rows, split_title, labels, num_classes, class_names)
    hub_source.split = split_name
    return hub_source


def one_line(error: Exception) -> str:
    """Error text on one line."""
    return " ".join(str(error).split())


class HubSource(source.Source):
    """Rows of a `datasets.Dataset`; `title` (data and split) is in image names."""

    def __init__(self, rows: Any, title: str, labels: ArrayLike, *classes: Any) -> None:
        super().__init__(len(rows), *classes)
        self._rows = rows
        self._title = title
        self.labels = np.asarray(labels, np.int32)

    def stored_image(self, store_index: int) -> source.StoredImage:
        # A row may lack an image.
        image_entry = self._rows[store_index]["image"] or {"bytes": b""}
        picture = image_entry["bytes"]
        if picture is None:  # a repository of image files
            picture = image_entry["path"] or b""  # empty bytes do not decode
        return picture, int(self.labels[store_index]), f"{self._title}/{store_index}"

    def identity_bytes(self, indices: Int[np.ndarray, " images"]) -> Iterator[bytes]:
        import pyarrow.compute  # which `datasets` needs

        compute: Any = pyarrow.compute  # type checkers do not see its functions
        image_column = self._rows.data.column("image")
        stored_bytes = compute.struct_field(image_column, "bytes")
        all_sizes = compute.binary_length(stored_bytes).fill_null(-1)
        sizes = all_sizes.to_numpy()[indices]  # -1: no bytes, but a path
        yield sizes.tobytes()
        yield self.labels[indices].tobytes()
        all_paths = compute.struct_field(image_column, "path").to_numpy()[indices]
        # A row may lack an image, and with it both.
        file_paths = [path for path in all_paths[sizes < 0] if path]
        if file_paths:
            file_names = [os.path.basename(path) for path in file_paths]
            yield "\0".join(file_names).encode(errors="surrogateescape")
            yield source.read_file_sizes(file_paths).tobytes()
