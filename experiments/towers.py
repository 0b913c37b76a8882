"""Visual towers in onnxruntime and OpenVINO on this CPU, one image a call.

    python -m experiments.towers --times speeds.jsonl

Towers of public sizes with random weights, dense and reduced, as `export --layout
immich` writes them, with two threads, in float32. The forms of a tower take turns in
one process, a runtime at a time. Towers that the file holds are not timed again.
"""

import json
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

import imagepiece_jax
from imagepiece_jax import cli
from imagepiece_jax.common import timer
from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.models import registry
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import fresh_variables

DENSE = "dense"
SHARES = ("0.6", "0.5")
TOWERS = {  # {name: (the size by timm's name, pixels)}
    "DINOv2 B/14 at 224": ("vit_base_patch14_dinov2", 224),
    "SigLIP 2 B/16 at 224": ("vit_base_patch16_siglip_224", 224),
    "CLIP L/14 at 336": ("vit_large_patch14_clip_quickgelu_336.openai", 336),
    "SigLIP 2 L/16 at 384": ("vit_large_patch16_siglip_384", 384),
    "SigLIP 2 L/16 at 512": ("vit_large_patch16_siglip_512", 512),
    "SigLIP 2 SO400M/14 at 384": ("vit_so400m_patch14_siglip_384", 384),
    "DFN H/14 at 378": ("vit_huge_patch14_clip_quickgelu_378.dfn5b", 378),
}
THREADS = 2
RULES = timer.Timing(warmup=1, repeats=5, seconds=0.4)


def main(*, times: pathlib.Path, towers: tuple[str, ...] = tuple(TOWERS)):
    """Time towers of public sizes, and print a table.

    Args:
        times: A file of one line per program.
        towers: Names of the table.
    """
    for name in towers:
        check_choice("towers", name, TOWERS)
    rows = []
    if times.exists():
        rows = [json.loads(line) for line in times.read_text("utf-8").splitlines()]
    for name in towers:
        if name in {row["tower"] for row in rows}:
            continue
        measured = [{"tower": name, **row} for row in measure(forms(*TOWERS[name]))]
        with open(times, "a", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in measured)
        rows += measured
    print(table(rows))


def forms(size: str, side: int) -> dict[str, Pretrained]:
    """A tower with random weights, dense and reduced."""
    config = registry.model_config(size)
    variables = fresh_variables(create_model(config, image_size=side), 0)
    models = {}
    for form, reduction in reductions(config).items():
        model = create_model(config, reduction, image_size=side)
        models[form] = Pretrained(model, variables)
    return models


def reductions(config: ViTConfig) -> dict[str, str | None]:
    """The reductions of a tower's forms: what a typed share meant when it was timed."""
    method = "tome"
    if config.num_classes and config.arch.pool == "token":  # CLIP's projection
        quarters = tuple(config.depth * part // 4 for part in (1, 2, 3))
        method = f"attended:blocks={quarters}"
    return {DENSE: None, **{share: f"{method}:macs={share}" for share in SHARES}}


def measure(towers: dict[str, Pretrained]) -> list[dict]:
    """Times and bytes of towers in each runtime; "dense" is the one to compare with."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, vit in towers.items():
            path = pathlib.Path(folder, str(len(files)))
            files[name] = imagepiece_jax.export(vit, path, layout="immich")
        for runtime, open_file in OPENERS.items():
            jobs = {}
            for name, file in files.items():
                image = np.zeros((1, 3, *towers[name].preprocessing.shape), np.float32)
                jobs[name] = timer.TimedCall(open_file(str(file), image))
            seconds = turns(jobs)
            for name, readings in seconds.items():
                ratios = timer.paired_speedups(seconds[DENSE], readings)
                rows.append(
                    {
                        "setting": name,
                        "runtime": runtime,
                        "gmacs": towers[name].gmacs,
                        "megabytes": megabytes(files[name].parent),
                        "ms": timer.find_spread([1000 * value for value in readings]),
                        "ratio": timer.find_spread(ratios),
                    }
                )
    return rows


def turns(jobs: dict[Any, timer.TimedCall]) -> dict[Any, list[float]]:
    """Seconds per call of programs that take turns, a reading per turn."""
    return timer.time_in_turns(jobs, RULES, pause=lambda: time.sleep(0.1))


def megabytes(folder: pathlib.Path) -> int:
    """Of all files of a folder."""
    return round(sum(part.stat().st_size for part in folder.iterdir()) / 1e6)


def onnxruntime_call(graph, images):
    """A call of a graph, which is bytes or a path."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(
        graph, options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda number: session.run(None, {name: images})


def openvino_call(graph, images):
    """A call of a graph, which is bytes or a path."""
    compiled = openvino_program(graph)
    return lambda number: compiled([images])[0]


def openvino_program(graph):
    """A compiled graph, which is bytes or a path."""
    import openvino

    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    hints["INFERENCE_NUM_THREADS"] = THREADS
    return core.compile_model(core.read_model(graph), "CPU", hints)


OPENERS = {"onnxruntime": onnxruntime_call, "OpenVINO": openvino_call}
RUNTIMES = tuple(OPENERS)


def table(rows: list[dict]) -> str:
    """A line a tower and setting, a column a runtime."""
    lines = {}
    for row in rows:
        key = row.get("tower"), row["setting"]
        cells = [*filter(None, key), f"{row['gmacs']:.1f}", str(row["megabytes"])]
        line = lines.setdefault(key, cells)
        median, low, high = row["ms"]
        ratio, *ends = row["ratio"]
        text = f"{median:.0f} [{low:.0f}, {high:.0f}]"
        if row["setting"] != DENSE:
            text += f" ({ratio:.2f} [{ends[0]:.2f}, {ends[1]:.2f}])"
        line.append(text)
    head = ["setting", "GMACs", "MB", *RUNTIMES]
    if rows and "tower" in rows[0]:
        head.insert(0, "tower")
    return markdown_table(head, lines.values())


if __name__ == "__main__":
    cli.run_command(main, compiles=False)
