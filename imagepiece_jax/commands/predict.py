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

    Unreadable images are reported on stderr, and the exit status is 1.

    Example: imagepiece predict weights photos --top 3 --json a.json

    Args:
        labels: Class names for weights without class names.
        top: Classes per image; if unset 5, or all if there are fewer.
        gelu: The GELU variant in the optimized program.
        json: A file to write the predictions to.
    """
    from imagepiece_jax.data import pictures
    from imagepiece_jax.inference.predictor import Predictor
    from imagepiece_jax.weights.run_files import own_files

    files = pictures.find_images(images.images)
    if json is not None:
        input_files = [*files, *own_files(weights.weights)]
        check_writable("json", json, [".json"], input_files)
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
    for file, answer in zip(files, predict.stream(files), strict=True):
        answers[file], line = describe_output(file, answer)
        if isinstance(answer, InputError):
            unreadable += 1
            print(line, file=sys.stderr)
        else:
            print(line, flush=True)
    if json is not None:
        write_json(json, answers)
    return int(unreadable > 0)


def describe_output(file, answer):
    """(JSON value, printed line) of an image.

    answer: its Predictions, an InputError, or vectors of a model without classes
    """
    from imagepiece_jax.data import class_names

    if isinstance(answer, InputError):
        return {"error": str(answer)}, f"error: {answer}"
    if not isinstance(answer, list):
        vectors = "a vector"
        if answer.ndim == 2:  # a model without a pool
            vectors = f"{len(answer)} vectors"
        line = f"{file}: {vectors} of {answer.shape[-1]} features"
        return {"pooled": answer.tolist()}, line
    listed = []
    for prediction in answer:
        label = class_names.describe_class(prediction.label)
        listed.append(f"{label} {100 * prediction.probability:.1f} %")
    return [
        prediction._asdict() for prediction in answer
    ], f"{file}: {'; '.join(listed)}"
