"""Export of a model with its weights as one file, for JAX or as ONNX.

python -m imagepiece_jax export --weights WORKDIR --out model.jax
python -m imagepiece_jax export --format onnx --config configs/deit_s_imagepiece.py \\
    --weights FILE --out model.onnx

A run determines its model, a file its sizes: see `evaluate`. The program takes any
batch size, unless --batch fixes it, and images normalized as FILE.json, beside it,
says; with --pixels, uint8 images. --output features gives what
`imagepiece_jax.features` returns, --output patches only its map, and --layers the same
after some blocks. With --tokens K it gives exactly K image tokens, their sizes, the
token of each patch and where tokens stand (`inference.token_list.TokenList`).

ONNX is for onnxruntime, OpenVINO, TensorRT and others, in float32; weights of more than
2 GB are in a file beside it, which FILE.json names. The other format holds the program
that `imagepiece_jax.optimize` compiles, for CPUs and NVIDIA GPUs; running it needs JAX
and flatbuffers, and neither this package nor Flax. JAX promises to read it for six
months; ONNX lasts longer. docs/inference.md has code that runs it.
"""

import dataclasses
import pathlib

from imagepiece_jax import cli
from imagepiece_jax.common import extras
from imagepiece_jax.common.fields import literal
from imagepiece_jax.common.files import check_writable, replace_file, write_json
from imagepiece_jax.common.progress import working
from imagepiece_jax.errors import InputError, flags_of

MODEL = cli.trained_model()
OUT = cli.text("out", None, "the file to write; it is replaced if it exists")
FORMAT = cli.choice("format", "jax", ("jax", "onnx"), "of the file")
BATCH = cli.integer("batch", None, "images at a time; default: any", 1)
PIXELS = cli.switch("pixels", False, "take uint8 images, normalized inside")
OUTPUT = cli.choice(
    "output", "logits", ("logits", "features", "patches"), "of the program"
)
LAYERS = cli.text(
    "layers", "0", "features of so many last blocks, or of blocks such as 2,5,8,11, too"
)
NORM = cli.switch("norm", True, "the model's last norm for features of --layers")
FILL = cli.choice(
    "fill", "nearest", ("nearest", "last", "zero", "class"), "of dropped patches"
)
TOKENS = cli.integer("tokens", None, "give so many image tokens, not logits", 1)

WRITERS = {"jax": "flatbuffers", "onnx": "onnx"}  # which write a format


def main():
    typed = MODEL()
    # These import JAX, which --help and a mistyped flag need not wait for.
    import jax.numpy as jnp

    from imagepiece_jax.common import xla_options
    from imagepiece_jax.inference import jax_export, onnx_model
    from imagepiece_jax.inference.onnx_graph import stored_dtype
    from imagepiece_jax.inference.program_outputs import ProgramOutputs
    from imagepiece_jax.pretrained.runs import own_files
    from imagepiece_jax.pretrained.with_config import load_with_config

    out = pathlib.Path(cli.required(OUT))
    form = FORMAT.value
    if out.suffix in (".jax", ".onnx") and out.suffix != f".{form}":
        raise InputError(
            f"{out} ends in {out.suffix}, but --format is {form}",
            field="--out",
            value=str(out),
            allowed=f"--format {out.suffix[1:]}, or another name",
        )
    facts_file = jax_export.facts_file(out)
    for file in (out, facts_file):
        check_writable("--out", file, own_files(typed["path"]))
    extras.check(f"--format {form}", WRITERS[form])
    config, vit = load_with_config(**typed)
    _check_taken(config.model, form)
    model = vit.model.clone(backend="xla", kernels=None)  # which run on both
    if form == "onnx":
        model = model.clone(dtype=jnp.dtype("float32"))
    vit = dataclasses.replace(vit, model=model)
    xla_options.check_dtype(model.dtype.name, "cpu")
    config.model.attention = "xla"
    config.model.kernels = "plain"
    options = {
        "output": OUTPUT.value,
        "tokens": TOKENS.value,
        "layers": literal(LAYERS.value),
        "norm": NORM.value,
        "fill": FILL.value,
    }
    try:
        outputs = ProgramOutputs(vit, **options)
        if form == "onnx":  # before a sentence that asks for a batch size
            onnx_model.check_has_graph(vit, outputs.model)
        images = jax_export.exported_images(
            vit, BATCH.value, PIXELS.value, TOKENS.value
        )
    except InputError as error:
        raise error.renamed(flags_of(*options)) from error
    options.update(batch_size=BATCH.value, pixels=PIXELS.value)
    earlier_weights = jax_export.read_facts(out).get("external_data")
    with working(f"exporting the model as {form}"):
        if form == "onnx":
            program = onnx_model.onnx_model(vit, **options)
            facts = jax_export.program_facts(vit, config, images, outputs, stored_dtype)
            facts["opset"] = onnx_model.OPSET
            weights_file = onnx_model.write_onnx(out, program)
            runs = f"ONNX opset {onnx_model.OPSET}"
        else:
            program = jax_export.serialized(vit, **options)
            facts = jax_export.program_facts(vit, config, images, outputs)
            facts.update(platforms=jax_export.PLATFORMS, **jax_export.origin())
            replace_file(out, program)
            weights_file = None
            runs = f"for {' and '.join(jax_export.PLATFORMS)}"
    files = [out]
    if weights_file is not None:
        facts["external_data"] = weights_file.name
        files.append(weights_file)
    write_json(facts_file, facts)
    onnx_model.remove_weights(out, earlier_weights, weights_file)
    size = sum(file.stat().st_size for file in files)
    print(
        f"{' and '.join(map(str, files))}: {size / 1e6:.1f} MB, {facts['dtype']}, "
        f"{facts['gmacs']:.3f} GMACs an image, {runs}; {facts_file.name} describes "
        "input and output"
    )


def _check_taken(fields, form):
    """Raise InputError for a typed field of the model that no file takes.

    fields: the group "model" of the config
    """
    taken = {"attention": "xla", "kernels": "plain"}
    if form == "onnx":
        taken["dtype"] = "float32"
    for field, value in taken.items():
        typed = cli.is_typed(f"model.{field}")
        if typed and fields[field] not in (value, "auto", None):
            raise InputError(
                field=f"config.model.{field}",
                value=fields[field],
                allowed=f"'{value}' in files of --format {form}",
            )


if __name__ == "__main__":
    cli.run(main)
