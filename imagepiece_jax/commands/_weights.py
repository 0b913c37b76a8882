"""The flags of a command on trained weights, which are the words of `load`."""

import dataclasses

from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.common.fields import literal
from imagepiece_jax.config import command_line
from imagepiece_jax.errors import flags_of, renamed

flags.disclaim_key_flags()  # they are flags of the command that asks for them


def weights(latest=False, draws=True):
    """Define --weights, --reduction and the other words of `load`.

    latest: take a run's latest weights, as the best were chosen on images that may be
        those of the figures
    draws: whether selectors that the weights have not learned are drawn, or refused
    Returns a function that reads them, and returns the Pretrained that they name; of
        `read(abstract=True)` variables are shapes and types.
    """
    path = cli.weights()
    cli.reduction()
    size = cli.image_size()
    model = cli.model()
    dtype = cli.dtype("of layers", "the run's own")
    attention = cli.attention()
    default = "latest" if latest else "best"
    checkpoint = cli.text(
        "checkpoint",
        None,
        f"best or latest of a run, default: {default}; of a file with several models a "
        "key, or a start of names, such as teacher",
    )
    averaged = cli.switch(
        "averaged", False, "the averages of the weights over the steps of training"
    )
    normalized = cli.normalization()
    crop = cli.preprocessing()

    def read(abstract=False):
        # These import JAX, which --help and a mistyped flag need not wait for.
        from imagepiece_jax.common.warning import warn
        from imagepiece_jax.common.xla_options import fast_dtype
        from imagepiece_jax.models.spec import ModelSpec
        from imagepiece_jax.weights.load import (
            crop_note,
            load_as,
            unknown_normalization,
        )

        saved = _saved(checkpoint.value, averaged.value, latest)
        given = {**model(), **normalized()}
        with renamed(_flags([*ModelSpec.names(), *given])):
            own_dtype = saved.source.run and saved.source.spec.dtype
            given["dtype"] = dtype.value or own_dtype or fast_dtype()
            if attention.value is not None:
                given["attention"] = attention.value
            if size.value is not None:
                given["image_size"] = literal(size.value)
            vit = load_as(
                saved,
                ModelSpec.from_fields(given),
                reduction=command_line.reduction(),
                seed=saved.source.seed if draws else None,
                abstract=abstract,
            )
            images = dataclasses.replace(vit.preprocessing, **crop())
        vit = dataclasses.replace(vit, preprocessing=images)
        if abstract:  # which reads no images
            return vit
        if not vit.source.normalized:
            note = unknown_normalization(path.value, "--mean and --std")
            print(f"note: {note}", flush=True)
        note = crop_note(vit.source, images, "--crop")
        if note and "crop" not in crop():
            warn(note)
        return vit

    return read


def _saved(checkpoint, averaged, latest):
    """The SavedWeights of --weights; a field of their own files keeps its name."""
    from imagepiece_jax.weights import location  # imports JAX
    from imagepiece_jax.weights.load import SavedWeights

    path = cli.path_of_weights()
    with renamed({"path": "--weights", **flags_of("checkpoint", "averaged")}):
        if latest and checkpoint is None:
            checkpoint = location.last_checkpoint(path)
        return SavedWeights(path, checkpoint, averaged)


def swept() -> list:
    """The Reductions of --sweep, at the cost that --reduction says, where it says one.

    Raises InputError for what cannot be read.
    """
    from imagepiece_jax.reduction.reduction import DENSE, Reduction  # imports JAX

    cost = cli.typed_cost()
    found = [Reduction.read(text) for text in flags.FLAGS["sweep"].value]
    if cost is not None:
        found = [each if each == DENSE else each.with_cost(cost) for each in found]
    return found


def _flags(fields_of_model):
    """{an argument of `load`: the flag that has it}."""
    names = {field: f"--model {field}" for field in fields_of_model}
    names |= flags_of("name", "image_size", "dtype", "attention", "mean", "std")
    names |= flags_of("checkpoint", "reduction", "crop")
    return names | {"reduction.macs": "--reduction"}
