"""Scores in place of class attention: the table of docs/models.md.

python -m tools.scores --weights deit_tiny_patch16_224.npz --data csv:LABELS.csv

Off the shelf, in float32, on the images as they are. All settings see the same images,
so differences to class attention are paired.
"""

import itertools

from absl import flags

from experiments.images import Images
from imagepiece_jax import cli
from imagepiece_jax.common import parallel, tables
from imagepiece_jax.evaluate import accuracy, statistics
from imagepiece_jax.pretrained.load import for_analysis

METHODS = {
    "EViT, keep .7": {"name": "evit", "keep_rate": 0.7},
    "ImagePiece, keep .8": {"name": "imagepiece", "keep_rate": 0.8},
}
SCORES = ("class", "received", "energy")
HEAD = ["method", "score", "acc1, %", "to class attention, points (paired)", "GMACs"]
WEIGHTS, DATA = cli.weights(), cli.data()
BATCH = flags.DEFINE_integer("batch_size", 50, "images at once")


def main():
    weights = for_analysis(cli.required(WEIGHTS), dtype="float32")
    data = cli.required(DATA)
    sizes = (weights.fields["num_classes"], weights.image_size)
    images = Images.open(data, *sizes, resize="none", batch_size=BATCH.value, workers=0)
    print("\n".join(tables.markdown(HEAD, [])), flush=True)
    for name, reduction in METHODS.items():
        rows = [reduction | {"score": score} for score in SCORES]
        right = {}
        for row in rows:
            variant, score = weights.variant(row), row["score"]
            step = accuracy.compiled(variant.model, precision="highest")
            passed = parallel.replicate(variant.variables), images.batches()
            right[score] = accuracy.evaluate(step, *passed).each["right"]
            change = statistics.paired_difference(right[score], right["class"])
            cells = [name, score, statistics.accuracy(right[score]), change]
            cells[2] = statistics.format_estimate(cells[2])
            cells[3] = "" if score == "class" else statistics.format_difference(change)
            line = tables.markdown(cells + [f"{variant.gmacs:.3f}"], [])[0]
            print(line, flush=True)
        for one, other in itertools.combinations(SCORES[1:], 2):
            change = statistics.paired_difference(right[one], right[other])
            print(f"{one} to {other}: {statistics.format_difference(change)}")


if __name__ == "__main__":
    cli.run(main)
