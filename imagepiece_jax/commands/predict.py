"""The most probable classes of images."""

import sys
from typing import Literal

from imagepiece_jax.commands._arguments import Images, Weights
from imagepiece_jax.common.files import check_writable, write_json
from imagepiece_jax.errors import InputError


def main(
    weights: Weights,
    images: Images,
    *,
    labels: Literal["imagenet"] | None = None,
    top: int | None = None,
    gelu: Literal["exact", "tanh"] | None = None,
    json: str | None = None,
) -> int:
    """Print the most probable classes of images, or vectors of a model without classes.

    An unreadable image is named on stderr, and the status is 1.

    Example: imagepiece predict weights photos --top 3 --json a.json

    Args:
        labels: Class names for weights without class names.
        top: Classes per image; if unset 5, or all if there are fewer.
        gelu: GELU's form in the optimized program.
        json: A file to write the predictions to.
    """
    from imagepiece_jax.data import pictures
    from imagepiece_jax.inference.predictor import Predictor
    from imagepiece_jax.weights.runs import own_files

    files = pictures.find_images(images.images)
    if json is not None:
        read = [*files, *own_files(weights.weights)]
        check_writable("json", json, [".json"], read)
    vit = weights.load()
    predict = Predictor(
        vit,
        labels=labels,
        top=top,
        dtype=weights.dtype,
        attention=vit.model.execution.attention,
        gelu=gelu,
    )
    answers = {}
    unreadable = 0
    for file, found in zip(files, predict.stream(files), strict=True):
        answers[file], line = answered(file, found)
        if isinstance(found, InputError):
            unreadable += 1
            print(line, file=sys.stderr)
        else:
            print(line, flush=True)
    if json is not None:
        write_json(json, answers)
    return int(unreadable > 0)


def answered(file, found):
    """(JSON value, printed line) of an image.

    found: its Predictions, an InputError, or vectors of a model without classes
    """
    from imagepiece_jax.data import class_names

    if isinstance(found, InputError):
        return {"error": str(found)}, f"error: {found}"
    if not isinstance(found, list):
        kind = "a vector"
        if found.ndim == 2:  # a model without a pool
            kind = f"{len(found)} vectors"
        line = f"{file}: {kind} of {found.shape[-1]} features"
        return {"pooled": found.tolist()}, line
    listed = []
    for one in found:
        label = class_names.described(one.label)
        listed.append(f"{label} {100 * one.probability:.1f} %")
    return [one._asdict() for one in found], f"{file}: {'; '.join(listed)}"
