"""Dense and reduced models in runtimes on this CPU: ONNX, LiteRT, JAX and PyTorch.

    python -m tools.onnx_speed --size deit_s --times speeds.jsonl

Programs of a batch size take turns in one process, in float32 with random weights: ONNX
graphs, LiteRT's, `optimize`'s programs, and timm's dense model, if installed. The
table has images a second and, in brackets, the ratio to the runtime's dense model with
the patch stem, round by round, with its lowest and highest turn. Times in the file are
not taken again.
"""

import dataclasses
import importlib.util
import json
import pathlib
import time
from typing import Literal

import numpy as np

from imagepiece_jax import cli
from imagepiece_jax.common import timer
from imagepiece_jax.common.files import check_writable, read_json_lines
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.exporters import litert_format, onnx_format
from imagepiece_jax.exporters.program_interface import ProgramInterface
from imagepiece_jax.inference.optimize import optimize
from imagepiece_jax.models import registry
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import draw_variables

DENSE = "none"
STAGES = "counts=stages-3-6-9"
HALF = "macs=0.5:counts=diffrate"
# First settings with either stem; then docs/comparison.md's at half the MACs, and dense
# models on smaller images.
MODELS = {
    "dense": DENSE,
    "dense, conv stem": DENSE,
    "ImagePiece": "imagepiece",
    "ImagePiece, conv stem": "imagepiece",
    "ToMe r=13": "tome:r=13",
    "EViT .7": "evit:keep_rate=0.7",
    "ToMe .5": "tome:macs=0.5",
    "fusion .5": f"mctf:{HALF}",
    "fusion by class attention .5": f"mctf:score=class:{HALF}",
    "most attended .5": f"diffrate:{HALF}",
    "most attended in 3 blocks .5": f"diffrate:macs=0.5:{STAGES}",
    "most attended in 3 blocks .6": f"diffrate:macs=0.6:{STAGES}",
    "most attended in all .4": "diffrate:macs=0.4:counts=proportional-1",
    "peaks .6": f"peaks:macs=0.6:{STAGES}",
    "peaks .5": f"peaks:macs=0.5:{STAGES}",
    "peaks .4": "peaks:macs=0.4:counts=proportional-1",
    "0.5": "0.5",
}
SIDES = {f"dense at {side} pixels": side for side in (192, 176, 160)}
MODELS |= dict.fromkeys(SIDES, DENSE)
TIMM = {"deit_ti": "deit_tiny_patch16_224", "deit_s": "deit_small_patch16_224"}
SIDE = 224
RUNTIMES = ("onnxruntime", "OpenVINO", "LiteRT", "JAX", "PyTorch")
RULES = timer.Timing(warmup=3, repeats=7, seconds=0.4)


def main(
    *,
    times: pathlib.Path,
    size: Literal["deit_ti", "deit_s"] = "deit_s",
    batch_sizes: tuple[int, ...] = (1, 8, 32),
    models: tuple[str, ...] = (),
    threads: int = 2,
    runtimes: tuple[str, ...] = RUNTIMES,
    clock: Literal["wall", "processor"] = "wall",
):
    """Time these runtimes on this CPU, in turns.

    Args:
        times: A file of one line per program.
        size: Of the models.
        batch_sizes: One or more.
        models: Names of the table or reductions, beside dense; the table without any.
        threads: Of every runtime; with one, JAX and PyTorch are not timed.
        runtimes: Of the table.
        clock: Processor time suits one thread on a machine that is not idle.
    """
    check_writable("times", times, ["", ".json", ".jsonl"])
    rows = [row for row in read_json_lines(times) if row["size"] == size]
    for batch in sorted(set(batch_sizes) - {row["batch"] for row in rows}):
        measured = measure_batch(size, batch, models, threads, runtimes, clock)
        with open(times, "a") as out:
            out.writelines(json.dumps(row) + "\n" for row in measured)
        rows += measured
    print(format_speeds(rows))


def measure_batch(size, batch, models=(), threads=2, runtimes=RUNTIMES, clock="wall"):
    """Rows of a batch size's programs, of all models or of `models`."""
    jobs = {}
    macs = {}
    for name in dict.fromkeys(["dense", *(models or MODELS)]):
        reduction = MODELS.get(name, name)
        side = SIDES.get(name, SIDE)
        stem = "conv" if name.endswith("conv stem") else "patch"
        images = random_images(batch, side)
        config = dataclasses.replace(registry.model_config(size), stem=stem)
        model = create_model(config, reduction, image_size=side)
        macs[name] = model_macs(model)
        vit = Pretrained(model, draw_variables(model, 0))
        interface = ProgramInterface(vit, batch_size=batch)
        graph = onnx_format.build_graph(interface).SerializeToString()
        calls = {
            "onnxruntime": onnxruntime_call(graph, images, threads),
            "OpenVINO": openvino_call(graph, images, threads),
        }
        if "LiteRT" in runtimes and importlib.util.find_spec("litert_converter"):
            flatbuffer = litert_format.build_graph(interface)
            calls["LiteRT"] = litert_call(flatbuffer, images, threads)
        if threads > 1:
            program = optimize(vit, batch_size=batch, dtype="float32")
            calls["JAX"] = jax_call(program, images)
        for runtime in runtimes:
            if runtime in calls:
                jobs[runtime, name] = timer.TimedCall(calls[runtime])
    if importlib.util.find_spec("timm") and not models and threads > 1:
        call = timm_call(size, random_images(batch, SIDE), threads)
        jobs["PyTorch", "dense"] = timer.TimedCall(call)
    read_clock = time.process_time if clock == "processor" else time.perf_counter
    times = timer.time_in_turns(jobs, RULES, read_clock, lambda: time.sleep(0.1))
    rows = []
    for (runtime, name), seconds in times.items():
        ratios = timer.paired_speedups(times[runtime, "dense"], seconds)
        row = {"size": size, "batch": batch, "runtime": runtime, "model": name}
        row["rate"] = timer.find_spread([batch / turn for turn in seconds])
        row["ratio"] = timer.find_spread(ratios)
        row["macs"] = macs["dense"] / macs[name]
        row["reduction"] = MODELS.get(name, name)
        rows.append(row | {"image_size": SIDES.get(name, SIDE)})
    return rows


def random_images(batch, side):
    """Normalized images, [batch, side, side, 3] float32."""
    images = np.random.default_rng(0).normal(size=(batch, side, side, 3))
    return images.astype(np.float32)


def format_speeds(rows):
    """A table: a line for each program, a column for each batch size."""
    by_program = {(row["runtime"], row["model"], row["batch"]): row for row in rows}
    batches = sorted({row["batch"] for row in rows})
    lines = []
    for runtime in RUNTIMES:
        for name in dict.fromkeys([*MODELS, *(row["model"] for row in rows)]):
            cells = [by_program.get((runtime, name, batch)) for batch in batches]
            measured = [row for row in cells if row is not None]
            if measured:
                macs = measured[0]["macs"]
                lines.append([runtime, name, *map(_format_rate, cells), f"{macs:.2f}"])
    head = ["runtime", "model", *(f"batch {batch}" for batch in batches), "by MACs"]
    return markdown_table(head, lines)


def _format_rate(row):
    """Images a second, and the ratio to the dense model with its interval."""
    if row is None:
        return None
    rate, *_ = row["rate"]
    if row["model"] == "dense":  # the others' reference
        return f"{rate:.1f}"
    median, low, high = row["ratio"]
    return f"{rate:.1f} ({median:.2f} [{low:.2f}, {high:.2f}])"


def onnxruntime_call(graph, images, threads=2):
    """Return a function of a call's number that runs a graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(graph, options, providers=providers)
    (entry,) = session.get_inputs()
    return lambda number: session.run(None, {entry.name: images})


def openvino_call(graph, images, threads=2):
    """Return a function of a call's number that runs a graph."""
    import openvino

    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    hints["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(core.read_model(graph), "CPU", hints)
    return lambda number: compiled([images])[0]


def litert_call(flatbuffer, images, threads=2):
    """Return a function of a call's number that runs a flatbuffer."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=flatbuffer, num_threads=threads)
    run = interpreter.get_signature_runner()
    return lambda number: list(run(images=images).values())


def jax_call(program, images):
    return lambda number: np.asarray(program(images))


def timm_call(size, images, threads):
    import timm
    import torch

    torch.set_num_threads(threads)
    model = timm.create_model(TIMM[size]).eval()
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def call(number):
        with torch.inference_mode():
            return model(batch)

    return call


if __name__ == "__main__":
    cli.run_command(main)
