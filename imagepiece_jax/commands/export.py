"""Export of a model with its weights as one file, for JAX or as ONNX.

python -m imagepiece_jax export --weights WORKDIR --out model.jax
python -m imagepiece_jax export --format onnx --config configs/deit_s_imagepiece.py \\
    --weights FILE --out model.onnx

A run determines its model, a file its sizes: see `evaluate`. The program takes any
batch size, unless --batch fixes it, and images normalized as FILE.json, beside it,
says; with --pixels, uint8 images. With --tokens K it gives exactly K image tokens,
their sizes, the token of each patch and where tokens stand
(`inference.token_list.TokenList`).

ONNX is for onnxruntime, OpenVINO, TensorRT and others, in float32. The other format
holds the program that `imagepiece_jax.optimize` compiles, for CPUs and NVIDIA GPUs;
running it needs JAX and flatbuffers, and neither this package nor Flax. JAX promises to
read it for six months; ONNX lasts longer. docs/inference.md has code that runs it.
"""

import dataclasses
import importlib.util
import pathlib

from imagepiece_jax import cli
from imagepiece_jax.common.files import check_writable, replace_file, write_json
from imagepiece_jax.common.progress import working
from imagepiece_jax.errors import InputError, naming_flags

MODEL = cli.trained_model()
OUT = cli.text("out", None, "the file to write; it is replaced if it exists")
FORMAT = cli.choice("format", "jax", ("jax", "onnx"), "of the file")
BATCH = cli.integer("batch", None, "images at a time; default: any", 1)
PIXELS = cli.switch("pixels", False, "take uint8 images, normalized inside")
TOKENS = cli.integer("tokens", None, "give so many image tokens, not logits", 1)


def main():
    typed = MODEL()
    # They import JAX: after the flags.
    from imagepiece_jax.common import xla_options
    from imagepiece_jax.inference import jax_export
    from imagepiece_jax.inference.onnx_graph import OPSET
    from imagepiece_jax.inference.onnx_model import onnx_model
    from imagepiece_jax.inference.token_list import TokenList
    from imagepiece_jax.pretrained.load import build
    from imagepiece_jax.pretrained.runs import own_files
    from imagepiece_jax.pretrained.with_config import read_with_config

    out, form = pathlib.Path(cli.required(OUT)), FORMAT.value
    if out.suffix in (".jax", ".onnx") and out.suffix != f".{form}":
        problem = f"{out} ends in {out.suffix}, but --format is {form}"
        allowed = f"--format {out.suffix[1:]}, or another name"
        raise InputError(problem, field="--out", value=str(out), allowed=allowed)
    facts_file = jax_export.facts_file(out)
    for file in (out, facts_file):
        check_writable("--out", file, own_files(typed["path"]))
    _check_installed(form)
    config, weights = read_with_config(**typed)
    vit = build(weights)
    model = vit.model.clone(backend="xla", kernels=None)  # which run on both
    vit = dataclasses.replace(vit, model=model)
    xla_options.check_dtype(model.dtype.name, "cpu")
    options = {
        "batch_size": BATCH.value,
        "pixels": PIXELS.value,
        "tokens": TOKENS.value,
    }
    config.model.attention, config.model.kernels = "xla", "plain"
    with naming_flags("tokens"):
        images = jax_export.exported_images(vit, **options)
        facts = jax_export.facts(vit, config, images, TOKENS.value)
    with working(f"exporting the model as {form}"):
        if form == "onnx":
            data = onnx_model(vit, **options).SerializeToString()
            facts.update(dtype="float32", opset=OPSET)
            if TOKENS.value is not None:
                facts["output"][TokenList._fields.index("source")]["dtype"] = "int64"
            runs = f"ONNX opset {OPSET}"
        else:
            data = jax_export.serialized(vit, **options)
            facts.update(platforms=jax_export.PLATFORMS, **jax_export.origin())
            runs = f"for {' and '.join(jax_export.PLATFORMS)}"
    replace_file(out, data)
    write_json(facts_file, facts)
    print(
        f"{out}: {len(data) / 1e6:.1f} MB, {facts['dtype']}, {facts['gmacs']:.3f} "
        f"GMACs an image, {runs}; {facts_file.name} describes input and output"
    )


def _check_installed(form):
    """Raise InputError where a package that writes this format is missing."""
    package, writes, extra = {
        "jax": ("flatbuffers", "JAX writes programs with it", "."),
        "onnx": ("onnx", "--format onnx is written with it", '".[onnx]"'),
    }[form]
    if importlib.util.find_spec(package) is None:
        hint = f"install it: pip install {extra} in a clone"
        problem = f"is not installed, and {writes}"
        raise InputError(problem, field=package, hint=hint)


if __name__ == "__main__":
    cli.run(main)
