"""Export of a trained model: an ONNX file, and JSON that describes it.

The file does not run here. Tests compare its logits in onnxruntime and OpenVINO.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any

from imagepiece_jax.common import extras
from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.common.files import (
    check_own_files,
    check_writable,
    replace_file,
    temporary_folder,
    write_json,
)
from imagepiece_jax.common.progress import announced_work
from imagepiece_jax.common.signals import deferred_signals
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters import (
    card,
    largest_numbers,
    onnx_model,
    onnx_program,
    program_facts,
    quantize,
    tower,
    upload,
)
from imagepiece_jax.exporters.program_outputs import ProgramOutputs
from imagepiece_jax.inference.optimize import check_gelu
from imagepiece_jax.models.create import make_execution
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.record import as_json

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
    dtype: str = "float32",
    gathers: bool | None = None,
    images: Any = None,
    texts: str | os.PathLike | None = None,
    push: str | None = None,
    dry_run: bool = False,
) -> pathlib.Path:
    """Write a model with its weights as an ONNX file, which runs without this package.

    FILE.json beside it describes image preparation and outputs. It also names the
    second file for weights above 2 GB. With `images` the file is measured, and the
    JSON and a README.md have its card.

    out: an .onnx file, or a folder, which gets a model.onnx. Only an earlier export is
        replaced. With a `layout`, always a folder.
    batch_size: images per call; None: any number
    gelu: the GELU variant, as in `optimize`; None: the model's
    pixels: uint8 images, normalized by the program; else float32
    output: "logits" (pooled vectors of a model without classes), "features" (the
        outputs of `features`) or "patches" (only a feature per patch)
    layout: the program that loads the folder, from `tower.LAYOUTS`
    dtype: of the layers, whatever the model's: "float32", "float16" or "int8", where
        products with weights are quantized. Norms, softmax, and scores and order of
        reductions are float32 in every dtype, and so are outputs. In float16 the stem
        is float32, and so are blocks with large numbers
    gathers: sort and gather tokens by integers: equal outputs, a few percent faster on
        CPUs, but tokens leave a browser's GPU. None: what the layout's program wants;
        False without a layout
    images: as for `recover`. Part of them calibrates int8, which needs them; the card
        is measured on others
    texts: a text tower's vectors for the card, as for `compare`
    push: OWNER/NAME on the Hugging Face hub, to which the files are uploaded in one
        commit, with the card as their page. Needs `images`, and a login
    dry_run: note the files of `push` instead of uploading them
    Returns the file's path.
    Raises InputError for a wrong argument, and for outputs that are not finite, before
        anything is written; for `push` also RunError if the hub fails, before or after
        the files are written.
    """
    if batch_size is not None:
        check_range("batch_size", batch_size, 1, whole=True)
    check_gelu(vit.model, gelu)
    check_choice("dtype", dtype, tower.SUFFIX)
    check_choice("gathers", gathers, (None, True, False))
    if dtype == "int8" and images is None:
        raise InputError(
            "dtype is 'int8', which images calibrate; give images (--images FOLDER)"
        )
    if texts is not None and (images is None or output != "logits"):
        raise InputError(
            f"texts is {texts}, which needs images (--images FOLDER) and the output "
            "'logits'"
        )
    vit.warn_of_untrained()
    vit = _traced(vit, gelu, dtype)
    folder = pathlib.Path(os.path.expanduser(out))
    if layout is None:
        outputs = ProgramOutputs(vit, output)
        out = checked_file(out, dtype)
        folder = out.parent
    elif output != "logits":
        raise InputError(f"output is {output!r}; the layout decides the outputs")
    else:
        out = tower.graph_file(folder, layout, vit, dtype)
        outputs = tower.outputs(vit, layout, pixels)
        _check_folder(folder, layout, vit, out)
    if gathers is None:
        gathers = layout is not None and tower.LAYOUTS[layout].gathers
    if push is None and dry_run:
        raise InputError("dry_run is for push; give push='OWNER/NAME' (--push)")
    if push is not None:
        if images is None:
            raise InputError(
                "push needs images, because the hub shows the card; give images "
                "(--images FOLDER)"
            )
        upload.check_repository(push, dry_run)
    page = folder / card.NAME
    card_images = None
    if images is not None:
        extras.check_installed("a card", "onnxruntime")
        if vit.config.arch.pool == "none" and output != "patches":
            raise InputError(
                "pool is 'none', so a card has no image vectors to compare; give "
                "output='patches' (--output patches)"
            )
        if page.exists() and not card.is_card(page):
            raise InputError(
                f"{page} already exists, and export did not write it; the card needs a "
                "folder of its own"
            )
        card_images = card.divided_images(vit, images, texts)
    largest = largest_numbers.find(vit, card_images and card_images.calibration)
    if dtype == "float16":
        outputs.model = largest_numbers.in_float16(outputs.model, largest)
    out.parent.mkdir(parents=True, exist_ok=True)
    checked_file(out)
    float32_export = functools.partial(
        export,
        batch_size=batch_size,
        gelu=gelu,
        pixels=pixels,
        output=output,
        layout=layout,
        gathers=gathers,
    )
    if dtype == "int8":
        with temporary_folder() as temporary:
            float32_program = onnx_program.open_file(float32_export(vit, temporary))
            count = len(card_images.calibration)
            with announced_work(
                f"calibrating int8 with {count} images, which takes minutes"
            ):
                program = quantize.quantized(float32_program, card_images.calibration)
    else:
        with announced_work("exporting the model"):
            program = onnx_model.onnx_model(
                vit,
                batch_size=batch_size,
                pixels=pixels,
                outputs=outputs,
                gathers=gathers,
            )
    shape = program_facts.exported_images(
        vit, batch_size, pixels, outputs.channels_first
    )
    facts = program_facts.program_facts(vit, shape, outputs)
    facts |= {"opset": onnx_model.OPSET, "layout": layout, "dtype": dtype}
    facts["gathers"] = gathers
    facts["float32_parts"] = list(outputs.model.execution.float32_parts)
    import onnx  # which `checked_file` found

    if layout is not None:
        onnx.helper.set_model_props(program, tower.LAYOUTS[layout].metadata(vit))
    files = tower.files(folder, vit, layout)
    if card_images is not None:
        with temporary_folder() as temporary:
            # Beside the dense file, and in place only if its outputs are finite.
            dense = float32_export(vit.with_reduction(None), temporary)
            trial = dense.with_name(f"trial_{out.name}")
            _write_files(trial, program, facts, dense.with_name(card.NAME), {})
            has_classes = "logits" in outputs.names and vit.has_classes
            facts["card"] = card.measured(trial, dense, card_images, has_classes)
            program = onnx.load(trial)
    with deferred_signals():
        _write_files(out, program, facts, page, files)
        if card_images is not None:
            card.write_page(page, out, card.page_of(out, vit, facts))
    if push is not None:
        parts = []
        for name in card.graphs_on(page):  # earlier types of the model, too
            graph = out.with_name(name)
            if graph.exists():
                parts += [
                    *program_facts.files_of(graph),
                    program_facts.facts_file(graph),
                ]
        upload.upload(push, folder, [*parts, *files, page], dry_run)
    return out


def _traced(vit, gelu, dtype):
    """The model as it is traced: with plain attention, which has an ONNX graph."""
    config = vit.config.with_arch(gelu=gelu or vit.config.arch.gelu)
    if dtype == "int8":  # made of the float32 graph
        dtype = "float32"
    execution = make_execution(config, dtype, "xla")
    model = vit.model.clone(config=config, execution=execution)
    return dataclasses.replace(vit, model=model)


def _check_folder(folder, layout, vit, out):
    """Check a layout's folder: only an export for this layout is replaced.

    An export for the layout may get further dtypes of its model. A saved model has JSON
    files of the same names, and an export without a layout may lie beside it.

    out: the graph to write
    """
    is_export = False
    for dtype in tower.SUFFIX:
        graph = tower.graph_file(folder, layout, vit, dtype)
        facts = program_facts.read_facts(graph)
        if facts.get("layout") == layout:
            is_export = True
            if graph != out and facts["model"] != as_json(vit.config):
                raise InputError(f"{graph} is of another model; choose a folder")

    def ours(file):
        # Ctrl-C may have left an empty folder.
        is_place = file == out.parent and file.is_dir()
        return is_export or (is_place and not any(file.iterdir()))

    check_own_files("out", folder, f"an export for {layout}", ours)


def _write_files(out, program, facts, page, files):
    """Write a program, its weights and the files beside it, and remove earlier ones.

    facts: get the digest, and the name of the file for weights, if there is one
    page: the cards, which lose an earlier file's
    files: the layout's, {path: JSON value, or text}
    """
    # Read before the new facts replace it.
    earlier_weights = program_facts.read_facts(out).get("external_data")
    with deferred_signals():  # the files belong together
        # Nobody compares these with the graph's digest. A kill must not leave them
        # beside another graph.
        card.write_page(page, out)
        for file in files:
            file.unlink(missing_ok=True)
        weights_file = onnx_model.write_onnx(out, program)
        if weights_file is not None:
            facts["external_data"] = weights_file.name
        facts["digest"] = program_facts.digest_of(out)
        write_json(program_facts.facts_file(out), facts)
        onnx_model.remove_weights(out, earlier_weights, weights_file)
        for file, content in files.items():
            if isinstance(content, str):
                replace_file(file, content)
            else:
                write_json(file, content)


def checked_file(out: str | os.PathLike, dtype: str = "float32") -> pathlib.Path:
    """Check the path of an .onnx file to write. Only an export may be replaced.

    out: the file, or a folder, which may be new
    Returns the file's path.
    """
    out = pathlib.Path(os.path.expanduser(out))
    folder = None
    if out.is_dir() or not out.suffix:
        folder = out
        out = folder / f"model{tower.SUFFIX[dtype]}{ENDING}"
    if out.suffix.lower() != ENDING:
        raise InputError(f"out {out} does not end in {ENDING}")
    extras.check_installed("an ONNX file", "onnx")
    if folder is not None and not folder.exists():
        check_writable("out", folder, ("",))
        return out
    is_export = program_facts.FACTS <= {*program_facts.read_facts(out)}
    for file in (out, program_facts.facts_file(out)):
        check_writable("out", file, (ENDING, ".json"))
        if file.exists() and not is_export:
            raise InputError(f"{file} already exists, and export did not write it")
    return out
