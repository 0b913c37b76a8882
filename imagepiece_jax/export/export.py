"""Export of a trained model: an ONNX file, and JSON that describes it.

The file does not run here. Tests compare its logits in onnxruntime and OpenVINO.
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

    FILE.json beside it describes image preparation and outputs. It also names the
    second file for weights above 2 GB. Layers compute in float32, whatever the
    model's dtype.

    out: an .onnx file. Only an earlier export is replaced. With a `layout`, a folder.
    batch_size: images per call; None: any number
    gelu: the GELU variant, as in `optimize`; None: the model's
    pixels: uint8 images, normalized by the program; else float32
    output: "logits" (pooled vectors of a model without classes), "features" (the
        outputs of `features`) or "patches" (only a feature per patch)
    layout: the program that loads the folder, from `tower.LAYOUTS`
    Returns the file's path.
    Raises InputError for a wrong argument, before anything is written.
    """
    if batch_size is not None:
        check_range("batch_size", batch_size, 1, whole=True)
    check_gelu(vit.model, gelu)
    vit.warn_of_untrained()
    # float32, with plain attention, which has an ONNX graph.
    config = vit.config.with_arch(gelu=gelu or vit.config.arch.gelu)
    execution = execution_of(config, "float32", "xla")
    model = vit.model.clone(config=config, execution=execution)
    vit = dataclasses.replace(vit, model=model)
    folder = pathlib.Path(os.path.expanduser(out))
    if layout is None:
        outputs = ProgramOutputs(vit, output)
    elif output != "logits":
        raise InputError(f"output is {output!r}; the layout decides the outputs")
    else:
        out = tower.graph_file(folder, layout, vit)
        outputs = tower.outputs(vit, layout, pixels)
        # Saved models have JSON files of the same names, and an export without a layout
        # may lie beside a saved model. Only an export for this layout is replaced.
        earlier = program_facts.read_facts(out).get("layout") == layout

        def ours(file):
            # Ctrl-C may have left an empty folder.
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
    # Read before the new facts replace it.
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
    """Check the path of an .onnx file to write. Only an export may be replaced."""
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
