"""What images show: classes by their folders, and a text tower's vectors."""

import os
import pathlib

import numpy as np

from imagepiece_jax.common.progress import notes
from imagepiece_jax.data.pictures import find_images
from imagepiece_jax.data.source import FileSource, Source
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference.compare_outputs import Annotations, unit_rows
from imagepiece_jax.models.pretrained import Pretrained


def read_annotations(
    vit: Pretrained, source: Source, texts: str | os.PathLike | None = None
) -> Annotations:
    """Classes and texts of a source's images.

    A class is the label in a set that has labels, or the first folder below the folder
    of all images. An image without such a folder leaves all images without classes.

    texts: a .npy file, floats [texts, D]. A .txt file of the same name has a line per
        row: the path of the row's image, or the end of its path
    Raises InputError for files that do not fit each other, the model or the images.
    """
    store = []  # all files, also those that a subset leaves out
    if isinstance(source, FileSource):  # others may decode an image for its name
        for file in source.files:
            path = os.path.join(source.root, os.fsdecode(file))
            store.append(os.path.abspath(path))
    names = [store[index] for index in source.indices] if store else []
    shared = os.path.commonprefix(names).rfind("/") + 1
    folders = [name[shared:].split("/")[:-1] for name in names]
    known = Annotations()
    if source.labels is not None and source.labels.min() >= 0:
        known = Annotations(source.labels[np.asarray(source.indices)])
    elif folders and all(folders):
        known = Annotations(np.array([parts[0] for parts in folders]))
    if texts is not None:
        vectors, described = _read_texts(vit, os.path.expanduser(texts), store)
        position = {index: i for i, index in enumerate(source.indices)}
        described = np.array([position.get(index, -1) for index in described])
        if count := np.sum(described < 0):
            notes.info(
                f"note: {count} of {len(vectors)} texts describe none of the images"
            )
        known = known._replace(texts=vectors, described=described)
    return known.subset(range(len(source)))


def _read_texts(vit, file, names):
    """Vectors of texts, and per text the index of its image in `names`; -1: none."""
    if vit.config.head.is_classifier:
        raise InputError(
            f"texts is {file}, which needs vectors, but the weights' head has "
            f"{vit.config.num_classes} classes; num_classes=0 (--num-classes 0) "
            "removes the head"
        )
    paths_file = pathlib.Path(file).with_suffix(".txt")
    for part in (file, paths_file):
        if not os.path.isfile(part):
            raise InputError(
                f"texts: {part} is missing; {file} needs a row per text, and "
                f"{paths_file.name} the path of a row's image per line"
            )
    try:
        vectors = np.lib.format.open_memmap(file, mode="r")  # never a pickle
    except (OSError, ValueError) as error:
        raise InputError(f"texts: {file} is not a .npy file ({error})") from error
    shape = [*vectors.shape]
    width = vit.config.num_classes or vit.config.embed_dim
    if vectors.dtype.kind != "f" or shape[1:] != [width]:
        raise InputError(
            f"texts: {file} has {vectors.dtype} {shape}; the model's vectors need "
            f"floats [texts, {width}]"
        )
    is_vector = unit_rows(vectors).any(axis=1)
    if not is_vector.all():
        raise InputError(
            f"texts: row {is_vector.argmin()} of {file} is 0 or not finite"
        )
    if not len(vectors):
        raise InputError(f"texts: {file} has no rows")
    paths = find_images([paths_file])
    if len(paths) != len(vectors):
        raise InputError(
            f"texts: {file} has {len(vectors)} rows, but {paths_file} names "
            f"{len(paths)} images; it needs a row's image per line"
        )
    images = {}  # {a path or its end: index, or None for several images}
    for index, name in enumerate(names):
        while name:
            images[name] = None if name in images else index
            name = name.partition("/")[2]
    described = []
    for path in paths:
        end = images.get(os.path.normpath(path), -1)
        described.append(images.get(os.path.abspath(path), end))
    if None in described:
        path = paths[described.index(None)]
        raise InputError(f"texts: {path!r} in {paths_file} names several images")
    return vectors, described
