"""The flags of a command on trained weights, which are the words of `load`."""

import dataclasses

from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.common.fields import literal
from imagepiece_jax.errors import InputError, flags_of

flags.disclaim_key_flags()  # they are flags of the command that asks for them


def weights():
    """Define --weights, --reduction and the other words of `load`.

    Returns a function that reads them, and returns the Pretrained that they name.
    """
    path = cli.weights()
    reduction = cli.text(
        "reduction",
        None,
        "a share of the dense model's multiply-adds, such as 0.5, for the recommended "
        "method; or METHOD:FIELD=VALUE, such as tome:r=8; default: as it was trained",
    )
    size = cli.text(
        "image_size", None, "pixels a side, or HEIGHT,WIDTH; default: the weights' own"
    )
    name = cli.text(
        "name", None, "timm's name of the model, where the weights do not say it"
    )
    of_attention = "what computes it; default: the fastest that the device has"
    dtype = cli.dtype("of layers")
    attention = cli.choice("attention", None, ["xla", "cudnn"], of_attention)
    checkpoint = cli.text(
        "checkpoint",
        None,
        "best or latest of a run, default: best; of a file with several models a key, "
        "or a start of names, such as teacher",
    )
    averaged = cli.switch(
        "averaged", False, "the averages of the weights over the steps of training"
    )
    normalized = cli.normalization()
    resize = cli.resize()
    crop = cli.real(
        "crop", None, "sides of the crop by those of the resized image", above=0
    )

    def read():
        # These import JAX, which --help and a mistyped flag need not wait for.
        from imagepiece_jax.common.warning import warn
        from imagepiece_jax.common.xla_options import fast_dtype
        from imagepiece_jax.models.config import ModelConfig
        from imagepiece_jax.pretrained.load import (
            SavedWeights,
            crop_note,
            load_as,
            unknown_normalization,
        )

        changes = {"dtype": dtype.value or fast_dtype(), **normalized()}
        for flag in (name, attention):
            if flag.value is not None:
                changes[flag.name] = flag.value
        if size.value is not None:
            changes["image_size"] = literal(size.value)
        crops = {}
        for flag in (resize, crop):
            if flag.value is not None:
                crops[flag.name] = flag.value
        try:
            saved = SavedWeights(cli.required(path), checkpoint.value, averaged.value)
            vit = load_as(
                saved, ModelConfig.from_fields(changes), reduction=reduction.value
            )
            images = dataclasses.replace(vit.preprocessing, **crops)
        except InputError as error:
            named = {"path": "--weights", "reduction.macs": "--reduction"}
            named |= flags_of("checkpoint", "reduction", "crop")
            raise error.renamed(named | flags_of(*ModelConfig.names())) from error
        if not vit.source.normalized:
            print(f"note: {unknown_normalization(path.value)}", flush=True)
        note = crop_note(vit.source, images, "--crop")
        if note and crop.value is None:
            warn(note)
        return dataclasses.replace(vit, preprocessing=images)

    return read
