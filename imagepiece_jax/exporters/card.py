"""The card of an exported file: its cost and its outputs beside the dense file's.

The dense file is an export of the same weights without reduction, in float32. Both run
in onnxruntime on the CPU.
"""

import functools
import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.common import device, timer
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.common.progress import announced_work, log
from imagepiece_jax.common.tables import rows_table
from imagepiece_jax.data.pictures import as_source, read_images
from imagepiece_jax.data.source import Source
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters.program_facts import program_files
from imagepiece_jax.inference.compare_outputs import (
    IMAGE_CONTROLS,
    check_image_count,
    fidelity_cells,
    measure_fidelities,
)
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.program import ExportedProgram, open_program
from imagepiece_jax.recovery.recovery_images import split_images

CARD_FILE_NAME = "README.md"
SECTION_MARK = "<!-- Written by imagepiece export: "  # and the name of a section's file
CARD_THREADS = 2
CARD_TIMING = timer.Timing(warmup=2, repeats=5, seconds=0.4)
PAUSE_SECONDS = 0.1  # seconds until onnxruntime's threads leave the cores
MAX_CARD_IMAGES = 200  # the most images that calibrate, and the most that are compared
IMAGES_PER_CALL = 8  # images per call, where outputs are compared
# The output to compare is the first of these.
CARD_OUTPUTS = ("logits", "embedding", "image_embeds", "pooler_output", "pooled")
CARD_OUTPUTS += ("patches", "last_hidden_state")

Programs = Mapping[str, ExportedProgram]


class CardImages(NamedTuple):
    """Pixels [N, H, W, 3] that calibrate, and others that are compared."""

    calibration_pixels: np.ndarray
    compared_pixels: np.ndarray
    compared_names: list[str]


def is_card_page(file: pathlib.Path) -> bool:
    """Whether a file is a page of cards."""
    return file.is_file() and SECTION_MARK in file.read_text("utf-8", errors="replace")


def read_card_images(vit: Pretrained, images: Any) -> CardImages:
    """Read images to calibrate with, and images to compare, as `read_images` does.

    They are divided as by `recover`. Scenes that recovered the model are not compared.

    images: as for `recover`
    Raises InputError if images are too few, or all are alike or recovered the model.
    """
    source = as_source(images)
    calibration_source, compared_source = _split_source(vit, source)
    calibration_pixels, _ = read_images(calibration_source, vit.preprocessing)
    compared_pixels, readable_paths = read_images(compared_source, vit.preprocessing)
    num_compared = len(compared_pixels)
    check_image_count(num_compared)
    num_images = len(calibration_pixels) + num_compared
    log.info(f"a card of {num_images} images: {num_compared} of them are compared")
    prefix_length = os.path.commonprefix(readable_paths).rfind("/") + 1
    compared_names = [path[prefix_length:] for path in readable_paths]
    return CardImages(calibration_pixels, compared_pixels, compared_names)


def _split_source(vit: Pretrained, source: Source) -> tuple[Source, Source]:
    """Split images: (to calibrate, to compare), at most MAX_CARD_IMAGES each."""
    batch_size = 1
    learned_digests = ""
    if vit.recovered_variant:
        batch_size = vit.recovered_variant.batch_size
        learned_digests = vit.recovered_variant.learned or ""
    image_split = split_images(source, batch_size, learned_digests)
    if not image_split.num_scenes:
        raise InputError(
            "images are alike or recovered the model, so none can be held out to "
            "compare; give photographs of more scenes"
        )
    return (
        image_split.training.evenly_spaced(MAX_CARD_IMAGES),
        image_split.held_out.evenly_spaced(MAX_CARD_IMAGES),
    )


def compare_with_dense_file(
    graph_file: pathlib.Path,
    dense_file: pathlib.Path,
    card_images: CardImages,
    has_classes: bool | None,
) -> dict[str, Any]:
    """Measure an exported file beside the dense file, as JSON values.

    has_classes: as for `measure_fidelity`
    """
    files = {"file": graph_file, "dense": dense_file}
    programs = {name: open_program(file, CARD_THREADS) for name, file in files.items()}
    batch_size = programs["file"].batch_size or 1
    pixels = card_images.compared_pixels
    # Images are repeated if a batch takes more than there are.
    speeds = time_programs(programs, np.resize(pixels, (batch_size, *pixels.shape[1:])))
    outputs = compute_card_outputs(programs, pixels)
    megabytes = {}
    for name, file in files.items():
        megabytes[name] = sum(f.stat().st_size for f in program_files(file)) / 1e6
    gmacs = {name: program.facts["gmacs"] for name, program in programs.items()}
    return {
        "images": card_images.compared_names,
        "machine": device.describe_cpu(),
        "threads": CARD_THREADS,
        "batch_size": batch_size,
        "mac_share": gmacs["file"] / gmacs["dense"],
        "megabytes": megabytes,
        **speeds,
        "fidelity": measure_fidelities(outputs, has_classes),
    }


def time_programs(programs: Programs, pixels: np.ndarray) -> dict[str, Any]:
    """Time programs in turns: milliseconds per image, and the file's speedup."""
    calls = {}
    for name, program in programs.items():
        run_program = program.prepared_call(pixels)
        calls[name] = timer.TimedCall(lambda _, run=run_program: run())
    with announced_work("timing the file and the dense file, in turns"):
        pause = functools.partial(time.sleep, PAUSE_SECONDS)
        seconds = timer.time_in_turns(calls, CARD_TIMING, pause=pause)
    milliseconds = {}
    for name, call_seconds in seconds.items():
        image_ms = [1000 * duration / len(pixels) for duration in call_seconds]
        milliseconds[name] = timer.find_spread(image_ms)
    speedups = timer.paired_speedups(seconds["dense"], seconds["file"])
    return {"ms": milliseconds, "speedup": timer.find_spread(speedups)}


def compute_card_outputs(
    programs: Programs, pixels: np.ndarray
) -> dict[str, np.ndarray]:
    """Outputs of the dense file, the file, and the dense file for changed pixels."""
    with announced_work(f"comparing the outputs for {len(pixels)} images"):
        outputs = {}
        for name in ("dense", "file"):
            outputs[name] = compute_vectors(programs[name], pixels)
        if not np.isfinite(outputs["file"]).all():
            raise InputError(
                f"the {programs['file'].facts['dtype']} file's outputs are not finite "
                "for all images; export float32"
            )
        for name, change_pixels in IMAGE_CONTROLS.items():
            outputs[name] = compute_vectors(programs["dense"], change_pixels(pixels))
    return outputs


def compute_vectors(program: ExportedProgram, pixels: np.ndarray) -> np.ndarray:
    """Compute a file's logits or vectors, [images, D]."""
    output_facts = np.ravel(program.facts["output"])  # of one output, or of several
    output_names = [entry["name"] for entry in output_facts]
    name = next(name for name in CARD_OUTPUTS if name in output_names)
    return program(pixels, name, IMAGES_PER_CALL).reshape(len(pixels), -1)


def format_card_table(graph_file: pathlib.Path, file_facts: Mapping[str, Any]) -> str:
    """Markdown table of a card: the dense file, the file, and the controls.

    file_facts: the file's, with its card
    """
    card = file_facts["card"]
    file_title = f"{graph_file.name}, {file_facts['dtype']}"
    if file_facts["float32_parts"]:
        file_title += f" ({', '.join(file_facts['float32_parts'])} float32)"
    rows = {"dense, float32": {"share of the MACs": "1.00"}, file_title: {}}
    rows[file_title]["share of the MACs"] = f"{card['mac_share']:.2f}"
    for cells, name in zip(rows.values(), ("dense", "file"), strict=True):
        median, low, high = card["ms"][name]
        cells["MB"] = f"{card['megabytes'][name]:.1f}"
        cells["ms an image"] = f"{median:.1f} [{low:.1f}, {high:.1f}]"
    median, low, high = card["speedup"]
    rows[file_title]["times as fast"] = f"{median:.2f} [{low:.2f}, {high:.2f}]"
    titles = dict(zip(("dense", "file"), rows, strict=True))
    for name, metrics in card["fidelity"].items():
        title = titles.get(name, f"dense, images {name}")
        rows[title] = rows.get(title, {}) | fidelity_cells(metrics)
    return rows_table([{"": title, **cells} for title, cells in rows.items()])


def replace_card_section(
    page_file: pathlib.Path, graph_file: pathlib.Path, page_text: str = ""
) -> None:
    """Replace a file's section of a page of cards, or remove it.

    page_text: the page's head and the section, as `format_card_page` gives them
    """
    page_head, *new_sections = page_text.split(SECTION_MARK)
    sections = []
    if is_card_page(page_file):
        old_head, *sections = page_file.read_text("utf-8").split(SECTION_MARK)
        page_head = page_head or old_head
    sections = [s for s in sections if not s.startswith(f"{graph_file.name} ")]
    sections += new_sections
    if sections:
        replace_file(page_file, SECTION_MARK.join([page_head, *sections]))
    elif is_card_page(page_file):
        page_file.unlink()


def format_card_page(
    graph_file: pathlib.Path, vit: Pretrained, file_facts: Mapping[str, Any]
) -> str:
    """A file's README.md: a model card of the Hugging Face hub."""
    card = file_facts["card"]
    task = "image-feature-extraction"
    if file_facts["activation"]:
        task = "image-classification"
    front_matter = ["---", f"pipeline_tag: {task}", "tags: [onnx, token-reduction]"]
    if "/" in vit.origin.name:
        front_matter.append(f"base_model: {vit.origin.name}")
    if vit.origin.license:  # any text, as JSON, which YAML reads
        license_name = json.dumps(vit.origin.license, ensure_ascii=False)
        front_matter.append(f"license: {license_name}")
    history = "neither recovered nor calibrated"
    if vit.recovered_variant and vit.recovered_variant.learned is None:
        history = "did not calibrate; which images recovered the model is not recorded"
    model_name = vit.origin.name or vit.config.name or "ViT"
    num_images = len(card["images"])
    lines = [
        *front_matter,
        "---",
        f"{SECTION_MARK}{graph_file.name} -->",
        "",
        f"# {model_name}, {vit.label}, {file_facts['dtype']}",
        "",
        format_card_table(graph_file, file_facts),
        "",
        f"Measured in onnxruntime on {card['machine']}: {card['threads']} threads, "
        f"batch size {card['batch_size']}. Files took turns; brackets at times have "
        "the lowest and highest turn, and *times as fast* is the median of the turns' "
        f"ratios. Outputs are compared with the dense file's on {num_images} images "
        f"that {history}. Brackets have 95 % intervals, and points are relative "
        "to the dense file. The last rows compare the dense file's outputs for changed "
        "images, and its outputs in another order (*shuffled*), which is chance.",
    ]
    return "\n".join(lines) + "\n"
