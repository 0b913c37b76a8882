"""The card of an exported file: its cost and its outputs beside the dense file's.

The dense file is an export of the same weights without reduction, in float32. Both run
in the file's runtime on the CPU. A folder's README.md has the cards of all its files.
"""

import functools
import inspect
import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.common import device, timer
from imagepiece_jax.common.progress import announced_work, log
from imagepiece_jax.common.tables import rows_table
from imagepiece_jax.data.pictures import as_source, read_images
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters import program_facts
from imagepiece_jax.inference import compare_outputs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.program import ExportedProgram, import_format, open_program
from imagepiece_jax.recovery.recovery_images import split_images

PAGE_NAME = "README.md"
PAGE_MARK = "<!-- Written by imagepiece export -->"
FEW_IMAGES = 50  # below, ten nearest images are most of a scene, or all there are
CARD_THREADS = 2
CARD_TIMING = timer.Timing(warmup=2, repeats=5, seconds=0.4)
PAUSE_SECONDS = 0.1  # seconds until a runtime's threads leave the cores
MAX_CARD_IMAGES = 200  # the most images that calibrate, and the most that are compared
IMAGES_PER_CALL = 8  # images per call, where outputs are compared
# The output to compare is the first of these.
CARD_OUTPUTS = ("logits", "embedding", "image_embeds", "pooler_output", "pooled")
CARD_OUTPUTS += ("patches", "last_hidden_state")

Programs = Mapping[str, ExportedProgram]  # of "file" and "dense"


class CardImages(NamedTuple):
    """Pixels [N, H, W, 3] that calibrate int8, and pixels that are compared."""

    calibration_pixels: np.ndarray | None
    compared_pixels: np.ndarray
    compared_names: list[str]


def check_card(
    folder: pathlib.Path, graph_file: pathlib.Path, pretrained: Pretrained, output: str
) -> None:
    """Check that a model's card can be measured, and written into the page."""
    if pretrained.config.arch.pool == "none" and output != "patches":
        # A reduced model has fewer tokens than the dense model.
        raise InputError("pool is 'none', so a card needs --output patches")
    page_file = folder / PAGE_NAME
    is_foreign_page = page_file.exists() and not is_card_page(page_file)
    own_facts = card_facts(pretrained)
    # The page's head names one model and one license.
    shared_facts = {key: own_facts[key] for key in ("weights", "license")}
    other_records = read_other_cards(graph_file).values()
    cards = [record["card"] for record in other_records]
    fits = all(shared_facts.items() <= card.items() for card in cards)
    if is_foreign_page or not fits:
        raise InputError(f"{page_file} is no card of this model; name another folder")


def is_card_page(file: pathlib.Path) -> bool:
    return file.is_file() and PAGE_MARK in file.read_text("utf-8", errors="replace")


def read_card_images(
    pretrained: Pretrained, images: Any, calibrates: bool
) -> CardImages:
    """Read images to calibrate with, and images to compare, as `read_images` does.

    images: as for `recover`. Those that recovered the model are not compared.
    calibrates: whether some calibrate, which are then not compared, either
    Raises InputError if images are too few, or too many recovered the model.
    """
    source = as_source(images)
    preprocessing = pretrained.preprocessing
    calibration_pixels = None
    variant = pretrained.recovered_variant
    if calibrates or variant:
        # 1: one image to calibrate with is enough.
        split = split_images(source, 1, variant.learned if variant else "")
        source = split.held_out
        if calibrates:
            calibration_source = split.training.evenly_spaced(MAX_CARD_IMAGES)
            calibration_pixels, _ = read_images(calibration_source, preprocessing)
    compared_source = source.evenly_spaced(MAX_CARD_IMAGES)
    compared_pixels, paths = read_images(compared_source, preprocessing)
    compare_outputs.check_image_count(len(compared_pixels))
    others_text = ", and others calibrate" if calibrates else ""
    log.info(f"a card of {len(compared_pixels)} compared images{others_text}")
    # Names from the common folder on: files of two folders may have equal names.
    prefix_length = os.path.commonprefix(paths).rfind("/") + 1
    compared_names = [path[prefix_length:] for path in paths]
    return CardImages(calibration_pixels, compared_pixels, compared_names)


def compare_with_dense_file(
    files: Mapping[str, pathlib.Path], images: CardImages, has_classes: bool | None
) -> dict[str, Any]:
    """Measure an exported file beside the dense file, as JSON values.

    files: of "file", the exported one, and "dense"
    has_classes: as for `measure_fidelity`
    """
    programs = {}
    megabytes = {}
    for role, file in files.items():
        programs[role] = open_program(file, CARD_THREADS)
        num_bytes = [each.stat().st_size for each in program_facts.program_files(file)]
        megabytes[role] = sum(num_bytes) / 1e6
    batch_size = programs["file"].batch_size or 1  # None: any number
    pixels = images.compared_pixels
    # Images are repeated if a batch takes more than there are.
    times = time_programs(programs, np.resize(pixels, (batch_size, *pixels.shape[1:])))
    outputs_of_row = compute_outputs(programs, pixels)
    dense_outputs = outputs_of_row["dense"]
    fidelities = {}
    for row_name, outputs in outputs_of_row.items():
        metrics = compare_outputs.measure_fidelity(outputs, dense_outputs, has_classes)
        if len(pixels) < FEW_IMAGES:
            metrics.pop("neighbors_kept", None)
        fidelities[row_name] = metrics
    gmacs = {role: program.facts["gmacs"] for role, program in programs.items()}
    return {
        "images": images.compared_names,
        "machine": device.describe_cpu(),
        "threads": CARD_THREADS,
        "batch_size": batch_size,
        "mac_share": gmacs["file"] / gmacs["dense"],
        "megabytes": megabytes,
        **times,
        "fidelity": fidelities,
    }


def time_programs(programs: Programs, pixels: np.ndarray) -> dict[str, Any]:
    """Time programs in turns: milliseconds per image, and the file's speedup."""
    timed_calls = {}
    for role, program in programs.items():
        run_program = program.prepared_call(pixels)
        # A default, because the loop binds `run_program` anew.
        timed_calls[role] = timer.TimedCall(lambda _, run=run_program: run())
    pause = functools.partial(time.sleep, PAUSE_SECONDS)
    with announced_work("timing the file and the dense file, in turns"):
        seconds = timer.time_in_turns(timed_calls, CARD_TIMING, pause=pause)
    milliseconds = {}  # per image
    for role, call_seconds in seconds.items():
        image_times = [1000 * duration / len(pixels) for duration in call_seconds]
        milliseconds[role] = timer.find_spread(image_times)
    speedups = timer.paired_speedups(seconds["dense"], seconds["file"])
    return {"ms": milliseconds, "speedup": timer.find_spread(speedups)}


def compute_outputs(programs: Programs, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs [images, D] of the dense file, the file and the controls, by card row."""
    with announced_work(f"comparing the outputs for {len(pixels)} images"):
        outputs_of_row = {"dense": compute_vectors(programs["dense"], pixels)}
        outputs_of_row["file"] = compute_vectors(programs["file"], pixels)
        if not np.isfinite(outputs_of_row["file"]).all():
            dtype = programs["file"].facts["dtype"]
            raise InputError(f"the {dtype} outputs are not finite; export float32")
        for control, change_pixels in compare_outputs.IMAGE_CONTROLS.items():
            control_pixels = change_pixels(pixels)
            outputs_of_row[control] = compute_vectors(programs["dense"], control_pixels)
        shuffled_outputs = compare_outputs.shuffle_outputs(outputs_of_row["dense"])
        outputs_of_row[compare_outputs.SHUFFLED_CONTROL] = shuffled_outputs
    return outputs_of_row


def compute_vectors(program: ExportedProgram, pixels: np.ndarray) -> np.ndarray:
    """Compute a file's logits or vectors, [images, D]."""
    output_names = program.output_names
    output_name = next(name for name in CARD_OUTPUTS if name in output_names)
    outputs = program(pixels, output_name, IMAGES_PER_CALL)  # [images, ..]
    return outputs.reshape(len(pixels), -1)


def format_card_table(graph_file: pathlib.PurePath, file_facts: Mapping) -> str:
    """Markdown table of a card: the dense file, the file, and the controls.

    file_facts: the file's, with its card
    """
    card = file_facts["card"]
    file_title = f"{graph_file.name}, {file_facts['dtype']}"
    if file_facts["float32_parts"]:
        file_title += f" ({', '.join(file_facts['float32_parts'])} float32)"
    titles = {"dense": "dense, float32", "file": file_title}
    mac_shares = {"dense": 1, "file": card["mac_share"]}
    rows = {}
    for row_name, title in titles.items():
        median, low, high = card["ms"][row_name]
        rows[row_name] = {"": title, "share of the MACs": f"{mac_shares[row_name]:.2f}"}
        rows[row_name]["MB"] = f"{card['megabytes'][row_name]:.1f}"
        rows[row_name]["ms an image"] = f"{median:.1f} [{low:.1f}, {high:.1f}]"
    median, low, high = card["speedup"]
    rows["file"]["times as fast"] = f"{median:.2f} [{low:.2f}, {high:.2f}]"
    for row_name, metrics in card["fidelity"].items():
        cells = rows.setdefault(row_name, {"": f"dense, images {row_name}"})
        cells |= compare_outputs.fidelity_cells(metrics)
    return rows_table([*rows.values()])


def card_facts(pretrained: Pretrained) -> dict[str, Any]:
    """What a page says of a model besides its measurements, as JSON values."""
    summary = "A reduction without a name."
    if pretrained.reduction is not None:
        docstring = inspect.getdoc(type(pretrained.reduction.method)) or ""
        summary = docstring.partition("\n")[0]
    return {
        "weights": pretrained.origin.name or pretrained.config.name or "ViT",
        "license": pretrained.origin.license,
        "reduction": pretrained.label,
        "reduction_in_words": summary,
    }


def read_other_cards(graph_file: pathlib.Path) -> dict[str, dict]:
    """Read the JSON of the other graphs with cards in a graph's folder, by name."""
    record_of_name = {}
    for json_file in graph_file.parent.glob("*.json"):
        other_graph = json_file.with_suffix("")
        record = program_facts.read_facts(other_graph)
        if other_graph != graph_file and other_graph.is_file() and "card" in record:
            record_of_name[other_graph.name] = record
    return record_of_name


def write_card_page(
    staging: pathlib.Path, staged_graph: pathlib.Path, graph_file: pathlib.Path
) -> None:
    """Write the page of all cards in a graph's folder, if there are any.

    staging, staged_graph: the export's folder and its new graph, which will be
        `graph_file`
    """
    record_of_name = read_other_cards(graph_file)
    new_record = program_facts.read_facts(staged_graph)
    if "card" in new_record:
        record_of_name[graph_file.name] = new_record
    subfolder = staged_graph.parent.relative_to(staging)
    record_of_path = {}
    for name, record in sorted(record_of_name.items()):
        record_of_path[str(subfolder / name)] = record
    if record_of_path:
        (staging / PAGE_NAME).write_text(format_card_page(record_of_path), "utf-8")


def format_card_page(record_of_path: Mapping[str, Mapping[str, Any]]) -> str:
    """Page of the cards of one model's files, as a model card of the Hugging Face hub.

    record_of_path: the JSON beside each graph, with its card, by the graph's path in
        the folder
    """
    first_record = next(iter(record_of_path.values()))
    card = first_record["card"]
    has_classes = first_record["activation"] is not None
    task = "image-classification" if has_classes else "image-feature-extraction"
    lines = ["---", f"pipeline_tag: {task}", "tags: [token-reduction]"]
    if "/" in card["weights"]:  # OWNER/NAME of the hub, not a file's name
        lines.append(f"base_model: {card['weights']}")
    if card["license"]:  # any text, as JSON, which YAML reads
        lines.append(f"license: {json.dumps(card['license'], ensure_ascii=False)}")
    lines += ["---", PAGE_MARK]
    for graph_path, record in record_of_path.items():
        lines += ["", *format_section(graph_path, record)]
    return "\n".join(lines) + "\n"


def format_section(graph_path: str, record: Mapping[str, Any]) -> list[str]:
    """Lines about one file, for readers who have never seen this package.

    graph_path: in the folder
    record: the JSON beside it, with its card
    """
    card = record["card"]
    file_format = import_format(graph_path)
    input_facts = record["input"]
    shape = " x ".join(map(str, input_facts["shape"]))
    license_text = card["license"] or "unknown; see where the weights come from"
    int8_text = " that did not calibrate it" if record["dtype"] == "int8" else ""
    num_images = len(card["images"])
    few_text = ""
    if num_images < FEW_IMAGES:
        few_text = f" These are too few to tell: give {FEW_IMAGES} or more."
    return [
        f"# {card['weights']}, {card['reduction']}, {record['dtype']}",
        "",
        f"`{graph_path}` is {file_format.FORMAT_TITLE} with a vision transformer, made "
        f"from the weights {card['weights']} (license: {license_text}). It takes "
        f"{card['mac_share']:.2f} of the multiply-adds of these weights' dense model. "
        f"Its reduction: {card['reduction_in_words']}",
        "",
        "```python",
        file_format.RUN_LINES.format(file=graph_path, images=input_facts["name"]),
        "```",
        "",
        f"`images` are {input_facts['dtype']}, {shape}; `{graph_path}.json` describes "
        "how to prepare them, and the outputs.",
        "",
        format_card_table(pathlib.PurePath(graph_path), record),
        "",
        f"Measured in {file_format.RUNTIME_TITLE} on {card['machine']}: "
        f"{card['threads']} threads, batch size {card['batch_size']}. Files took "
        "turns; brackets at times have the lowest and highest turn, and *times as "
        "fast* is the median of the turns' ratios. Outputs are compared with the "
        f"dense file's on {num_images} images{int8_text}.{few_text} Brackets have 95 % "
        "intervals. The last rows compare the dense file's outputs for changed "
        "images, and its outputs in another order (*shuffled*), which is chance.",
    ]
