"""Recovery of what a reduction costs, from a few hundred images without labels.

python -m imagepiece_jax recover --weights FILE --data PATH --out DIR
python -m imagepiece_jax recover --weights FILE --macs 0.5 --data PATH --out DIR

Reduced forms learn to answer as the dense model does: the first at .6, .5 and .4 of its
MACs, the second at one cost. It says first how long that takes here. DIR is a
folder as `imagepiece_jax.save` writes it, which holds the dense model as it was, and
what each cost takes in place of some of its numbers. A fifth of the images is held out,
and chooses the best. Labels are not read. --minutes 10 takes as many steps as fit.
Ctrl-C leaves the best so far in DIR.
"""

import dataclasses
import pathlib
import sys

from imagepiece_jax import cli
from imagepiece_jax.errors import InputError, flags_of

MODEL = cli.trained_model(also_read=("data.dir",))
SOURCES = f"a folder of images, {cli.IMAGE_SETS}"
DATA = cli.text("data", None, SOURCES)  # other commands take no folder without a word
RESIZE = cli.resize()
LIMIT = cli.limit()
OUT = cli.text("out", None, "the folder to write; one of a saved model is replaced")
STEPS = cli.integer("steps", None, "of training, for each cost; default: 250", 1)
MINUTES = cli.real("minutes", None, "all of the time, instead of --steps", above=0)
BATCH = cli.integer("batch", None, "images a step; default: 32", 1)
SEED = cli.integer("seed", 0, "of crops and order", 0)
PARAMETERS = cli.choice(
    "parameters", "biases", ["norms", "biases", "all"], "which of them are trained"
)


def main():
    typed = MODEL()
    images = cli.required(DATA, SOURCES)
    out = pathlib.Path(cli.required(OUT))
    if cli.is_typed("seed"):
        raise InputError(
            "is not the seed of a recovery",
            field="config.seed",
            hint="give --seed",
        )
    # These import JAX, which --help and a mistyped flag need not wait for.
    import jax

    from imagepiece_jax.common.files import check_folder, check_room
    from imagepiece_jax.common.signals import finishing
    from imagepiece_jax.config.run import RunConfig
    from imagepiece_jax.pretrained.save import checked_folder, save
    from imagepiece_jax.pretrained.with_config import load_with_config
    from imagepiece_jax.training.recover import recover

    try:
        folder = checked_folder(out)
    except InputError as error:
        raise error.with_facts(place=f"--out {out}") from error
    check_folder("--out", folder)
    try:
        check_there(images)
    except InputError as error:
        raise error.renamed({"images": "--data"}) from error
    config, vit = load_with_config(**typed)
    config.data.resize = RESIZE.value or config.data.resize
    preprocessing = RunConfig.from_config(config).preprocessing()
    if preprocessing != vit.preprocessing:
        vit = dataclasses.replace(vit, preprocessing=preprocessing)
    leaves = jax.tree.leaves(vit.variables)
    check_room("--out", out, sum(leaf.nbytes for leaf in leaves))
    flags = flags_of("steps", "minutes", "seed", "parameters")
    flags |= {"images": "--data", "config.data.name": "--data", "batch_size": "--batch"}
    try:
        source = opened(images, config.data.dir).spread(LIMIT.value)
        recovered = recover(
            vit,
            source,
            steps=STEPS.value,
            minutes=MINUTES.value,
            batch_size=BATCH.value or 32,
            seed=SEED.value,
            parameters=PARAMETERS.value,
        )
    except InputError as error:
        raise error.renamed(flags) from error
    recovery = recovered.recovery
    with finishing():  # nothing that took minutes is lost while it is written
        print(recovery, flush=True)
        if all(cost.stopped and not cost.changed for cost in recovery.costs):
            print(f"nothing is written to {out}", file=sys.stderr)
        else:
            save(out, recovered)
            print(f"saved in {out}", flush=True)


def check_there(images: str):
    """Raise InputError for a path or data that are not there."""
    from imagepiece_jax.data import pictures
    from imagepiece_jax.input import registry

    if registry.full_name(images).startswith(("folder:", "csv:")):
        registry.check_found(images)
    elif images not in registry.SETS and not pathlib.Path(images).expanduser().exists():
        pictures.as_source(images)  # which raises the error


def opened(images: str, data_dir: str | None):
    """The Source of a set of `registry.SETS`, or of images in files."""
    from imagepiece_jax.data import pictures
    from imagepiece_jax.input import registry

    if images in registry.SETS and not pathlib.Path(images).exists():
        return registry.open_source(images, "train", labeled=False, data_dir=data_dir)
    return pictures.as_source(images)


if __name__ == "__main__":
    cli.run(main)
