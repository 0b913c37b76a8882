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

from imagepiece_jax.benchmark import timer
from imagepiece_jax.common import device
from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.common.progress import working
from imagepiece_jax.common.tables import rows_table
from imagepiece_jax.data.pictures import as_source, read_images
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate.compare_outputs import (
    CONTROLS,
    MIN_IMAGES,
    NEIGHBORS,
    cells,
    fidelity,
)
from imagepiece_jax.export.onnx_program import open_file
from imagepiece_jax.export.program_facts import digest_of, files_of, read_facts
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.recover.recovery_images import divided

NAME = "README.md"
MARK = "<!-- Written by imagepiece export"
FOLDERS = ("", "onnx/", "visual/")  # places of graphs, from a card's folder
THREADS = 2
RULES = timer.Timing(warmup=2, repeats=5, seconds=0.4)
PAUSE = 0.1  # seconds until onnxruntime's threads leave the cores
IMAGES = 200  # the most images that calibrate, and the most that are compared
ROWS = 8  # images per call, where outputs are compared
# The output to compare is the first of these.
OUTPUTS = ("logits", "embedding", "image_embeds", "pooler_output", "pooled", "patches")


class CardImages(NamedTuple):
    """Pixels [N, H, W, 3] that calibrate, and others that are compared."""

    calibration: np.ndarray
    compared: np.ndarray
    compared_names: list[str]


def is_card(file: pathlib.Path) -> bool:
    """Whether a file is a page of cards."""
    return file.is_file() and MARK in file.read_text("utf-8", errors="replace")


def divided_images(vit: Pretrained, images: Any) -> CardImages:
    """Read images to calibrate with, and images to compare, as `read_images` does.

    They are divided as by `recover`. Images are not compared if they, or others of
    their scene, recovered the model.

    images: as for `recover`
    Raises InputError if images are too few, or all alike or known.
    """
    batch_size = 1
    learned = ""
    if vit.recovered:
        batch_size = vit.recovered.batch_size
        learned = vit.recovered.learned or ""
    parts = divided(as_source(images), batch_size, learned)
    if not parts.num_scenes:
        raise InputError(
            "images are alike, or recovered the model, so none can be held out to "
            "compare; give photographs of more scenes"
        )
    calibration, _ = read_images(parts.learned.evenly_spaced(IMAGES), vit.preprocessing)
    held_out = parts.held_out.evenly_spaced(IMAGES)
    compared, paths = read_images(held_out, vit.preprocessing)
    check_range("number of images to compare", len(compared), MIN_IMAGES)
    places = [pathlib.PurePath(path).parts for path in paths]
    shared = len(os.path.commonprefix([place[:-1] for place in places]))
    names = ["/".join(place[shared:]) for place in places]
    return CardImages(calibration, compared, names)


def measured(
    out: pathlib.Path,
    dense: pathlib.Path,
    images: CardImages,
    kind: tuple[bool, bool],
) -> dict[str, Any]:
    """Measure an exported file beside the dense file, as JSON values.

    kind: has_classes and has_numbers of `fidelity`
    """
    pixels = images.compared
    files = {"file": out, "dense": dense}
    programs = {name: open_file(file, THREADS) for name, file in files.items()}
    size = programs["file"].batch_size or 1
    jobs = {}
    megabytes = {}
    for name, program in programs.items():
        batch = next(program.parts(pixels[:size], size))
        jobs[name] = timer.TimedCall(lambda _, run=program.run, batch=batch: run(batch))
        total = sum(file.stat().st_size for file in files_of(files[name]))
        megabytes[name] = total / 1e6
    with working("timing the file and the dense file, in turns"):
        seconds = timer.measure(jobs, RULES, pause=lambda: time.sleep(PAUSE))
    ms = {}
    for name, readings in seconds.items():
        ms[name] = timer.spread([1000 * value / size for value in readings])
    with working(f"comparing the outputs for {len(pixels)} images"):
        base = outputs(programs["dense"], pixels)
        own = outputs(programs["file"], pixels)
        figures = {"file": fidelity(own, base, *kind)}
        for name, change in CONTROLS.items():
            own = outputs(programs["dense"], change(pixels))
            figures[name] = fidelity(own, base, *kind)
    return {
        "images": images.compared_names,
        "machine": device.cpu_name(),
        "threads": THREADS,
        "batch_size": size,
        "mac_share": read_facts(out)["gmacs"] / read_facts(dense)["gmacs"],
        "megabytes": megabytes,
        "ms": ms,
        "speedup": timer.spread(timer.speedups(seconds["dense"], seconds["file"])),
        "fidelity": figures,
    }


def outputs(program, pixels):
    """A file's logits or vectors, [images, D]."""
    name = next(name for name in OUTPUTS if name in program.output_names)
    return program.output(pixels, name, ROWS).reshape(len(pixels), -1)


def table(out: pathlib.Path, facts: Mapping[str, Any]) -> str:
    """Markdown table of a card: the dense file, the file, and the controls.

    facts: the file's, with its card
    """
    card = facts["card"]
    own = f"{out.name}, {facts['dtype']}"
    rows = {"dense, float32": {"share of the MACs": "1.00"}, own: {}}
    rows[own]["share of the MACs"] = f"{card['mac_share']:.2f}"
    for row, name in zip(rows.values(), ("dense", "file"), strict=True):
        median, low, high = card["ms"][name]
        row["MB"] = f"{card['megabytes'][name]:.1f}"
        row["ms an image"] = f"{median:.1f} [{low:.1f}, {high:.1f}]"
    median, low, high = card["speedup"]
    rows[own]["times as fast"] = f"{median:.2f} [{low:.2f}, {high:.2f}]"
    rows[own] |= cells(card["fidelity"]["file"])
    for name in CONTROLS:
        rows[f"dense, images {name}"] = cells(card["fidelity"][name])
    return rows_table([{"": name, **row} for name, row in rows.items()])


def subject(vit: Pretrained, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The model's facts for its card, as JSON values.

    Returns title, hub (fields of a Hugging Face model card) and role (of the images).
    """
    hub = {"pipeline_tag": "image-feature-extraction"}
    if facts["activation"]:
        hub["pipeline_tag"] = "image-classification"
    hub["tags"] = ["onnx", "token-reduction"]
    if "/" in vit.source.name:
        hub["base_model"] = vit.source.name
    if vit.source.license:
        hub["license"] = vit.source.license
    role = "neither recovered nor calibrated"
    if vit.recovered and vit.recovered.learned is None:
        role = "did not calibrate; the model does not record which images recovered it"
    name = vit.source.name or vit.config.name or "ViT"
    title = f"{name}, {vit.label}, {facts['dtype']}"
    return {"title": title, "hub": hub, "role": role}


def write_page(page: pathlib.Path):
    """Write the README.md of a folder, with a section for every file with a card."""
    fields = []
    sections = []
    for place in FOLDERS:
        for file in sorted(page.parent.glob(f"{place}*.onnx.json")):
            out = file.with_suffix("")
            facts = read_facts(out)
            if "card" in facts and facts.get("digest") == digest_of(files_of(out)):
                fields.append(facts["card"]["hub"])
                sections.append(section(out, facts))
    if not sections:
        return
    # YAML reads JSON. A field stands for the folder if all files have it.
    head = []
    for name, value in fields[0].items():
        if all(each.get(name) == value for each in fields):
            head.append(f"{name}: {json.dumps(value, ensure_ascii=False)}")
    lines = ["---", *head, "---", f"{MARK} -->", "", *sections]
    replace_file(page, "\n".join(lines))


def section(out: pathlib.Path, facts: Mapping[str, Any]) -> str:
    """A file's part of the page."""
    card = facts["card"]
    count = len(card["images"])
    chance = ""
    if "neighbors_kept" in card["fidelity"]["file"]:
        share = 100 * NEIGHBORS / (count - 1)
        chance = f" By chance {share:.0f} % of the ten nearest would stay."
    return (
        f"# {card['title']}\n\n{table(out, facts)}\n\n"
        f"Measured in onnxruntime on {card['machine']}: {card['threads']} threads, "
        f"batch size {card['batch_size']}. Files took turns; brackets at times have "
        "the lowest and highest turn, and *times as fast* is the median of the turns' "
        f"ratios. Outputs are compared with the dense file's on {count} images that "
        f"{card['role']}; brackets have 95 % intervals.{chance} The last two rows "
        "compare the dense file's outputs for changed images.\n"
    )
