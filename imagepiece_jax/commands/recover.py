"""Recovery of a reduced model, from a few hundred images without labels."""

from typing import Literal

from imagepiece_jax.commands._arguments import Images, Weights
from imagepiece_jax.common.progress import log
from imagepiece_jax.errors import InputError, RunError


def main(
    weights: Weights,
    images: Images,
    *,
    out: str,
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int = 16,
    seed: int = 0,
    parameters: Literal["norms", "biases", "all"] = "biases",
) -> None:
    """Train a reduced model to answer like the dense model.

    It trains at --reduction, or else at 0.6, 0.5 and 0.4. IMAGE may be a set,
    such as digits, hf:OWNER/NAME or csv:FILE; labels are not read. OUT is written as
    `save` writes a folder, with the dense model unchanged. Ctrl-C, SIGTERM and
    SIGUSR1 save the weights so far in it, if they are better than the start.

    Example: imagepiece recover weights digits --out better --steps 4

    Args:
        out: The folder to write. A saved model is replaced, unless a recovered
            reduction in it would be lost.
        steps: Training steps per reduction; 400 if unset.
        minutes: Training time of all reductions together, instead of steps. Compiling
            comes on top.
        batch_size: Images per step.
        seed: Seed for crops and order.
        parameters: Parameters to train.
    """
    from imagepiece_jax.common.files import locked_folder
    from imagepiece_jax.data.pictures import as_source
    from imagepiece_jax.recovery.recover import make_recipe, recover
    from imagepiece_jax.weights.save import checked_folder, save

    folder = checked_folder(out)
    # Errors come before anything is loaded.
    make_recipe(steps, minutes, batch_size=batch_size, seed=seed, parameters=parameters)
    source = as_source(images.images)
    # The lock ends before the result is written, because `save` replaces the folder.
    with locked_folder("out", folder):
        pretrained = weights.load_model()
        _check_lost_reductions(folder, pretrained)
        recovered = recover(
            pretrained,
            source,
            steps=steps,
            minutes=minutes,
            batch_size=batch_size,
            seed=seed,
            parameters=parameters,
        )
    recovery = recovered.recovery
    print(recovery)
    variants = recovery.variants
    if all(variant.stopped and not variant.changed for variant in variants):
        raise RunError(f"nothing is written to {out}: no weights were better yet")
    save(recovered, out)
    print(f"saved in {out}", flush=True)
    if not any(variant.changed for variant in variants):
        print(f"note: nothing was better: {out} holds the model as it was")


def _check_lost_reductions(folder, pretrained):
    """Refuse to replace a folder with recovered reductions that the result lacks."""
    from imagepiece_jax.recovery.recover import list_students
    from imagepiece_jax.weights import description, location

    try:
        weights_location = location.locate_weights(folder)
        recovery = description.describe_weights(weights_location).recovery
    except InputError:  # nothing there, or nothing that this revision reads
        return
    students = [student.model for student in list_students(pretrained)]
    kept_variants = pretrained.recovery.variants if pretrained.recovery else ()
    kept_names = {variant.name for variant in kept_variants}
    for variant in recovery.variants if recovery else ():
        if variant.name not in kept_names:
            finding = f"out {folder} has {variant.name}"
            if not any(map(variant.fits_model, students)):
                raise InputError(f"{finding}; recover that folder")
            log.info(f"{finding}; it will be replaced")
