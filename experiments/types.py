"""Types of exported files, dense and reduced: bytes, outputs, milliseconds.

python -m experiments types --files FOLDER --photographs FILE.csv --weights NAME=PATH ..
python -m experiments types --files FOLDER --photographs FILE.csv --time
python -m experiments types --tables && python -m experiments.results

Declared before any cell was run. A cell is a model, a form and a type. Its file is what
`export` writes with a batch size of 1, kept in FILES, and its figures are a line of
runs.jsonl in --out. `attended` reduces DeiT-Ti, and ToMe DINOv2-S. NAME is
a model, "deit" or "dinov2", or a recovered form, such as "dinov2-0.6".

FILE.csv lists a thousand labeled photographs of the model's size. Odd indices recover
(400) and calibrate (100 of them). 300 even ones, evenly spaced, judge in onnxruntime,
beside the dense float32 file: accuracy and first classes of DeiT-Ti, the ten nearest
kept and cosines of DINOv2-S. Controls are the dense float32 file on changed
photographs. OpenVINO answers 20 photographs, to see that it runs the same program.

--time measures the files on two threads, one image a call, into times.jsonl. A model's
files take turns, a runtime at a time. What counts is the gain that is left: how many
times as fast a reduced file is as the dense file of its own type. It is a gain if it is
above 1 in every turn. Recovered files are not timed, because only their values differ.
CLIP has the sizes of B/32 and random weights, so it has times only.
"""

import functools
import hashlib
import importlib.metadata
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

import imagepiece_jax
from experiments import neighbors, study, towers
from imagepiece_jax import cli
from imagepiece_jax.common import device, statistics, timer
from imagepiece_jax.common.files import replace_file, write_json
from imagepiece_jax.common.statistics import format_estimate
from imagepiece_jax.common.tables import rows_table
from imagepiece_jax.data.pictures import read_images
from imagepiece_jax.data.sources.csv_table import open_csv
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation.result_cache import encode_bits, read_points
from imagepiece_jax.exporters import (
    card,
    onnx_model,
    onnx_program,
    program_facts,
    quantize,
)
from imagepiece_jax.inference import compare_outputs
from imagepiece_jax.inference.compare_outputs import IMAGE_CONTROLS, measure_fidelity

FOLDER = pathlib.Path("docs/results/types")
TIMES = "times.jsonl"
DEIT, DINOV2, CLIP = "deit", "dinov2", "clip"
TITLES = {DEIT: "DeiT-Ti", DINOV2: "DINOv2-S", CLIP: "CLIP B/32, random weights"}
CLIP_SIZE = "vit_base_patch32_clip_quickgelu_224.openai"
RECOVERED = {f"{share} recovered": share for share in ("0.6", "0.5")}
TIMED = ("dense", *RECOVERED.values())
METHODS = {
    DEIT: "attended:macs={share}",  # a typed share at the time
    DINOV2: "tome:macs={share}",
}
TYPES = ("float32", "float16", "int8")


class Cell(NamedTuple):
    """A file and its outputs; of a control, the dense file on changed photographs."""

    model: str
    form: str  # of TIMED, RECOVERED or CONTROLS
    dtype: str

    @property
    def name(self) -> str:
        return ", ".join(self)

    @property
    def weights(self) -> str:
        """The NAME of --weights."""
        share = RECOVERED.get(self.form)
        return f"{self.model}-{share}" if share else self.model

    @property
    def dense(self) -> "Cell":
        return Cell(self.model, "dense", "float32")


def cells() -> list[Cell]:
    """All cells, in the order in which they run: the dense float32 file first."""
    order = []
    for model in (DEIT, DINOV2):
        order += timed(model, (*TIMED, *RECOVERED))
        order += [Cell(model, control, "float32") for control in IMAGE_CONTROLS]
    return order + timed(CLIP)


def timed(model: str, forms=TIMED) -> list[Cell]:
    return [Cell(model, form, dtype) for form in forms for dtype in TYPES]


class Study:
    """The files and the photographs, a labeled Source.

    weights: paths by NAME
    """

    def __init__(self, files, photographs, weights: dict[str, str], judged=300):
        self.files = files
        self.weights = weights
        count = len(photographs)
        odd = photographs.subset(range(1, count, 2)).evenly_spaced(400)
        even = photographs.subset(range(0, count, 2)).evenly_spaced(judged)
        self.calibrating = odd.evenly_spaced(100)
        self.pixels, _ = read_images(even, np.asarray)
        self.labels = even.labels[even.indices]
        self.outputs = functools.cache(self.outputs)

    def vit(self, cell: Cell) -> imagepiece_jax.Pretrained:
        """The model of a cell; photographs of its size are not cropped."""
        if cell.model == CLIP:
            return towers.forms(CLIP_SIZE, 224)[cell.form]
        share = RECOVERED.get(cell.form, cell.form)
        reduction = METHODS[cell.model].format(share=share)
        if cell.form == "dense":
            reduction = None
        path = self.weights[cell.weights]
        fields = {"image_size": self.pixels.shape[1], "crop": 1.0, "dtype": "float32"}
        vit = imagepiece_jax.load(path, reduction, **fields)
        if (vit.recovered is not None) != (cell.form in RECOVERED):
            raise InputError(f"{path} is not the model of {cell.name}")
        return vit

    def file(self, cell: Cell) -> pathlib.Path:
        """The exported file; of a control, the dense file."""
        if cell.form in IMAGE_CONTROLS:
            cell = cell.dense
        path = self.files / f"{cell.name}.onnx"
        if path.exists():
            return path
        self.files.mkdir(parents=True, exist_ok=True)
        if cell.dtype != "int8":
            vit = self.vit(cell)
            return imagepiece_jax.export(vit, path, batch_size=1, dtype=cell.dtype)
        # As `export` quantizes, without a card.
        float32 = self.file(cell._replace(dtype="float32"))
        program = onnx_program.open_file(float32)
        pixels, _ = read_images(self.calibrating, np.asarray)
        facts = program_facts.read_facts(float32) | {"dtype": "int8"}
        onnx_model.write_onnx(path, quantize.quantize_onnx(program, pixels))
        facts["digest"] = program_facts.graph_digest(path)
        write_json(program_facts.facts_file(path), facts)
        return path

    def outputs(self, cell: Cell) -> np.ndarray:
        """Logits or vectors of the photographs."""
        program = onnx_program.open_file(self.file(cell), towers.THREADS)
        change = IMAGE_CONTROLS.get(cell.form, np.asarray)
        return card.compared_output(program, change(self.pixels))

    def measure(self, cell: Cell) -> dict[str, Any]:
        """The line of a cell."""
        path = self.file(cell)
        size = sum(part.stat().st_size for part in program_facts.program_files(path))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        line = {"sha256": digest, "megabytes": size / 1e6}
        if cell.model == CLIP:
            return line
        own = self.outputs(cell)
        if cell.model == DEIT:
            line["right"] = encode_bits(own.argmax(1) == self.labels)
        if cell != cell.dense:
            line["dense"] = measure_fidelity(
                own, self.outputs(cell.dense), cell.model == DEIT
            )
        if cell.form not in IMAGE_CONTROLS:
            answer = towers.openvino_program(str(path))
            program = onnx_program.open_file(path, threads=1)
            rows = [
                answer([batch])[0]
                for batch in program.prepared_batches(self.pixels[:20])
            ]
            figures = measure_fidelity(
                np.concatenate(rows), own[:20], has_classes=False
            )
            line["openvino"] = figures["cosine_mean"]
        return line

    def times(self, model: str, runtime: str) -> list[dict[str, Any]]:
        """Seconds per call of a model's files in a runtime, a reading per turn."""
        jobs = {}
        for cell in timed(model):
            path = self.file(cell)
            program = onnx_program.open_file(path, threads=1)
            batch = next(program.prepared_batches(self.pixels[:1]))
            call = towers.OPENERS[runtime](str(path), batch)
            jobs[cell] = timer.TimedCall(call)
        version = importlib.metadata.version(runtime.lower())
        row = {"runtime": runtime, "version": version, "machine": device.cpu_name()}
        rows = []
        for cell, seconds in towers.turns(jobs).items():
            rows.append({**row, "cell": cell, "seconds": seconds})
        return rows


# The page

INTRODUCTION = """\
`python -m experiments types` measures and writes this page. Its first lines are the
declaration from before the runs. 0.6 and 0.5 are shares of the multiply-adds: the
method `attended` reduces DeiT-Ti, and ToMe DINOv2-S. Recovery and int8 saw photographs
that judge nothing here.

- **Outputs** of 300 photographs, in onnxruntime, compared with the dense float32 file.
  Brackets are 95 % intervals. The last two rows are the dense float32 file on changed
  photographs. *OpenVINO* is the mean cosine of its outputs to onnxruntime's.
- **Times** of one image a call, on two threads. *Gain* says how many times as fast as
  the dense float32 file, and *gain left* as the dense file of the same type. Brackets
  are the lowest and the highest turn; a gain is above 1 in both. A recovered file takes
  the time of its form."""


def outputs_row(results, cell: Cell) -> dict[str, str]:
    """A file's bytes and outputs, by column."""
    line = results[cell]
    row = {"file": f"{cell.form}, {cell.dtype}", "MB": f"{line['megabytes']:.1f}"}
    if "right" in line:
        right, dense = map(study.unpacked_right, (line, results[cell.dense]))
        row["accuracy, %"] = format_estimate(statistics.estimate_accuracy(right))
        if cell != cell.dense:
            points = statistics.paired_difference(right, dense)
            row["points"] = format_estimate(points, signs=True)
    row |= compare_outputs.fidelity_cells(line.get("dense", {}))
    row["OpenVINO"] = f"{line['openvino']:.4f}" if "openvino" in line else ""
    return row


def times_row(times, cell: Cell, runtimes=towers.RUNTIMES) -> dict[str, str]:
    """A file's times, by column."""
    row = {"file": f"{cell.form}, {cell.dtype}"}
    bases = {"gain": cell.dense, "gain left": cell._replace(form="dense")}
    for runtime in runtimes:
        own = times[runtime, cell]
        row[f"ms, {runtime}"] = spread_text([1000 * value for value in own], 1)
        for column, base in bases.items():
            ratios = timer.paired_speedups(times[runtime, base], own)
            row[f"{column}, {runtime}"] = spread_text(ratios) if base != cell else ""
    return row


def spread_text(values: list[float], digits: int = 2) -> str:
    median, low, high = (f"{value:.{digits}f}" for value in timer.find_spread(values))
    return f"{median} [{low}, {high}]"


def read_times(folder: pathlib.Path) -> dict[tuple[str, Cell], list[float]]:
    rows = read_points(folder / TIMES)
    return {(row["runtime"], Cell(*row["cell"])): row["seconds"] for row in rows}


def page(folder: pathlib.Path) -> str:
    """The tables of the lines that are there, as Markdown."""
    results = study.read(cells(), folder)
    times = read_times(folder)
    blocks = ["# Types of files, dense and reduced", INTRODUCTION]
    for model, title in TITLES.items():
        own = [cell for cell in results if cell.model == model != CLIP]
        blocks.append(f"## {title}")
        if own:
            blocks.append(rows_table([outputs_row(results, cell) for cell in own]))
        if times:
            blocks.append(rows_table([times_row(times, cell) for cell in timed(model)]))
    return study.page(blocks, cells(), results)


def programs_table(folder: pathlib.Path) -> str:
    """The table of docs/photo_programs.md: towers' times and cosines."""
    results = study.read(cells(), folder)
    times = read_times(folder)
    rows = []
    for cell in (*timed(DINOV2), *timed(CLIP)):
        if cell.dtype == "float16":
            continue
        row = {"tower": TITLES[cell.model]}
        row |= times_row(times, cell, towers.RUNTIMES[:1] if times else ())
        for column, form in (("cosine", ""), ("cosine, recovered", " recovered")):
            line = results.get(cell._replace(form=cell.form + form), {})
            figures = compare_outputs.fidelity_cells(line.get("dense", {}))
            row[column] = figures.get("cosine, mean")
        rows.append(row)
    return rows_table(rows)


def main(
    *,
    out: pathlib.Path = FOLDER,
    files: pathlib.Path = pathlib.Path(),
    photographs: str = "",
    weights: tuple[str, ...] = (),
    time: bool = False,
    tables: bool = False,
):
    """Measure what types of files gain and lose, dense and reduced.

    Args:
        out: The folder of the lines. The page stands beside it.
        files: A folder of exported files, which are not exported again.
        photographs: A table of labeled images of the model's size.
        weights: NAME=PATH of deit, dinov2, and recovered ones such as dinov2-0.6.
        time: Measure times instead.
        tables: Write the page of the lines that are there instead.
    """
    if tables:
        replace_file(out.with_suffix(".md"), page(out))
        return
    source = open_csv(photographs, "val")
    own = Study(files, source, dict(pair.split("=", 1) for pair in weights))
    if time:
        rows = []
        for model in TITLES:
            for runtime in towers.RUNTIMES:
                rows += own.times(model, runtime)
        replace_file(out / TIMES, "".join(json.dumps(row) + "\n" for row in rows))
        return
    known = [cell for cell in cells() if cell.weights in {*own.weights, CLIP}]
    known.sort(key=lambda cell: cell.dtype == "float16")  # tells least
    identity = {"images": len(own.pixels), "names": neighbors.names_digest(source)}
    study.run(known, out, identity, own.measure)


if __name__ == "__main__":
    cli.run_command(main)
