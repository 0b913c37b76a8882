"""Predictions of a trained model for images: the most probable classes of each.

A model without classes, such as DINOv2, gives its pooled vectors, for --json.

python -m imagepiece_jax predict --weights FILE_OR_WORKDIR IMAGE_OR_FOLDER..
python -m imagepiece_jax predict --config configs/deit_s_tome.py:deit_ti \\
    --weights FILE --json predictions.json IMAGE..

A folder stands for its images and those of its sub-folders. A run determines its model,
a file its sizes: see `evaluate`. An image that cannot be read is named on stderr, the
others are answered, and the exit status is 1.
"""

import dataclasses
import sys

from imagepiece_jax import cli
from imagepiece_jax.common.files import check_writable, write_json
from imagepiece_jax.errors import InputError, flags_of

MODEL = cli.trained_model()
RESIZE = cli.resize()
TOP = cli.integer("top", None, "classes of each image; default: 5, or all of fewer", 1)
LABELS = cli.choice(
    "labels", None, ("imagenet",), "names of the classes, where weights have none"
)
GELU = cli.gelu()
JSON = cli.text("json", None, "a file to write the predictions to, as JSON")


def main(words):
    typed = MODEL()
    # These import JAX, which --help and a mistyped flag need not wait for.
    from imagepiece_jax.config.run import RunConfig
    from imagepiece_jax.data import class_names, pictures
    from imagepiece_jax.inference.predictor import Predictor
    from imagepiece_jax.pretrained.runs import own_files
    from imagepiece_jax.pretrained.with_config import load_with_config

    files = pictures.find_images(words)
    if JSON.value is not None:
        read = [*map(str, files), *own_files(typed["path"])]
        check_writable("--json", JSON.value, read)
    config, vit = load_with_config(**typed)
    config.data.resize = RESIZE.value or config.data.resize
    preprocessing = RunConfig.from_config(config).preprocessing()
    if preprocessing != vit.preprocessing:
        vit = dataclasses.replace(vit, preprocessing=preprocessing)
    classes = vit.model.num_classes
    if note := pictures.sizes_note(files, preprocessing):
        print(f"note: {note}", flush=True)
    try:
        predict = Predictor(
            vit,
            labels=LABELS.value,
            top=TOP.value,
            attention=config.model.attention,
            gelu=GELU.value,
        )
    except InputError as error:
        raise error.renamed(flags_of("labels", "top")) from error
    answers = {}
    damaged = 0
    for file, predictions in zip(files, predict.stream(files), strict=True):
        if isinstance(predictions, InputError):
            print(f"error: {predictions}", file=sys.stderr)
            answers[str(file)] = {"error": str(predictions)}
            damaged += 1
            continue
        if not classes:
            answers[str(file)] = {"pooled": predictions.tolist()}
            print(f"{file}: a vector of {len(predictions)} features", flush=True)
            continue
        answers[str(file)] = [one._asdict() for one in predictions]
        listed = []
        for one in predictions:
            label = class_names.described(one.label)
            listed.append(f"{label} {100 * one.probability:.1f} %")
        print(f"{file}: {'; '.join(listed)}", flush=True)
    if JSON.value is not None:
        write_json(JSON.value, answers)
    return int(damaged > 0)


if __name__ == "__main__":
    cli.run(main)
