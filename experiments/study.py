"""What studies share: results that are measured once, a line of JSON each.

A study is one script. It lists its cells, and measures each into a line of FOLDER's
runs.jsonl.
"""

import argparse
import dataclasses
import json
import pathlib
import time

import jax

from imagepiece_jax.common import device, parallel
from imagepiece_jax.common.files import git_revision, read_json_lines
from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation import accuracy

FILE = "runs.jsonl"


def measure_cells(cells, folder, identity, measure):
    """Measure each cell without a line, and write its line.

    cells: whatever has a `name`
    identity: values that all lines of a folder share, such as digests
    measure: from a cell to JSON values by name
    Raises InputError before anything is measured if a line has another identity.
    """
    versions = code_versions()  # the code may change while it runs
    file = pathlib.Path(folder, FILE)
    file.parent.mkdir(parents=True, exist_ok=True)
    measured = read_runs(folder)
    waiting = []
    for cell in cells:
        if cell.name not in measured:
            waiting.append(cell)
        elif not identity.items() <= measured[cell.name].items():
            problem = "is of other weights or images"
            hint = "give another --out"
            raise InputError(f"{folder}: {cell.name} {problem}; {hint}")
    for number, cell in enumerate(waiting, start=1):
        print(f"{number} of {len(waiting)}: {cell.name} ..", flush=True)
        began = time.monotonic()
        line = {"name": cell.name, **identity, **measure(cell), "versions": versions}
        line["seconds"] = round(time.monotonic() - began, 1)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
        jax.clear_caches()


def read_runs(folder):
    """The lines of a folder's cells, by name. Raises InputError for a name twice."""
    path = pathlib.Path(folder, FILE)
    lines = {}
    for line in read_json_lines(path):
        if line["name"] in lines:
            raise InputError(f"{path}: {line['name']} has two lines; remove one")
        lines[line["name"]] = line
    return lines


def folders_parser(doc):
    """A parser of a study's words; both studies read these two folders."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--assets", type=pathlib.Path, required=True)
    places = {"type": pathlib.Path, "required": True, "help": "the folder val"}
    parser.add_argument("--imagenette", **places)
    return parser


def code_versions():
    """Versions of the libraries, the processor and the code."""
    code = {"device": device.device_name(), "commit": git_revision()}
    return device.library_versions() | code


def mean_pooled(vit):
    """The model whose vector is the mean of its patches, by their sizes."""
    config = vit.config.with_arch(pool="mean")
    return dataclasses.replace(vit, model=vit.model.clone(config=config))


def model_reader(vit, read, model=None):
    """A function of batches that returns read(outputs, batch), [images, ..] by name.

    It is compiled at the first batch, for all calls. Images of another size than the
    model's are resized on the device.

    vit: a Pretrained
    model: another ViT with its variables; None: its own
    """
    size = image_sides(vit.image_size)

    def sized(images, batch, model):
        if images.shape[1:3] == size:
            return images
        return jax.image.resize(images, (len(images), *size, 3), "cubic")

    functions = {"measure_outputs": read, "alter_images": sized}
    step = accuracy.make_eval_step(model or vit.model, **functions)
    variables = parallel.replicate(vit.variables)

    def answer(images):
        with jax.default_matmul_precision("highest"):
            return accuracy.evaluate_model(step, variables, images).image_metrics

    return answer
