"""Export of a model with its weights as an ONNX or LiteRT file."""

import dataclasses
import pathlib
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from imagepiece_jax.commands._arguments import Weights, option_values


@dataclasses.dataclass(frozen=True)
class ExportedWeights(Weights):
    """Weights, whose dtype is the file's: `load` does not get it."""

    dtype: Literal["float32", "float16", "int8"] = "float32"  # pyrefly: ignore[bad-override]
    """Type of the file's layers; int8 needs --images."""

    def typed_options(self) -> dict[str, Any]:
        options = super().typed_options()
        options.pop("dtype")
        return options


@dataclasses.dataclass(frozen=True)
class Out:
    """The file to write."""

    # The .onnx or .tflite file to write, new or of an earlier export, or a folder for
    # an .onnx file; with --layout always a folder.
    out: Annotated[pathlib.Path, Positional, arg(metavar="OUT")]


def main(
    weights: ExportedWeights,
    out: Out,
    *,
    batch_size: int | None = None,
    gelu: Literal["exact", "tanh"] | None = None,
    pixels: bool = False,
    output: Literal["logits", "features", "patches"] = "logits",
    layout: str | None = None,
    images: tuple[str, ...] | None = None,
) -> None:
    """Write a model with its weights as an ONNX file, or as a LiteRT file for phones.

    OUT.json beside it describes image preparation and outputs. With --images the
    command also prints a card, and writes it as README.md.

    Example: imagepiece export weights model.onnx --reduction 0.6

    Args:
        batch_size: Images per call, which a .tflite file needs; any number if unset.
        gelu: The GELU variant in the program; the model's if unset.
        pixels: Take uint8 images and normalize them inside the program.
        output: The program's outputs.
        layout: Write the folder that a program loads, such as immich; a wrong name
            lists all programs.
        images: Photographs, as for recover. Part of them calibrates int8; the card is
            measured on others.
    """
    from imagepiece_jax.exporters import program_facts
    from imagepiece_jax.exporters.card import format_card_table
    from imagepiece_jax.exporters.export import choose_graph_file, export
    from imagepiece_jax.models.program import import_format

    image_paths = option_values("images", images)
    if layout is None:
        choose_graph_file(out.out, weights.dtype)  # its errors come before loading
    file = export(
        weights.load_model(),
        out.out,
        batch_size=batch_size,
        gelu=gelu,
        pixels=pixels,
        output=output,
        layout=layout,
        dtype=weights.dtype,
        images=image_paths or None,  # (): --images is not typed
    )
    facts = program_facts.read_facts(file)  # what OUT.json holds
    files = program_facts.program_files(file)
    num_bytes = sum(path.stat().st_size for path in files)
    print(
        f"{' and '.join(map(str, files))}: {num_bytes / 1e6:.1f} MB, {facts['dtype']}, "
        f"{facts['gmacs']:.3f} GMACs an image, {import_format(file).FORMAT_VERSION}; "
        f"{file.name}.json describes input and output"
    )
    if "card" in facts:
        print(format_card_table(file, facts))
