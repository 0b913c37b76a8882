"""Export of a model with its weights as an ONNX file.

python -m imagepiece_jax export --weights WORKDIR --out model.onnx
python -m imagepiece_jax export --weights FILE --reduction tome:r=8 --out model.onnx

A run determines its model: see `evaluate`. The program takes any batch size, unless
--batch fixes it, and images normalized as FILE.json, beside it, says; with --pixels,
uint8 images. --output features gives what `imagepiece_jax.features` returns, and
--output patches only its map.

ONNX is for onnxruntime, OpenVINO, TensorRT and others, in float32; weights of more than
2 GB are in a file beside it, which FILE.json names. docs/inference.md has code that
runs it.
"""

from imagepiece_jax import cli
from imagepiece_jax.commands import _weights
from imagepiece_jax.errors import flags_of, renamed

WEIGHTS = _weights.weights()
cli.choice("attention", None, ["xla"], "which runs everywhere; files have no other")
cli.choice("dtype", None, ["float32"], "of layers; files have no other")
OUT = cli.text("out", None, "the .onnx file to write, new or of an earlier export")
BATCH = cli.integer("batch", None, "images at a time; default: any", 1)
GELU = cli.gelu("the program", "the model's")
PIXELS = cli.switch("pixels", False, "take uint8 images, normalized inside")
OUTPUT = cli.choice(
    "output", "logits", ("logits", "features", "patches"), "of the program"
)

# Arguments of `imagepiece_jax.export` by their flags, where the names differ.
NAMES = {"batch_size": "--batch", "reduction": "--reduction"}
NAMES |= flags_of("out", "output", "gelu")


def main():
    cli.path_of_weights()  # a missing one is said first
    # These import JAX, which --help and a mistyped flag need not wait for.
    from imagepiece_jax.inference.export import checked_file, export
    from imagepiece_jax.inference.program_facts import read_facts

    out = cli.required(OUT)
    with renamed(NAMES):
        checked_file(out)
    vit = WEIGHTS()
    with renamed(NAMES):
        out = export(
            vit,
            out,
            batch_size=BATCH.value,
            gelu=GELU.value,
            pixels=PIXELS.value,
            output=OUTPUT.value,
        )
    facts = read_facts(out)
    files = [out]
    if "external_data" in facts:
        files.append(out.with_name(facts["external_data"]))
    size = sum(file.stat().st_size for file in files)
    print(
        f"{' and '.join(map(str, files))}: {size / 1e6:.1f} MB, {facts['dtype']}, "
        f"{facts['gmacs']:.3f} GMACs an image, ONNX opset {facts['opset']}; "
        f"{out.name}.json describes input and output"
    )


if __name__ == "__main__":
    cli.run(main)
