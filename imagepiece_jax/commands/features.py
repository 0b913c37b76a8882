"""Features of photographs, as vector files for NumPy and faiss."""

import pathlib
from typing import TYPE_CHECKING, Literal

from imagepiece_jax.commands._arguments import Images, Weights
from imagepiece_jax.common.image_size import image_sides, size_text
from imagepiece_jax.common.progress import log
from imagepiece_jax.errors import RunError

if TYPE_CHECKING:  # JAX is imported here, but --help does not need it
    from imagepiece_jax.models.pretrained import Pretrained


def main(
    weights: Weights,
    images: Images,
    *,
    out: str,
    patches: bool = False,
    logits: bool = False,
    storage: Literal["float16", "float32"] = "float16",
    batch_size: int = 64,
    threads: int | None = None,
    limit: int | None = None,
) -> None:
    """Write a folder with pooled.npy, one row per line of its paths.txt.

    Rows of unreadable images are NaN. Run the command again to continue where it
    stopped, and to compute new and changed images.

    Example: imagepiece features weights photos --out vectors

    Args:
        out: The folder to write, or to complete.
        patches: Also write a feature for every patch.
        logits: Also write the head's outputs, for CLIP comparable with its texts'.
        storage: Data type in the files.
        batch_size: Photographs per device and batch.
        threads: Decoding threads; if unset one per core, at most 16.
        limit: Images to take, evenly spaced.
    """
    from imagepiece_jax.inference import feature_files, feature_folder

    folder = pathlib.Path(out)
    feature_folder.check_feature_folder(folder)
    image_files = choose_images(images, limit)
    vit = weights.load_model()
    note_image_cost(vit)
    written_features = feature_files.write_features(
        vit,
        image_files,
        folder,
        patches=patches,
        logits=logits,
        storage=storage,
        batch_size=batch_size,
        threads=threads,
    )
    damaged_file = folder / feature_folder.DAMAGED_FILE
    num_damaged = written_features.num_damaged
    if num_damaged == written_features.shapes["pooled"][0]:
        raise RunError(f"no photograph has a feature row; {damaged_file} says why")
    for name, shape in written_features.shapes.items():
        shape_text = " x ".join(map(str, shape))
        print(f"{folder / name}.npy: {shape_text} {storage}")
    if num_damaged:
        print(f"{num_damaged} damaged, whose rows are NaN: {damaged_file}")


def choose_images(images: Images, limit: int | None) -> list[str]:
    """List the image files; of more than `limit`, `limit` evenly spaced ones."""
    from imagepiece_jax.common.checks import check_range
    from imagepiece_jax.data.pictures import find_images
    from imagepiece_jax.data.source import evenly_spaced_indices

    image_files = find_images(images.images)
    if limit is None:
        return image_files
    check_range("limit", limit, 1)
    indices = evenly_spaced_indices(len(image_files), min(limit, len(image_files)))
    return [image_files[index] for index in indices]


def note_image_cost(vit: "Pretrained") -> None:
    """Log a note if images of 224 pixels would take less than half the MACs."""
    from imagepiece_jax.models.cost import model_macs
    from imagepiece_jax.models.create import build_model

    if max(image_sides(vit.image_size)) <= 224 or 224 % vit.config.patch_size:
        return
    dense_macs = model_macs(build_model(vit.config))
    small_macs = model_macs(build_model(vit.config.at_size(224)))
    if dense_macs > 2 * small_macs:
        log.info(
            f"images of {size_text(vit.image_size)} take {vit.gmacs:.0f} GMACs each; "
            f"--image-size 224 takes {dense_macs / small_macs:.0f} times fewer"
        )
