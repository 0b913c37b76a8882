"""What images show: classes by their folders, and a text tower's vectors."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from imagepiece_jax.common.progress import notes
from imagepiece_jax.data.pictures import find_images
from imagepiece_jax.data.source import FileSource, Source
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference.compare_outputs import Annotations, unit_rows
from imagepiece_jax.models.pretrained import Pretrained


def read_annotations(
    vit: Pretrained, source: Source, texts_file: str | os.PathLike | None = None
) -> Annotations:
    """Read the classes and texts of a source's images.

    A class is the label in a set that has labels, or the first folder below the folder
    of all images. An image without such a folder leaves all images without classes.

    texts_file: a .npy file, floats [texts, D]. A .txt file of the same name has a line
        per row: the path of the row's image, or the end of its path
    Raises InputError for files that do not fit each other, the model or the images.
    """
    all_paths = []  # also those that a subset leaves out
    if isinstance(source, FileSource):  # others may decode an image for its name
        for image_file in source.files:
            path = os.path.join(source.root, os.fsdecode(image_file))
            all_paths.append(os.path.abspath(path))
    paths = [all_paths[index] for index in source.indices] if all_paths else []
    prefix_length = os.path.commonprefix(paths).rfind("/") + 1
    folder_lists = [path[prefix_length:].split("/")[:-1] for path in paths]
    annotations = Annotations()
    if source.labels is not None and source.labels.min() >= 0:
        annotations = Annotations(source.labels[np.asarray(source.indices)])
    elif folder_lists and all(folder_lists):
        annotations = Annotations(np.array([folders[0] for folders in folder_lists]))
    if texts_file is not None:
        texts_path = os.path.expanduser(texts_file)
        vectors, path_indices = _read_texts(vit, texts_path, all_paths)
        image_of_path = {index: image for image, index in enumerate(source.indices)}
        image_of_text = np.array([image_of_path.get(i, -1) for i in path_indices])
        if num_foreign := np.sum(image_of_text < 0):
            notes.info(
                f"note: {num_foreign} of {len(vectors)} texts describe none of "
                "the images"
            )
        annotations = Annotations(annotations.classes, vectors, image_of_text)
    return annotations.select_images(range(len(source)))


def _read_texts(
    vit: Pretrained, texts_file: str, image_paths: Sequence[str]
) -> tuple[Float[np.ndarray, "texts dim"], list[int]]:
    """Read texts' vectors, and per text the index of its image's path; -1: none."""
    if vit.config.head.is_classifier:
        raise InputError(
            f"texts is {texts_file}, which needs vectors, but the weights' head has "
            f"{vit.config.num_classes} classes; num_classes=0 (--num-classes 0) "
            "removes the head"
        )
    paths_file = pathlib.Path(texts_file).with_suffix(".txt")
    for required_file in (texts_file, paths_file):
        if not os.path.isfile(required_file):
            raise InputError(
                f"texts: {required_file} is missing; {texts_file} needs a row per "
                f"text, and {paths_file.name} the path of a row's image per line"
            )
    try:
        vectors = np.lib.format.open_memmap(texts_file, mode="r")  # never a pickle
    except (OSError, ValueError) as error:
        raise InputError(f"texts: {texts_file} is not a .npy file ({error})") from error
    shape = [*vectors.shape]
    dim = vit.config.num_classes or vit.config.embed_dim
    if vectors.dtype.kind != "f" or shape[1:] != [dim]:
        raise InputError(
            f"texts: {texts_file} has {vectors.dtype} {shape}; the model's "
            f"vectors need floats [texts, {dim}]"
        )
    has_direction = unit_rows(vectors).any(axis=1)
    if not has_direction.all():
        raise InputError(
            f"texts: row {has_direction.argmin()} of {texts_file} is 0 or not finite"
        )
    if not len(vectors):
        raise InputError(f"texts: {texts_file} has no rows")
    text_paths = find_images([paths_file])
    if len(text_paths) != len(vectors):
        raise InputError(
            f"texts: {texts_file} has {len(vectors)} rows, but {paths_file} "
            f"names {len(text_paths)} images; it needs a row's image per line"
        )
    index_by_end: dict[str, int | None] = {}  # by a path or its end; None: several
    for index, path in enumerate(image_paths):
        while path:
            index_by_end[path] = None if path in index_by_end else index
            path = path.partition("/")[2]
    path_indices = []
    for path in text_paths:
        index = index_by_end.get(os.path.normpath(path), -1)
        index = index_by_end.get(os.path.abspath(path), index)
        if index is None:
            raise InputError(f"texts: {path!r} in {paths_file} names several images")
        path_indices.append(index)
    return vectors, path_indices
