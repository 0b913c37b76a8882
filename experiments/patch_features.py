"""How much of the dense model's feature map reduced models keep: a table for weights.

python -m experiments.patch_features \\
    --weights FILE_OR_WORKDIR --data csv:FILE \\
    --sweep imagepiece --sweep tome:r=8 --sweep evit:keep_rate=.7 [--images 100]

The map of every method (`inference.features.feature_map`, after the final norm) is
compared with that of the dense model on the same images, by the figures below.
Methods that drop patches have a row for each way to fill them.
Sizes and stem come from the run or the weights, else from --config.
"""

import json
import pathlib

from imagepiece_jax import cli
from imagepiece_jax.common.files import make_folder, replace_file
from imagepiece_jax.errors import InputError

MODEL = cli.trained_model(checkpoint=False)
DATA = cli.data()
RESIZE = cli.resize()
SWEEP = cli.sweep("the methods to compare")
IMAGES = cli.whole("images", None, "so many, spread over the set; default: 100")
OUT = cli.text(
    "out", None, "folder of the table, replaced if there; default: runs/patch_features"
)


def main():
    # They import JAX: after the flags.
    from experiments import feature_agreement
    from imagepiece_jax.data.sources import short_name
    from imagepiece_jax.data.transforms import EvalTransform
    from imagepiece_jax.pretrained.load import read_with_config
    from imagepiece_jax.reduction import settings
    from imagepiece_jax.reduction.sweep_text import parse_sweeps

    typed, data = MODEL(), cli.required(DATA)
    if not SWEEP.value:
        raise InputError("--sweep is missing: name methods, such as --sweep tome:r=8")
    count = 100 if IMAGES.value is None else IMAGES.value
    if count < feature_agreement.FEWEST:
        raise InputError(
            f"--images is {count}; allowed are {feature_agreement.FEWEST} or more"
        )
    reductions = parse_sweeps(SWEEP.value)
    reductions = [one for one in reductions if one["name"] != settings.DENSE["name"]]
    out = pathlib.Path(OUT.value or "runs/patch_features")
    weights = read_with_config(**typed)[1].analyzed()
    dense = weights.pretrained(settings.DENSE)
    reduced = [weights.pretrained(reduction) for reduction in reductions]
    resize = RESIZE.value or weights.resize
    transform = EvalTransform(weights.config.image_size, resize, **weights.crop)
    images = feature_agreement.read_images(data, count, transform)
    make_folder("--out", out)
    rows = []
    print("  ".join(feature_agreement.HEAD), flush=True)
    for row in feature_agreement.compare(dense, reduced, images):
        rows.append(row)
        print(
            "  ".join(cell or "-" for cell in feature_agreement.cells(row)), flush=True
        )
    file = out / "patch_features"
    replace_file(f"{file}.json", json.dumps(rows, indent=1) + "\n")
    note = (
        f"{len(images)} images of {short_name(data)} ({transform.text}), weights "
        f"{weights.name}"
    )
    replace_file(f"{file}.md", feature_agreement.table(rows, note))
    print(f"{len(images)} images; table: {file}.md, data: {file}.json")


if __name__ == "__main__":
    cli.run(main)
