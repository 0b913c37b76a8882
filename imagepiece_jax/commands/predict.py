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

    Example: imagepiece predict weights photos --top 3 --json a.json

    Args:
        labels: Class names for weights without class names.
        top: Classes per image; if unset 5, or all if there are fewer.
        gelu: The GELU variant in the optimized program.
        json: A file to write the predictions to.
    """
    from imagepiece_jax.data import pictures
    from imagepiece_jax.inference.predictor import Predictor
    from imagepiece_jax.weights.folder_files import list_input_files

    image_files = pictures.find_images(images.images)
    if json is not None:
        input_files = [*image_files, *list_input_files(weights.weights)]
        check_writable("json", json, (".json",), input_files)
    pretrained = weights.load_model()
    attention = pretrained.model.execution.attention
    options = {"dtype": weights.dtype, "attention": attention, "gelu": gelu}
    predictor = Predictor(pretrained, labels=labels, top=top, **options)
    records = {}
    num_unreadable = 0
    for file, output in zip(image_files, predictor.stream(image_files), strict=True):
        records[file], line = _describe_output(file, output)
        if isinstance(output, InputError):
            num_unreadable += 1
            print(line, file=sys.stderr)
        else:
            print(line, flush=True)
    if json is not None:
        write_json(json, records)
    return int(num_unreadable > 0)  # 1: some cannot be read


def _describe_output(file, output):
    """(JSON value, printed line) of an image.

    output: its Predictions, an InputError, or vectors of a model without classes
    """
    from imagepiece_jax.data import class_names

    if isinstance(output, InputError):
        return {"error": str(output)}, f"error: {output}"
    if not isinstance(output, list):
        vector_text = "a vector"
        if output.ndim == 2:  # a model without a pool
            vector_text = f"{len(output)} vectors"
        line = f"{file}: {vector_text} of {output.shape[-1]} features"
        return {"pooled": output.tolist()}, line
    class_texts = []
    for prediction in output:
        class_name = class_names.describe_class(str(prediction.label))
        class_texts.append(f"{class_name} {100 * prediction.probability:.1f} %")
    line = f"{file}: {'; '.join(class_texts)}"
    return [prediction._asdict() for prediction in output], line
