"""Vectors of photographs, in one SQLite file."""

import pathlib

from imagepiece_jax.commands._arguments import Images, Weights
from imagepiece_jax.common import files


def main(
    weights: Weights,
    images: Images,
    *,
    out: str,
    npy: bool = False,
    patches: bool = False,
    logits: bool = False,
    batch_size: int = 64,
    threads: int | None = None,
    limit: int | None = None,
) -> int:
    """Write an SQLite file with a row per image: its path and its vector.

    Run the command again to continue where it stopped, and to compute new and changed
    images. `imagepiece_jax.read_features` reads the file.

    Example: imagepiece features weights photos --out vectors.sqlite

    Args:
        out: The .sqlite file to write, or to complete.
        npy: Also write the vectors to a .npy file beside it, as read_features has them.
        patches: Also write a map with a feature for every patch, float16.
        logits: Write the head's outputs, for CLIP comparable with its texts'.
        batch_size: Images per device and batch.
        threads: Decoding threads; if unset one per core, at most 16.
        limit: Images to take, evenly spaced.
    """
    import numpy as np

    from imagepiece_jax.common.checks import check_range
    from imagepiece_jax.data.pictures import find_images
    from imagepiece_jax.data.source import evenly_spaced_indices
    from imagepiece_jax.inference.feature_store import read_features
    from imagepiece_jax.inference.write_features import write_features

    file = pathlib.Path(out)
    files.check_writable("out", file, (".sqlite",))
    image_files = find_images(images.images)
    if limit is not None:
        check_range("limit", limit, 1)
        num_images = len(image_files)
        indices = evenly_spaced_indices(num_images, min(limit, num_images))
        image_files = [image_files[index] for index in indices]
    pretrained = weights.load_model()
    options = {"patches": patches, "logits": logits, "batch_size": batch_size}
    failures = write_features(pretrained, image_files, file, threads=threads, **options)
    # An image that was named twice has one row.
    print(f"{file}: vectors of {len({*image_files}) - len(failures)} images")
    if npy:
        _, vectors = read_features(file)
        with files.replacement_file(file.with_suffix(".npy")) as new_file:
            # np.save would add an ending to a path.
            with open(new_file, "wb") as opened_file:
                np.save(opened_file, vectors)
        print(file.with_suffix(".npy"))
    return int(bool(failures))  # 1: some cannot be read
