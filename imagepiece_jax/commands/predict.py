"""Predictions of a trained model for images: the most probable classes of each.

A model without classes, such as DINOv2, gives its pooled vectors, for --json.

python -m imagepiece_jax predict --weights FILE_OR_WORKDIR IMAGE_OR_FOLDER..
python -m imagepiece_jax predict --weights FILE --reduction tome:r=8 \\
    --json predictions.json IMAGE..

A folder stands for its images and those of its sub-folders. A run determines its model:
see `evaluate`. An image that cannot be read is named on stderr, the others are
answered, and the exit status is 1.
"""

import sys

from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.commands import _weights
from imagepiece_jax.common.files import check_writable, write_json
from imagepiece_jax.errors import InputError, flags_of, renamed

WEIGHTS = _weights.weights()
TOP = cli.integer("top", None, "classes of each image; default: 5, or all of fewer", 1)
LABELS = cli.choice(
    "labels", None, ("imagenet",), "names of the classes, where weights have none"
)
GELU = cli.gelu()
JSON = cli.text("json", None, "a file to write the predictions to, as JSON")


def main(words):
    path = cli.path_of_weights()
    # These import JAX, which --help and a mistyped flag need not wait for.
    from imagepiece_jax.data import pictures
    from imagepiece_jax.inference.predictor import Predictor
    from imagepiece_jax.weights.runs import own_files

    files = pictures.find_images(words)
    if JSON.value is not None:
        read = [*map(str, files), *own_files(path)]
        check_writable("--json", JSON.value, [".json"], read)
    vit = WEIGHTS()
    if note := pictures.sizes_note(files, vit.preprocessing):
        print(f"note: {note}", flush=True)
    with renamed(flags_of("labels", "top", "gelu")):
        predict = Predictor(
            vit,
            labels=LABELS.value,
            top=TOP.value,
            dtype=flags.FLAGS["dtype"].value,
            attention=vit.attention,
            gelu=GELU.value,
        )
    answers = {}
    damaged = 0
    for file, found in zip(files, predict.stream(files), strict=True):
        answers[str(file)], line = answered(file, found)
        if isinstance(found, InputError):
            damaged += 1
            print(line, file=sys.stderr)
        else:
            print(line, flush=True)
    if JSON.value is not None:
        write_json(JSON.value, answers)
    return int(damaged > 0)


def answered(file, found):
    """(what JSON has of an image, the line that is printed of it).

    found: its Predictions, an InputError, or a vector of a model without classes
    """
    from imagepiece_jax.data import class_names

    if isinstance(found, InputError):
        return {"error": str(found)}, f"error: {found}"
    if not isinstance(found, list):
        line = f"{file}: a vector of {len(found)} features"
        return {"pooled": found.tolist()}, line
    listed = []
    for one in found:
        label = class_names.described(one.label)
        listed.append(f"{label} {100 * one.probability:.1f} %")
    return [one._asdict() for one in found], f"{file}: {'; '.join(listed)}"


if __name__ == "__main__":
    cli.run(main)
