"""Export of a model with its weights as an ONNX file."""

import dataclasses
import pathlib
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from imagepiece_jax.commands._arguments import Weights


@dataclasses.dataclass(frozen=True)
class Out:
    """The file to write."""

    out: Annotated[pathlib.Path, Positional, arg(metavar="OUT")]
    """The .onnx file to write, new or of an earlier export; a folder with --layout."""


def main(
    weights: Weights,
    out: Out,
    *,
    batch_size: int | None = None,
    gelu: Literal["exact", "tanh"] | None = None,
    pixels: bool = False,
    output: Literal["logits", "features", "patches"] = "logits",
    layout: Literal["immich", "transformers", "fastembed"] | None = None,
):
    """Write a model with its weights as an ONNX file, which computes in float32.

    OUT.json beside it describes image preparation and outputs.

    Example: imagepiece export weights model.onnx --reduction 0.6

    Args:
        batch_size: Images per call; any number if unset.
        gelu: The GELU variant in the program; the model's if unset.
        pixels: Take uint8 images and normalize them inside the program.
        output: The program's outputs.
        layout: Write the folder that this program loads.
    """
    from imagepiece_jax.export.export import checked_file, export
    from imagepiece_jax.export.program_facts import read_facts

    if layout is None:
        checked_file(out.out)
    vit = weights.load()
    file = export(
        vit,
        out.out,
        batch_size=batch_size,
        gelu=gelu,
        pixels=pixels,
        output=output,
        layout=layout,
    )
    facts = read_facts(file)
    files = [file]
    if "external_data" in facts:
        files.append(file.with_name(facts["external_data"]))
    size = sum(path.stat().st_size for path in files)
    print(
        f"{' and '.join(map(str, files))}: {size / 1e6:.1f} MB, {facts['dtype']}, "
        f"{facts['gmacs']:.3f} GMACs an image, ONNX opset {facts['opset']}; "
        f"{file.name}.json describes input and output"
    )
