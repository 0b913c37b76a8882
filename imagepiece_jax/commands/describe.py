"""Tokens, MACs and parameters of a config or of weights, block by block.

A config is followed by the operations of its training, for which no images are needed
and nothing is compiled, and by the line on its cost that the file's docstring repeats.

python -m imagepiece_jax describe --config configs/deit_s_imagepiece.py
python -m imagepiece_jax describe --weights FILE --reduction tome:r=8
"""

import dataclasses

from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.commands import _weights

cli.define_config("a config file, such as configs/quickstart.py, or --weights")
WEIGHTS = _weights.weights()


def main():
    run = None
    if not flags.FLAGS["weights"].value:
        _, run = cli.run_config()
    # These import JAX, which --help and a mistyped flag need not wait for.
    from imagepiece_jax.models import cost
    from imagepiece_jax.training import report

    # Compared with the dense model of the same stem, which shows what the reduction
    # saves, and with that of the patch stem, as in papers.
    if run is None:
        vit = WEIGHTS(abstract=True)
        model = vit.model
        size = vit.image_size
        patch_stem = dataclasses.replace(vit.spec, stem="patch")
        dense_models = [vit.spec.create(), patch_stem.create()]
    else:
        run = run.with_counts()
        model = run.create_model()
        size = run.image_size
        dense_models = [run.create_dense(), run.create_dense(stem="patch")]
    print(cost.describe(model, dense_models, size))
    if run is not None:
        print(report.estimate(run))
    elif vit.recovery:
        print_recovery(vit.recovery, vit.recovery.of(model, size))


def print_recovery(recovery, own):
    """Print a line for each cost, and one on the numbers that the model has.

    own: the cost that was learned for it; None: it has the dense model's numbers
    """
    for each in recovery.costs:
        what = "recovered for" if each.changed else "no better for"
        print(f"{what} {each}")
    if own is None:
        print("its numbers are the dense model's")
    elif own.changed:
        print(f"its numbers are those of {own.form}")
    else:
        print("its numbers are those from before the recovery")


if __name__ == "__main__":
    cli.run(main, compiles=False)
