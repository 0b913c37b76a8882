"""The card of an exported file: its cost and its outputs beside the dense file's.

The dense file is an export of the same weights without reduction, in float32. Both run
in onnxruntime on the CPU.
"""

import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.common import device, timer
from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.common.progress import announced_work, log
from imagepiece_jax.common.tables import rows_table
from imagepiece_jax.data.pictures import as_source, read_images
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters.program_facts import files_of, read_facts
from imagepiece_jax.inference.annotations import read_annotations
from imagepiece_jax.inference.compare_outputs import (
    IMAGE_CONTROLS,
    MIN_COMPARED_IMAGES,
    Annotations,
    fidelity_cells,
    measure_fidelities,
)
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.program import Program, open_program
from imagepiece_jax.recovery.recovery_images import split_images

NAME = "README.md"
MARK = "<!-- Written by imagepiece export: "  # and the name of a section's file
THREADS = 2
RULES = timer.Timing(warmup=2, repeats=5, seconds=0.4)
PAUSE = 0.1  # seconds until onnxruntime's threads leave the cores
IMAGES = 200  # the most images that calibrate, and the most that are compared
ROWS = 8  # images per call, where outputs are compared
# The output to compare is the first of these.
OUTPUTS = ("logits", "embedding", "image_embeds", "pooler_output", "pooled", "patches")
OUTPUTS += ("last_hidden_state",)


class CardImages(NamedTuple):
    """Pixels [N, H, W, 3] that calibrate, and others that are compared."""

    calibration: np.ndarray
    compared: np.ndarray
    compared_names: list[str]
    known: Annotations  # of the compared images


def is_card(file: pathlib.Path) -> bool:
    """Whether a file is a page of cards."""
    return file.is_file() and MARK in file.read_text("utf-8", errors="replace")


def divided_images(
    vit: Pretrained, images: Any, texts: str | os.PathLike | None = None
) -> CardImages:
    """Read images to calibrate with, and images to compare, as `read_images` does.

    They are divided as by `recover`. Scenes that recovered the model are not compared.

    images: as for `recover`
    texts: as for `read_annotations`
    Raises InputError if images are too few, or all alike or known.
    """
    source = as_source(images)
    known = read_annotations(vit, source, texts)
    learned = (1,)
    if vit.recovered:
        learned = (vit.recovered.batch_size, vit.recovered.learned or "")
    parts = split_images(source, *learned)
    if not parts.num_scenes:
        raise InputError(
            "images are alike or recovered the model, so none can be held out to "
            "compare; give photographs of more scenes"
        )
    calibration, _ = read_images(parts.learned.evenly_spaced(IMAGES), vit.preprocessing)
    held_out = parts.held_out.evenly_spaced(IMAGES)
    compared, paths = read_images(held_out, vit.preprocessing)
    check_range("number of images to compare", len(compared), MIN_COMPARED_IMAGES)
    count = len(calibration) + len(compared)
    log.info(f"a card of {count} images: {len(compared)} of them are compared")
    places = np.flatnonzero(np.isin(source.indices, held_out.indices))
    known = known.select_images([i for i in places if source.image_name(i) in paths])
    shared = os.path.commonprefix(paths).rfind("/") + 1
    names = [path[shared:] for path in paths]
    return CardImages(calibration, compared, names, known)


def measured(
    out: pathlib.Path, dense: pathlib.Path, images: CardImages, has_classes: bool | None
) -> dict[str, Any]:
    """Measure an exported file beside the dense file, as JSON values.

    has_classes: as for `measure_fidelity`
    """
    pixels = images.compared
    files = {"file": out, "dense": dense}
    programs = {name: open_program(file, THREADS) for name, file in files.items()}
    size = programs["file"].batch_size or 1
    jobs = {}
    megabytes = {}
    for name, program in programs.items():
        call = program.prepared_call(pixels[:size])
        jobs[name] = timer.TimedCall(lambda _, call=call: call())
        total = sum(file.stat().st_size for file in files_of(files[name]))
        megabytes[name] = total / 1e6
    with announced_work("timing the file and the dense file, in turns"):
        seconds = timer.time_in_turns(jobs, RULES, pause=lambda: time.sleep(PAUSE))
    ms = {}
    for name, readings in seconds.items():
        ms[name] = timer.find_spread([1000 * value / size for value in readings])
    with announced_work(f"comparing the outputs for {len(pixels)} images"):
        rows = {name: outputs(programs[name], pixels) for name in ("dense", "file")}
        if not np.isfinite(rows["file"]).all():
            raise InputError(
                f"the {read_facts(out)['dtype']} file's outputs are not finite for all "
                "images; export float32"
            )
        for name, change in IMAGE_CONTROLS.items():
            rows[name] = outputs(programs["dense"], change(pixels))
    return {
        "images": images.compared_names,
        "machine": device.cpu_name(),
        "threads": THREADS,
        "batch_size": size,
        "mac_share": read_facts(out)["gmacs"] / read_facts(dense)["gmacs"],
        "megabytes": megabytes,
        "ms": ms,
        "speedup": timer.find_spread(
            timer.paired_speedups(seconds["dense"], seconds["file"])
        ),
        "fidelity": measure_fidelities(rows, has_classes, images.known),
    }


def outputs(program: Program, pixels: np.ndarray) -> np.ndarray:
    """Compute a file's logits or vectors, [images, D]."""
    entries = np.ravel(program.facts["output"])  # of one output, or of several
    names = [entry["name"] for entry in entries]
    name = next(name for name in OUTPUTS if name in names)
    return program(pixels, name, ROWS).reshape(len(pixels), -1)


def table(out: pathlib.Path, facts: Mapping[str, Any]) -> str:
    """Markdown table of a card: the dense file, the file, and the controls.

    facts: the file's, with its card
    """
    card = facts["card"]
    own = f"{out.name}, {facts['dtype']}"
    if facts["float32_parts"]:
        own += f" ({', '.join(facts['float32_parts'])} float32)"
    rows = {"dense, float32": {"share of the MACs": "1.00"}, own: {}}
    rows[own]["share of the MACs"] = f"{card['mac_share']:.2f}"
    for row, name in zip(rows.values(), ("dense", "file"), strict=True):
        median, low, high = card["ms"][name]
        row["MB"] = f"{card['megabytes'][name]:.1f}"
        row["ms an image"] = f"{median:.1f} [{low:.1f}, {high:.1f}]"
    median, low, high = card["speedup"]
    rows[own]["times as fast"] = f"{median:.2f} [{low:.2f}, {high:.2f}]"
    titles = dict(zip(("dense", "file"), rows, strict=True))
    for name, figures in card["fidelity"].items():
        title = titles.get(name, f"dense, images {name}")
        rows[title] = rows.get(title, {}) | fidelity_cells(figures)
    return rows_table([{"": name, **row} for name, row in rows.items()])


def graphs_on(page: pathlib.Path) -> list[str]:
    """Names of the files that have a section on a page of cards."""
    sections = page.read_text("utf-8").split(MARK)[1:]
    return [section.partition(" -->")[0] for section in sections]


def write_page(page: pathlib.Path, out: pathlib.Path, text: str = ""):
    """Replace a file's section of a page of cards, or remove it.

    text: the page's head and the section, as `page_of` gives them
    """
    head, *new = text.split(MARK)
    sections = []
    if is_card(page):
        first, *sections = page.read_text("utf-8").split(MARK)
        head = head or first
    sections = [each for each in sections if not each.startswith(f"{out.name} ")] + new
    if sections:
        replace_file(page, MARK.join([head, *sections]))
    elif is_card(page):
        page.unlink()


def page_of(out: pathlib.Path, vit: Pretrained, facts: Mapping[str, Any]) -> str:
    """A file's README.md: a model card of the Hugging Face hub."""
    card = facts["card"]
    task = "image-feature-extraction"
    if facts["activation"]:
        task = "image-classification"
    head = ["---", f"pipeline_tag: {task}", "tags: [onnx, token-reduction]"]
    if "/" in vit.origin.name:
        head.append(f"base_model: {vit.origin.name}")
    if vit.origin.license:  # any text, as JSON, which YAML reads
        head.append(f"license: {json.dumps(vit.origin.license, ensure_ascii=False)}")
    others = "neither recovered nor calibrated"
    if vit.recovered and vit.recovered.learned is None:
        others = "did not calibrate; which images recovered the model is not recorded"
    name = vit.origin.name or vit.config.name or "ViT"
    count = len(card["images"])
    lines = [
        *head,
        "---",
        f"{MARK}{out.name} -->",
        "",
        f"# {name}, {vit.label}, {facts['dtype']}",
        "",
        table(out, facts),
        "",
        f"Measured in onnxruntime on {card['machine']}: {card['threads']} threads, "
        f"batch size {card['batch_size']}. Files took turns; brackets at times have "
        "the lowest and highest turn, and *times as fast* is the median of the turns' "
        f"ratios. Outputs are compared with the dense file's on {count} images that "
        f"{others}. Brackets have 95 % intervals, and points are relative to the dense "
        "file. The last rows compare the dense file's outputs for changed images, and "
        "its outputs in another order (*shuffled*), which is chance.",
    ]
    return "\n".join(lines) + "\n"
