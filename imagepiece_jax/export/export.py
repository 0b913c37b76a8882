"""A trained model as one file: a graph for ONNX, and JSON that describes it.

The file is not run here; tests compare its logits in onnxruntime and OpenVINO.
"""

import dataclasses
import os
import pathlib

from imagepiece_jax.common import extras
from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.files import check_own, check_writable, write_json
from imagepiece_jax.common.progress import working
from imagepiece_jax.common.signals import finishing
from imagepiece_jax.errors import InputError
from imagepiece_jax.export import onnx_model, program_facts, tower
from imagepiece_jax.export.onnx_graph import stored_dtype
from imagepiece_jax.export.program_outputs import ProgramOutputs
from imagepiece_jax.inference.optimize import check_gelu
from imagepiece_jax.models.create import execution_of
from imagepiece_jax.models.pretrained import Pretrained

ENDING = ".onnx"


def export(
    vit: Pretrained,
    out: str | os.PathLike,
    *,
    batch_size: int | None = None,
    gelu: str | None = None,
    pixels: bool = False,
    output: str = "logits",
    layout: str | None = None,
) -> pathlib.Path:
    """Write a model with its weights as an ONNX file, which runs without this package.

    FILE.json beside it says how to prepare images, and what the outputs are. It also
    names the second file that holds weights of more than 2 GB. Layers compute in
    float32, whatever the model's dtype is.

    out: a file that ends in .onnx; only an earlier export is replaced. With a `layout`,
        a folder
    batch_size: number of images in a call; None: any
    gelu: form of GELU, as `optimize` takes it; None: the model's
    pixels: whether images are uint8, which the program normalizes; else float32
    output: "logits" (pooled vectors of a model without classes), "features" (what
        `features` returns) or "patches" (only a feature for every patch)
    layout: the program that loads the folder, one of `tower.LAYOUTS`; None: none
    Returns the path of the file.
    Raises InputError for anything that does not fit, before anything is written.
    """
    if batch_size is not None:
        check_range("batch_size", batch_size, 1, whole=True)
    check_gelu(vit.model, gelu)
    vit.warn_of_untrained()
    # In float32, with attention that has a graph.
    config = vit.config.with_arch(gelu=gelu or vit.config.arch.gelu)
    execution = execution_of(config, "float32", "xla")
    model = vit.model.clone(config=config, execution=execution)
    vit = dataclasses.replace(vit, model=model)
    folder = pathlib.Path(os.path.expanduser(out))
    if layout is None:
        outputs = ProgramOutputs(vit, output)
    elif output != "logits":
        raise InputError(f"output is {output!r}; a layout has outputs of its own")
    else:
        out = tower.graph_file(folder, layout, vit)
        outputs = tower.outputs(vit, layout, pixels)
        # Its JSON files have names that saved models have, too, and a graph by itself
        # may lie beside those.
        earlier = program_facts.read_facts(out).get("layout") == layout

        def ours(file):
            # Ctrl-C leaves an empty folder.
            is_place = file == out.parent and file.is_dir()
            return earlier or (is_place and not any(file.iterdir()))

        check_own("out", folder, f"an export for {layout}", ours)
        out.parent.mkdir(parents=True, exist_ok=True)
    out = checked_file(out)
    images = program_facts.exported_images(
        vit, batch_size, pixels, outputs.channels_first
    )
    with working("exporting the model"):
        program = onnx_model.onnx_model(
            vit, batch_size=batch_size, pixels=pixels, outputs=outputs
        )
        facts = program_facts.program_facts(vit, images, outputs, stored_dtype)
        facts["opset"] = onnx_model.OPSET
        facts["layout"] = layout
    earlier_weights = program_facts.read_facts(out).get("external_data")
    with finishing():  # the files belong together
        weights_file = onnx_model.write_onnx(out, program)
        if weights_file is not None:
            facts["external_data"] = weights_file.name
        write_json(program_facts.facts_file(out), facts)
        onnx_model.remove_weights(out, earlier_weights, weights_file)
        if layout is not None:
            tower.write_configs(folder, vit, layout)
    return out


def checked_file(out: str | os.PathLike) -> pathlib.Path:
    """The path of a file to export to."""
    out = pathlib.Path(os.path.expanduser(out))
    if out.suffix.lower() != ENDING:
        raise InputError(f"out {out} does not end in {ENDING}")
    is_export = program_facts.FACTS <= {*program_facts.read_facts(out)}
    for file in (out, program_facts.facts_file(out)):
        check_writable("out", file, (ENDING, ".json"))
        if file.exists() and not is_export:
            raise InputError(f"{file} already exists, and export did not write it")
    extras.check("an ONNX file", "onnx")
    return out
