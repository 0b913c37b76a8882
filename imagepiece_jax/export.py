"""Export of a model with its weights as one file that needs only JAX.

python -m imagepiece_jax.export --weights WORKDIR --out model.jax
python -m imagepiece_jax.export --config configs/deit_s_imagepiece.py \\
    --weights FILE --out model.jax

A run determines its model, a file its sizes: see `evaluate`.

The file holds the program that `imagepiece_jax.optimize` compiles, weights included,
for any batch size, for CPUs and NVIDIA GPUs; FILE.json beside it describes input and
output. Running it needs JAX and flatbuffers, and neither this package nor Flax:

    with open("model.jax", "rb") as file:
        program = jax.export.deserialize(bytearray(file.read()))
    logits = jax.jit(program.call)(images)
"""

import importlib.util
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags

from imagepiece_jax import cli, config_flags
from imagepiece_jax.common import xla_options
from imagepiece_jax.common.files import check_writable, replace_file
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import optimize
from imagepiece_jax.models import summary
from imagepiece_jax.models.run_files import own_files
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.training import from_config
from imagepiece_jax.training.weights_config import of_weights

config_flags.define()
WEIGHTS = cli.weights()
NORMALIZATION = cli.normalization()
CHECKPOINT = cli.checkpoint()
OUT = flags.DEFINE_string(
    "out", None, "the file to write, replaced if there", allow_override=True
)

PLATFORMS = ("cpu", "cuda")


def main():
    path, normalization = cli.required(WEIGHTS), NORMALIZATION()
    out = pathlib.Path(cli.required(OUT))
    for file in (out, facts_file(out)):
        check_writable("--out", file, own_files(path))
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError(
            "flatbuffers is not installed, and JAX writes programs with it; install "
            "it: pip install flatbuffers"
        )
    config, weights = of_weights(
        path, *config_flags.config_or_base(), normalization, CHECKPOINT.value
    )
    config.model.attention, config.model.kernels = "xla", "plain"  # run on both
    model = from_config.model(config).clone(class_names=weights.class_names)
    xla_options.check_dtype("cpu", model.dtype.name)
    variables = weights.restore(model, config.image_size)
    data = serialized(model, variables, config.image_size)
    known = facts(model, config)
    replace_file(out, data)
    replace_file(facts_file(out), json.dumps(known, indent=2) + "\n")
    print(
        f"{out}: {len(data) / 1e6:.1f} MB, {known['dtype']}, {known['gmacs']:.3f} "
        f"GMACs an image, for {' and '.join(PLATFORMS)}; {facts_file(out).name} "
        "describes input and output"
    )


def facts_file(out: str | os.PathLike) -> pathlib.Path:
    """Path of the facts about the program in file `out`."""
    return pathlib.Path(f"{out}.json")


def serialized(model: ViT, variables: Mapping[str, Any], image_size) -> bytes:
    """The bytes of `jax.export` of images [batch, H, W, 3] float32 -> logits.

    image_size: pixels a side, or (height, width). `batch` stays open; layers are of the
    model's dtype. `model` must have XLA's attention and plain reductions, which both
    platforms have.
    """
    _check_draws(model)
    fast, fixed = optimize.prepare(model, variables, dtype=model.dtype.name)
    logits = optimize.forward(fast)
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *sides(image_size), 3), "float32")
    program = jax.jit(lambda images: logits(fixed, images))
    return jax.export.export(program, platforms=PLATFORMS)(images).serialize()


def _check_draws(model):
    """InputError for a model that draws: JAX cannot for an open number of images."""
    for layer in model.plan:
        if layer.counts and layer.step.reducer.draws(layer.counts, train=False):
            raise InputError(
                f"config.reduction.name is {model.reduction['name']!r}, which draws "
                "random numbers; allowed in a file are reductions that do not"
            )


def facts(model, config):
    """Input, output and model of the program, as JSON values."""
    side = config.image_size
    return {
        "input": {"shape": ["batch", side, side, 3], "dtype": "float32"},
        "normalization": {"pixels": "0 to 1", "mean": model.mean, "std": model.std},
        "output": {"shape": ["batch", model.num_classes], "dtype": "float32"},
        "labels": model.num_classes,
        "class_names": model.class_names,
        "model": config.model.to_dict(),
        "method": config.reduction.to_dict(),
        "dtype": model.dtype.name,
        "gmacs": summary.model_macs(model, side) / 1e9,
        "platforms": PLATFORMS,
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    cli.run(main)
