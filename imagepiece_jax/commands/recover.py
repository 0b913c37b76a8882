"""Recovery of what a reduction costs, from a few hundred images without labels.

python -m imagepiece_jax recover --weights FILE --data PATH --out DIR
python -m imagepiece_jax recover --weights FILE --reduction 0.5 --data PATH --out DIR

Reduced forms learn to answer as the dense model does: the first at .6, .5 and .4 of its
MACs, the second at one cost. It says first how long that takes here. DIR is a
folder as `imagepiece_jax.save` writes it, which holds the dense model as it was, and
what each cost takes in place of some of its numbers. A fifth of the images is held out,
and chooses the best. Labels are not read. --minutes 10 takes as many steps as fit.
Ctrl-C leaves the best so far in DIR, where it is better than the start.
"""

import pathlib
import sys

from imagepiece_jax import cli
from imagepiece_jax.commands import _weights
from imagepiece_jax.errors import InputError, flags_of, renamed

WEIGHTS = _weights.weights()
SOURCES = f"a folder of images, {cli.IMAGE_SETS}"
DATA = cli.text("data", None, SOURCES)  # other commands take no folder without a word
DATA_DIR = cli.data_dir()
LIMIT = cli.limit()
OUT = cli.text("out", None, "the folder to write; one of a saved model is replaced")
STEPS = cli.integer("steps", None, "of training, for each cost; default: 500", 1)
MINUTES = cli.real("minutes", None, "all of the time, instead of --steps", above=0)
BATCH = cli.integer("batch", None, "images a step; default: 8", 1)
SEED = cli.integer("seed", 0, "of crops and order", 0)
PARAMETERS = cli.choice(
    "parameters", "biases", ["norms", "biases", "all"], "which of them are trained"
)


def main():
    cli.path_of_weights()
    images = cli.required(DATA, SOURCES)
    out = pathlib.Path(cli.required(OUT))
    # These import JAX, which --help and a mistyped flag need not wait for.
    import jax

    from imagepiece_jax.common.files import FolderLock, check_folder, check_room
    from imagepiece_jax.common.signals import finishing
    from imagepiece_jax.training.recover import recover
    from imagepiece_jax.weights.save import checked_folder

    try:
        folder = checked_folder(out)
    except InputError as error:
        raise error.with_facts(place=f"--out {out}") from error
    check_folder("--out", folder)
    with renamed({"images": "--data", "name": "--data"}):
        check_there(images)
    flags = flags_of("steps", "minutes", "seed", "parameters")
    flags |= {"images": "--data", "name": "--data", "batch_size": "--batch"}
    flags |= flags_of("data_dir", "reduction")
    # It ends before the result is written, which replaces the folder.
    with FolderLock("--out", folder):
        vit = WEIGHTS()
        leaves = jax.tree.leaves(vit.variables)
        check_room("--out", out, sum(leaf.nbytes for leaf in leaves))
        with renamed(flags):
            source = opened(images, DATA_DIR.value).spread(LIMIT.value)
            recovered = recover(
                vit,
                source,
                steps=STEPS.value,
                minutes=MINUTES.value,
                batch_size=BATCH.value or 8,
                seed=SEED.value,
                parameters=PARAMETERS.value,
            )
    with finishing():  # nothing that took minutes is lost while it is written
        written(out, recovered)


def written(out, recovered):
    """Print what was recovered, and save it where anything changed."""
    from imagepiece_jax.weights.save import save

    recovery = recovered.recovery
    print(recovery, flush=True)
    if all(cost.stopped and not cost.changed for cost in recovery.costs):
        print(f"nothing is written to {out}", file=sys.stderr)
    else:
        save(out, recovered)
        print(f"saved in {out}", flush=True)
        if not any(cost.changed for cost in recovery.costs):
            print(f"note: nothing was better: {out} holds the model as it was")


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
