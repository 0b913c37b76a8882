"""Export of a trained model: a file that runs elsewhere, and JSON that describes it.

The file does not run here. Tests compare its logits in onnxruntime and OpenVINO.
"""

import dataclasses
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.common import extras
from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.common.files import (
    check_own,
    check_writable,
    replace_file,
    temporary_folder,
    write_json,
)
from imagepiece_jax.common.progress import working
from imagepiece_jax.common.signals import finishing
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters import (
    card,
    largest_numbers,
    program_facts,
    tower,
    upload,
)
from imagepiece_jax.exporters.program_outputs import ProgramOutputs
from imagepiece_jax.inference.optimize import check_gelu
from imagepiece_jax.models.create import execution_of
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.program import FORMATS, format_of, open_program
from imagepiece_jax.models.record import as_json


class Wanted(NamedTuple):
    """The arguments of `export` about the program, as there."""

    batch_size: int | None
    gelu: str | None
    pixels: bool
    output: str
    layout: str | None
    dtype: str
    gathers: bool | None


class Place(NamedTuple):
    """Where the files of an export go."""

    graph: pathlib.Path
    folder: pathlib.Path  # has the page of cards; `push` uploads it
    files: dict[pathlib.Path, Any]  # the layout's, {path: JSON value, or text}
    metadata: dict[str, str] | None  # the layout's, inside the graph

    @property
    def page(self) -> pathlib.Path:
        return self.folder / card.NAME


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
    wanted = Wanted(batch_size, gelu, pixels, output, layout, dtype, gathers)
    check_arguments(vit, wanted, images, texts, push, dry_run)
    vit.warn_of_untrained()
    if gathers is None:
        gathers = layout is not None and tower.LAYOUTS[layout].gathers
        wanted = wanted._replace(gathers=gathers)
    outputs = trace_outputs(vit, wanted)
    place = find_place(out, outputs.vit, wanted)
    if push is not None:
        upload.check_repository(push, dry_run)
    card_images = None
    if images is not None:
        check_card(place, outputs, wanted)
        card_images = card.divided_images(outputs.vit, images, texts)
    # A pass in float32, of some seconds, finds numbers that are not finite before the
    # file is written, and those that float16 does not have.
    calibration = card_images and card_images.calibration
    largest = largest_numbers.find(outputs.vit, calibration)
    if dtype == "float16":
        outputs.model = largest_numbers.in_float16(outputs.model, largest)
    place.graph.parent.mkdir(parents=True, exist_ok=True)
    checked_file(place.graph)
    graph = make_graph(outputs, wanted, place)
    facts = describe_program(outputs, wanted, place)
    if dtype == "int8":
        graph = make_int8_graph(graph, facts, place, calibration)
    if card_images is not None:
        facts["card"] = measure_card(graph, facts, outputs, wanted, place, card_images)
    write_files(graph, facts, place, outputs.vit)
    if push is not None:
        upload_files(place, push, dry_run)
    return place.graph


def check_arguments(
    vit: Pretrained,
    wanted: Wanted,
    images: Any,
    texts: str | os.PathLike | None,
    push: str | None,
    dry_run: bool,
) -> None:
    """Check arguments of `export` that need no file and no computation."""
    if wanted.batch_size is not None:
        check_range("batch_size", wanted.batch_size, 1, whole=True)
    check_gelu(vit.model, wanted.gelu)
    check_choice("dtype", wanted.dtype, tower.SUFFIX)
    check_choice("gathers", wanted.gathers, (None, True, False))
    if wanted.layout is not None:
        check_choice("layout", wanted.layout, tower.LAYOUTS)
        if wanted.output != "logits":
            raise InputError(
                f"output is {wanted.output!r}; the layout decides the outputs"
            )
    if wanted.dtype == "int8" and images is None:
        raise InputError(
            "dtype is 'int8', which images calibrate; give images (--images FOLDER)"
        )
    if texts is not None and (images is None or wanted.output != "logits"):
        raise InputError(
            f"texts is {texts}, which needs images (--images FOLDER) and the output "
            "'logits'"
        )
    if push is None and dry_run:
        raise InputError("dry_run is for push; give push='OWNER/NAME' (--push)")
    if push is not None and images is None:
        raise InputError(
            "push needs images, because the hub shows the card; give images "
            "(--images FOLDER)"
        )


def trace_outputs(vit: Pretrained, wanted: Wanted) -> ProgramOutputs:
    """The outputs of a model with plain attention, which has a graph."""
    config = vit.config.with_arch(gelu=wanted.gelu or vit.config.arch.gelu)
    dtype = wanted.dtype
    if dtype == "int8":  # made of the float32 graph
        dtype = "float32"
    execution = execution_of(config, dtype, "xla")
    model = vit.model.clone(config=config, execution=execution)
    vit = dataclasses.replace(vit, model=model)
    if wanted.layout is None:
        return ProgramOutputs(vit, wanted.output)
    return tower.outputs(vit, wanted.layout, wanted.pixels)


def find_place(out: str | os.PathLike, vit: Pretrained, wanted: Wanted) -> Place:
    """Check where files go: nothing but an earlier export is replaced."""
    layout = wanted.layout
    if layout is None:
        graph = checked_file(out, wanted.dtype)
        return Place(graph, graph.parent, {}, None)
    folder = pathlib.Path(os.path.expanduser(out))
    graph = tower.graph_file(folder, layout, vit, wanted.dtype)
    _check_folder(folder, layout, vit, graph)
    metadata = tower.LAYOUTS[layout].metadata(vit)
    return Place(graph, folder, tower.files(folder, vit, layout), metadata)


def check_card(place: Place, outputs: ProgramOutputs, wanted: Wanted) -> None:
    """Check that a card can be measured, and written."""
    extras.check("a card", format_of(place.graph).RUNTIME)
    if outputs.vit.config.arch.pool == "none" and wanted.output != "patches":
        raise InputError(
            "pool is 'none', so a card has no image vectors to compare; give "
            "output='patches' (--output patches)"
        )
    if place.page.exists() and not card.is_card(place.page):
        raise InputError(
            f"{place.page} already exists, and export did not write it; the card needs "
            "a folder of its own"
        )


def make_graph(outputs: ProgramOutputs, wanted: Wanted, place: Place) -> Any:
    """Trace a float32 or float16 program."""
    with working("exporting the model"):
        return format_of(place.graph).build_graph(
            outputs.vit,
            batch_size=wanted.batch_size,
            pixels=wanted.pixels,
            outputs=outputs,
            gathers=wanted.gathers,
        )


def make_int8_graph(
    graph: Any, facts: dict[str, Any], place: Place, images: np.ndarray
) -> Any:
    """Quantize a float32 program.

    images: calibrate it, uint8 [images, H, W, 3]
    """
    text = f"calibrating int8 with {len(images)} images, which takes minutes"
    with temporary_folder() as temporary, working(text):
        place = place._replace(graph=pathlib.Path(temporary, place.graph.name))
        write_program(graph, facts, place)
        program = open_program(place.graph)
        return format_of(place.graph).quantize_graph(program, images)


def describe_program(
    outputs: ProgramOutputs, wanted: Wanted, place: Place
) -> dict[str, Any]:
    """Collect the facts of a program, as JSON values."""
    shape = program_facts.exported_images(
        outputs.vit, wanted.batch_size, wanted.pixels, outputs.channels_first
    )
    return program_facts.program_facts(outputs.vit, shape, outputs) | {
        "opset": format_of(place.graph).OPSET,
        "layout": wanted.layout,
        "dtype": wanted.dtype,
        "gathers": wanted.gathers,
        "float32_parts": list(outputs.model.execution.float32_parts),
    }


def measure_card(
    graph: Any,
    facts: dict[str, Any],
    outputs: ProgramOutputs,
    wanted: Wanted,
    place: Place,
    images: card.CardImages,
) -> dict[str, Any]:
    """Measure a program beside the dense one, before it is in place.

    Raises InputError for outputs that are not finite.
    """
    wanted = wanted._replace(dtype="float32")
    dense = trace_outputs(outputs.vit.with_reduction(None), wanted)
    dense_graph = make_graph(dense, wanted, place)
    dense_facts = describe_program(dense, wanted, place)
    has_classes = "logits" in outputs.names and outputs.vit.has_classes
    with temporary_folder() as temporary:
        file = place._replace(graph=pathlib.Path(temporary, place.graph.name))
        write_program(graph, facts, file)
        dense_file = file._replace(
            graph=file.graph.with_name(f"dense_{file.graph.name}")
        )
        write_program(dense_graph, dense_facts, dense_file)
        return card.measured(file.graph, dense_file.graph, images, has_classes)


def write_program(graph: Any, facts: dict[str, Any], place: Place) -> None:
    """Write a program, its weights and its JSON; remove an earlier one's weights."""
    out = place.graph
    form = format_of(out)
    # Read before the new facts replace it.
    earlier_weights = program_facts.read_facts(out).get("external_data")
    weights_file = form.write_graph(out, graph, place.metadata)
    if weights_file is not None:
        facts = facts | {"external_data": weights_file.name}
    facts = facts | {"digest": program_facts.digest_of(out)}
    write_json(program_facts.facts_file(out), facts)
    form.remove_weights(out, earlier_weights, weights_file)


def write_files(graph: Any, facts: dict[str, Any], place: Place, vit: Pretrained):
    """Write a program, the layout's files, and the program's section of the page."""
    with finishing():  # the files belong together
        # Nobody compares these with the graph's digest. A kill must not leave them
        # beside another graph.
        card.write_page(place.page, place.graph)
        for file in place.files:
            file.unlink(missing_ok=True)
        write_program(graph, facts, place)
        for file, content in place.files.items():
            if isinstance(content, str):
                replace_file(file, content)
            else:
                write_json(file, content)
        if "card" in facts:
            card.write_page(
                place.page, place.graph, card.page_of(place.graph, vit, facts)
            )


def upload_files(place: Place, repository: str, dry_run: bool) -> None:
    """Upload the files of all graphs on the page: earlier types of the model, too."""
    parts = []
    for name in card.graphs_on(place.page):
        graph = place.graph.with_name(name)
        if graph.exists():
            parts += [*program_facts.files_of(graph), program_facts.facts_file(graph)]
    files = [*parts, *place.files, place.page]
    upload.upload(repository, place.folder, files, dry_run)


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

    check_own("out", folder, f"an export for {layout}", ours)


def checked_file(out: str | os.PathLike, dtype: str = "float32") -> pathlib.Path:
    """Check the path of a file to write. Only an export may be replaced.

    out: the file, or a folder, which may be new
    Returns the file's path.
    """
    out = pathlib.Path(os.path.expanduser(out))
    folder = None
    if out.is_dir() or not out.suffix:
        folder = out
        ending = next(iter(FORMATS))
        out = folder / f"model{tower.SUFFIX[dtype]}{ending}"
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"out {out} does not end in {' or '.join(FORMATS)}")
    form = format_of(out)
    extras.check(form.TITLE, form.WRITER)
    if folder is not None and not folder.exists():
        check_writable("out", folder, ("",))
        return out
    is_export = program_facts.FACTS <= {*program_facts.read_facts(out)}
    for file in (out, program_facts.facts_file(out)):
        check_writable("out", file, (out.suffix.lower(), ".json"))
        if file.exists() and not is_export:
            raise InputError(f"{file} already exists, and export did not write it")
    return out
