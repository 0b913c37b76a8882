"""Export of a trained model: a file that runs elsewhere, and JSON that describes it.

The file does not run here. Tests compare its logits in onnxruntime and OpenVINO.
"""

import dataclasses
import os
import pathlib
import tempfile
import types
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.common import extras
from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.common.files import (
    check_writable,
    write_json,
)
from imagepiece_jax.common.progress import announced_work
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters import card, largest_numbers, program_facts, tower
from imagepiece_jax.exporters.program_interface import ProgramInterface
from imagepiece_jax.inference.optimize import check_gelu
from imagepiece_jax.models.create import make_execution
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.program import FORMAT_MODULES, import_format, open_program


class ExportOptions(NamedTuple):
    """The arguments of `export`, as there."""

    batch_size: int | None
    gelu: str | None
    pixels: bool
    output: str
    layout: str | None
    dtype: str
    images: Any


class TracedModel(NamedTuple):
    """A model with plain attention, which has a graph, and its program's arrays."""

    vit: Pretrained
    interface: ProgramInterface
    options: ExportOptions


class ExportPlace(NamedTuple):
    """Where the files of an export go."""

    graph_file: pathlib.Path
    folder: pathlib.Path  # has the page of cards
    files: dict[pathlib.Path, Any]  # the layout's, {path: JSON value}

    @property
    def file_format(self) -> types.ModuleType:
        return import_format(self.graph_file)

    @property
    def page_file(self) -> pathlib.Path:
        return self.folder / card.CARD_FILE_NAME


class MadeProgram(NamedTuple):
    """A program in memory, and its JSON."""

    graph: Any  # the format's
    facts: dict[str, Any]


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
    images: Any = None,
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
    layout: the program that loads the folder, from `tower.PROGRAM_LAYOUTS`
    dtype: of the layers, whatever the model's: "float32", "float16" or "int8", where
        products with weights are quantized. Norms, softmax, and scores and order of
        reductions are float32 in every dtype, and so are outputs. In float16 the stem
        is float32, and so are blocks with large numbers
    images: as for `recover`. Part of them calibrates int8, which needs them; the card
        is measured on others
    Returns the file's path.
    Raises InputError for a wrong argument, and for outputs that are not finite, before
        anything is written.
    """
    program_options = (batch_size, gelu, pixels, output, layout, dtype)
    options = ExportOptions(*program_options, images)
    check_option_values(vit, options)
    check_option_pairs(options)
    vit.warn_of_untrained()
    traced_model = choose_traced_model(vit, options)
    vit = traced_model.vit
    place = choose_place(out, traced_model)
    card_images = None
    calibration_pixels = None
    if images is not None:
        check_card(place, traced_model)
        card_images = card.read_card_images(vit, images)
        calibration_pixels = card_images.calibration_pixels
    # Seconds in float32 find numbers that are not finite before a file is written, and
    # those too large for float16.
    part_maxima = largest_numbers.find_largest_numbers(vit, calibration_pixels)
    if dtype == "float16":
        model = largest_numbers.with_float32_parts(vit.model, part_maxima)
        traced_model.interface.model = model
    place.graph_file.parent.mkdir(parents=True, exist_ok=True)
    check_replaceable(place.graph_file)  # again: its folder exists now
    program = make_program(traced_model, place)
    if dtype == "int8" and calibration_pixels is not None:
        program = quantize_program(program, place, calibration_pixels)
    if card_images is not None:
        card_facts = make_card(program, traced_model, place, card_images)
        program = program._replace(facts=program.facts | {"card": card_facts})
    write_files(program, place)
    if card_images is not None:
        page_text = card.format_card_page(place.graph_file, vit, program.facts)
        card.replace_card_section(place.page_file, place.graph_file, page_text)
    return place.graph_file


def check_option_values(vit: Pretrained, options: ExportOptions) -> None:
    """Check each argument of `export` that needs no file and no computation."""
    if options.batch_size is not None:
        check_range("batch_size", options.batch_size, 1, whole=True)
    check_gelu(vit.model, options.gelu)
    check_choice("dtype", options.dtype, tower.DTYPE_SUFFIXES)
    if options.layout is not None:
        check_choice("layout", options.layout, tower.PROGRAM_LAYOUTS)


def check_option_pairs(options: ExportOptions) -> None:
    """Refuse arguments of `export` that contradict or lack each other."""
    if options.layout is not None and options.output != "logits":
        raise InputError(
            f"output is {options.output!r}; the layout decides the outputs"
        )
    if options.dtype == "int8" and options.images is None:
        raise InputError(
            "dtype is 'int8', which images calibrate; give images (--images FOLDER)"
        )


def choose_traced_model(vit: Pretrained, options: ExportOptions) -> TracedModel:
    """Choose what is traced, and check that the layout's program takes it."""
    layout = options.layout
    config = vit.config.with_arch(gelu=options.gelu or vit.config.arch.gelu)
    dtype = options.dtype
    if dtype == "int8":  # made of the float32 graph
        dtype = "float32"
    execution = make_execution(config, dtype, "xla")
    model = vit.model.clone(config=config, execution=execution)
    vit = dataclasses.replace(vit, model=model)
    if layout is None:
        return TracedModel(vit, ProgramInterface(vit, options.output), options)
    interface = tower.make_interface(vit, layout, options.pixels)
    return TracedModel(vit, interface, options)


def choose_place(out: str | os.PathLike, traced_model: TracedModel) -> ExportPlace:
    """Choose where files go; nothing but an earlier export may be replaced."""
    vit, _, options = traced_model
    layout = options.layout
    if layout is None:
        graph_file = choose_graph_file(out, options.dtype)
        return ExportPlace(graph_file, graph_file.parent, {})
    folder = pathlib.Path(os.path.expanduser(out))
    graph_file = tower.find_graph_file(folder, layout, vit, options.dtype)
    tower.check_layout_folder(folder, layout, vit, graph_file)
    program_layout = tower.PROGRAM_LAYOUTS[layout]
    content_of_file = {folder / k: v for k, v in program_layout.files(vit).items()}
    return ExportPlace(graph_file, folder, content_of_file)


def check_card(place: ExportPlace, traced_model: TracedModel) -> None:
    """Check that a card can be measured, and written."""
    extras.check_installed("a card", place.file_format.RUNTIME_MODULE)
    vit, _, options = traced_model
    if vit.config.arch.pool == "none" and options.output != "patches":
        raise InputError(
            "pool is 'none', so a card has no image vectors to compare; give "
            "output='patches' (--output patches)"
        )
    if place.page_file.exists() and not card.is_card_page(place.page_file):
        raise InputError(
            f"{place.page_file} already exists, and export did not write it; the "
            "card needs a folder of its own"
        )


def make_program(traced_model: TracedModel, place: ExportPlace) -> MadeProgram:
    """Make a float32 or float16 program, and the facts about it."""
    vit, interface, options = traced_model
    file_format = place.file_format
    input_options = {"batch_size": options.batch_size, "takes_pixels": options.pixels}
    with announced_work("exporting the model"):
        graph = file_format.build_graph(vit, **input_options, interface=interface)
    facts = program_facts.collect_facts(vit, interface, **input_options)
    facts |= file_format.FORMAT_FACTS
    facts |= {"layout": options.layout, "dtype": options.dtype}
    facts["float32_parts"] = list(interface.model.execution.float32_parts)
    return MadeProgram(graph, facts)


def quantize_program(
    program: MadeProgram, place: ExportPlace, pixels: np.ndarray
) -> MadeProgram:
    """Quantize a float32 program to int8.

    pixels: calibrate it, uint8 [images, H, W, 3]
    """
    message = f"calibrating int8 with {len(pixels)} images, which takes minutes"
    with tempfile.TemporaryDirectory() as folder, announced_work(message):
        graph_file = pathlib.Path(folder, place.graph_file.name)
        write_program(program, place._replace(graph_file=graph_file))
        float32_program = open_program(graph_file)
        graph = place.file_format.quantize_graph(float32_program, pixels)
    return program._replace(graph=graph)


def make_card(
    program: MadeProgram,
    traced_model: TracedModel,
    place: ExportPlace,
    images: card.CardImages,
) -> dict[str, Any]:
    """Measure a program beside the dense one, before it is in place.

    Raises InputError for outputs that are not finite.
    """
    vit, interface, options = traced_model
    dense_options = options._replace(dtype="float32")
    dense_traced_model = choose_traced_model(vit.with_reduction(None), dense_options)
    with tempfile.TemporaryDirectory() as folder:
        graph_file = pathlib.Path(folder, f"file{place.graph_file.suffix}")
        dense_file = graph_file.with_stem("dense")
        write_program(program, place._replace(graph_file=graph_file))
        dense_program = make_program(dense_traced_model, place)
        write_program(dense_program, place._replace(graph_file=dense_file))
        has_classes = "logits" in interface.output_names and vit.config.head.has_classes
        return card.compare_with_dense_file(graph_file, dense_file, images, has_classes)


def write_program(program: MadeProgram, place: ExportPlace) -> None:
    """Write a program, its weights and its JSON; remove an earlier one's weights."""
    graph_file = place.graph_file
    file_format = place.file_format
    facts = dict(program.facts)
    # Read before the new facts replace it.
    earlier_weights_name = program_facts.read_facts(graph_file).get("external_data")
    weights_file = file_format.write_graph(graph_file, program.graph)
    if weights_file is not None:
        facts["external_data"] = weights_file.name
    program_facts.write_program_facts(graph_file, facts)
    file_format.remove_earlier_weights(graph_file, earlier_weights_name, weights_file)


def write_files(program: MadeProgram, place: ExportPlace) -> None:
    """Write a program and the layout's files. The page loses an earlier section."""
    # Nobody compares these with the graph's digest. A kill must not leave them beside
    # another graph.
    card.replace_card_section(place.page_file, place.graph_file)
    for file in place.files:
        file.unlink(missing_ok=True)
    write_program(program, place)
    for file, content in place.files.items():
        write_json(file, content)


def choose_graph_file(out: str | os.PathLike, dtype: str = "float32") -> pathlib.Path:
    """Choose the graph's path and check it. Only an export may be replaced.

    out: the file, or a folder, which may be new
    """
    path = pathlib.Path(os.path.expanduser(out))
    graph_file = path
    is_folder = path.is_dir() or not path.suffix
    if is_folder:
        ending = next(iter(FORMAT_MODULES))
        graph_file = path / f"model{tower.DTYPE_SUFFIXES[dtype]}{ending}"
    try:
        file_format = import_format(graph_file)
    except InputError as error:
        raise InputError(f"out {error}") from error
    extras.check_installed(file_format.FORMAT_TITLE, file_format.WRITER_MODULE)
    if is_folder and not path.exists():
        check_writable("out", path, ("",))
    else:
        check_replaceable(graph_file)
    return graph_file


def check_replaceable(graph_file: pathlib.Path) -> None:
    """Check that a graph and its JSON can be written, and replace only an export."""
    is_export = program_facts.is_export(graph_file)
    for file in (graph_file, program_facts.facts_file(graph_file)):
        check_writable("out", file, (graph_file.suffix.lower(), ".json"))
        if file.exists() and not is_export:
            raise InputError(f"{file} already exists, and export did not write it")
