"""Where runtimes run nodes of DeiT-Ti's files, a section of docs/results/runtimes.md.

    python -m tools.placement_table --weights deit_tiny_patch16_224.npz \
        --webgpu .venv-webgpu/bin/python --revision HEAD

Exports every method, measures WebGPU by tools/webgpu_placement.py, and looks up other
runtimes' operators in tools/runtime_operators.py. Rows of the same revision are
replaced in docs/results/placement.jsonl; the page has the first revision and the last.
Selectors that weights do not have are drawn from a seed.
"""

import collections
import json
import pathlib
import subprocess
import tempfile

import imagepiece_jax
from imagepiece_jax import cli
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.exporters.onnx_model import build_onnx_model, write_onnx
from imagepiece_jax.reduction.methods import METHODS
from tools.runtime_operators import RUNTIMES, elsewhere

ROOT = pathlib.Path(__file__).resolve().parent.parent
MEASURED = ROOT / "docs" / "results" / "placement.jsonl"
PAGE = ROOT / "docs" / "results" / "runtimes.md"
TITLE = "## Where nodes run"
DENSE = "none"
METHOD_NAMES = sorted(METHODS.keys() - {DENSE, "random"})
DRAWN = ("dtem", "dynamicvit", "imagepiece_dynamicvit", "spvit", "token_learner")
BATCHES = {1: "1", None: "open"}
ML_PROGRAM, NETWORK = "CoreML, ML program", "CoreML, neural network"
PUBLISHED = [name for name in RUNTIMES if name != "WebGPU"]
INTRO = """
Nodes of DeiT-Ti's float32 files at `macs=0.5` (the dense model: `none`), written by
`python -m tools.placement_table`. A node without an operator on the device runs on the
CPU, and its arrays are copied there and back.

**WebGPU**, measured: onnxruntime-webgpu 1.27 on a software GPU (Mesa's lavapipe 25.0),
after onnxruntime's own fusions. A cell has nodes on WebGPU, nodes on the CPU, and
copies. Before (revision {before}), token numbers were int64; now they are float32. The
difference is the largest from the CPU's logits on noise, over the logits' spread.
Learned selectors ({drawn}) are drawn from a seed here.
Where their scores nearly tie, rounding decides which token leaves.
"""
OTHERS = """
**Other runtimes**, by their published tables: nodes of the file that leave the device
at batch 1, and in brackets at an open batch. CoreML's two tables are in onnxruntime
1.32's package, XNNPACK's is its page (2025), and TensorRT's is onnx-tensorrt's
`operators.md` for TensorRT 10.15. The tables name operators and a few restrictions; a
runtime checks more. XNNPACK runs on the CPU: a node that leaves it costs no copy.
"""
OPERATORS = """
The operators behind these nodes, with their nodes at batch 1. For XNNPACK, which has
few, the table lists what it runs.
"""
INT8 = """
int8 files leave WebGPU and TensorRT, with dense models, too. onnxruntime's WebGPU has
DequantizeLinear, but no QuantizeLinear, so every quantized array is copied to the CPU
and back. TensorRT demands zero points of 0, and activations here are uint8. For these
devices export float16.
"""


def main(
    *,
    weights: pathlib.Path | None = None,
    webgpu: pathlib.Path | None = None,
    revision: str = "HEAD",
):
    """Measure all methods and write the rows and the page.

    Args:
        weights: DeiT-Ti's; without them, the page is written of the stored rows.
        webgpu: A Python with onnxruntime-webgpu.
        revision: The name of the code that exports, for the rows.
    """
    rows = stored_rows()
    if weights is not None:
        if webgpu is None or not webgpu.is_file():
            raise InputError(f"webgpu is {webgpu}; name a Python that runs the files")
        kept = [row for row in rows if row["revision"] != revision]
        for row in kept:  # the page has the last revision's operators
            row.pop("operators", None)
            row.pop("leaving", None)
        rows = kept + measured_rows(weights, webgpu, revision)
        lines = [json.dumps(row) + "\n" for row in rows]
        MEASURED.write_text("".join(lines), "utf-8")
    before, _, _ = PAGE.read_text("utf-8").partition(TITLE)
    PAGE.write_text(before + section(rows), "utf-8")


def stored_rows():
    return [*map(json.loads, MEASURED.read_text("utf-8").splitlines())]


def measured_rows(weights, webgpu, revision):
    """Rows of all methods and batches: counts by placement, operators by runtime."""
    vit = imagepiece_jax.load(weights)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in [DENSE, *METHOD_NAMES]:
            reduction = method if method == DENSE else f"{method}:macs=0.5"
            reduced = vit.with_reduction(reduction, seed=0)
            for batch in BATCHES:
                file = pathlib.Path(folder, f"{method}-{batch}.onnx")
                model = build_onnx_model(reduced, batch_size=batch)
                write_onnx(file, model)
                row = {"revision": revision, "method": method, "batch": batch}
                row["operators"] = _sorted_counts(
                    node.op_type for node in model.graph.node
                )
                row["leaving"] = {}
                for runtime in PUBLISHED:
                    leaving = elsewhere(model, runtime)
                    operators = [operator for operator, _ in leaving.elements()]
                    row["leaving"][runtime] = _sorted_counts(operators)
                rows[str(file)] = row
        command = [webgpu, ROOT / "tools" / "webgpu_placement.py", "--json", *rows]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode not in (0, 1):
            raise RunError(ended.stderr.strip().splitlines()[-1])
    for line in ended.stdout.splitlines():
        placed = json.loads(line)
        row = rows[placed["file"]]
        row |= {name: placed[name] for name in ("counts", "difference", "spread")}
    return [*rows.values()]


def _sorted_counts(operators):
    return dict(sorted(collections.Counter(operators).items()))


def section(rows):
    """The page's section about the first and the last revision of these rows."""
    revisions = [*dict.fromkeys(row["revision"] for row in rows)]
    before, now = revisions[0], revisions[-1]
    found = {(row["revision"], row["method"], row["batch"]): row for row in rows}
    methods = [name for name in (DENSE, *METHOD_NAMES) if (now, name, 1) in found]
    of_webgpu = []
    of_others = []
    of_operators = []
    for method in methods:
        both = [found[now, method, batch] for batch in BATCHES]
        earlier = [found.get((before, method, batch)) for batch in BATCHES]
        shares = [row["difference"] / row["spread"] for row in both]
        cells = [*map(_counts, earlier), *map(_counts, both), f"{max(shares):.0e}"]
        of_webgpu.append([method, *cells])
        nodes = [sum(row["operators"].values()) for row in both]
        cells = [_both(nodes)]
        for runtime in PUBLISHED:
            cells.append(_both([sum(row["leaving"][runtime].values()) for row in both]))
        of_others.append([method, *cells])
        of_operators.append([method, *_operators(both[0])])
    batches = [f"batch {name}" for name in BATCHES.values()]
    head = ["method", *(f"before, {name}" for name in batches)]
    head += [*(f"now, {name}" for name in batches), "difference"]
    parts = [
        TITLE,
        INTRO.format(before=before, drawn=", ".join(DRAWN)),
        markdown_table(head, of_webgpu),
        OTHERS,
        markdown_table(["method", "nodes", *PUBLISHED], of_others),
        OPERATORS,
        markdown_table(
            ["method", ML_PROGRAM, f"{NETWORK}, more", "TensorRT", "XNNPACK runs"],
            of_operators,
        ),
        INT8,
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _counts(row):
    if row is None:
        return None
    return " / ".join(str(row["counts"][name]) for name in ("WebGPU", "CPU", "copies"))


def _both(numbers):
    first, second = numbers
    return str(first) if first == second else f"{first} ({second})"


def _operators(row):
    """Cells: what leaves CoreML's two formats and TensorRT, and what XNNPACK runs."""
    leaving = row["leaving"]
    program = leaving[ML_PROGRAM]
    network = {
        name: count for name, count in leaving[NETWORK].items() if name not in program
    }
    runs = {}
    for name, count in row["operators"].items():
        rest = count - leaving["XNNPACK"].get(name, 0)
        if rest:
            runs[name] = rest
    return [*map(_named, (program, network, leaving["TensorRT"], runs))]


def _named(counts):
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


if __name__ == "__main__":
    cli.run_command(main, compiles=False)
