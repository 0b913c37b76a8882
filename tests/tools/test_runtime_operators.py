"""Files stay on WebGPU, by its operators and in onnxruntime.

onnxruntime's tests need IMAGEPIECE_WEBGPU_PYTHON, a Python with onnxruntime-webgpu and
without onnxruntime (.venv-webgpu/bin/python of `make .venv-webgpu/installed`), and a
Vulkan driver, which VK_ICD_FILENAMES may name.
"""

import itertools
import json
import os
import subprocess

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.exporters import onnx_format
from imagepiece_jax.models import program as programs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.reduction.methods import METHODS
from tests.exporters import test_tower
from tests.helpers import onnx_runs, small_architectures, tiny_vit
from tests.helpers.rounding import UNIT
from tests.helpers.small_architectures import MEANS, MERGED, narrow_model, short_model
from tests.helpers.small_photographs import draw
from tests.helpers.small_runs import ROOT
from tests.models.test_vit_families import FAMILIES
from tools import runtime_operators
from tools.runtime_operators import count_leaving_nodes

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

NAMES = sorted(METHODS.keys() - {"random"})
PYTHON = os.environ.get("IMAGEPIECE_WEBGPU_PYTHON")
needs_webgpu = pytest.mark.skipif(
    not PYTHON,
    reason="IMAGEPIECE_WEBGPU_PYTHON names no Python with onnxruntime-webgpu",
)


def model_graph(model, dtype="float32", batch_size=None):
    typed = model.with_execution(dtype=np.dtype(dtype))
    vit = Pretrained(typed, tiny_vit.variables(model))
    return onnx_runs.build_onnx(vit, batch_size=batch_size)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """{name: graph of float32 or float16}."""
    graphs = {f"{name}-float32": model_graph(short_model(name)) for name in NAMES}
    for name in ("imagepiece", "mctf", "peaks", "token_learner", "tome"):
        graphs[f"{name}-float16"] = model_graph(short_model(name), "float16", 1)
    for make, layout, *_ in test_tower.CASES:
        folder = tmp_path_factory.mktemp("layouts")
        file = imagepiece_jax.export(make("tome:r=4"), folder, layout=layout)
        graphs[folder.name] = onnx.load(file)
    archs = FAMILIES | small_architectures.ARCHITECTURES
    for name in small_architectures.covering_architectures(archs):
        graphs[name] = model_graph(narrow_model(name, "tome:r=2:inflection=-1.0", 2))
    rotary = small_architectures.ROTARY.values()
    for name, reduction in itertools.product(rotary, (MERGED, MEANS)):
        title = f"{name}-{reduction.partition(':')[0]}"
        graphs[title] = model_graph(narrow_model(name, reduction, 3))
    fused = tiny_vit.with_fields(tiny_vit.FUSED, blocks=(0,))
    for reduction in (fused, "tome:r=4", MEANS, "mctf:r=3"):
        vit = tiny_vit.pretrained(reduction, depth=2)
        for output, batch_size in (("features", 1), ("patches", None)):
            graph = onnx_runs.build_onnx(vit, output, batch_size=batch_size)
            graphs[f"{output}-{reduction.partition(':')[0]}"] = graph
    return graphs


def test_every_graph_has_webgpus_operators(graphs):
    leaving = {name: count_leaving_nodes(graph) for name, graph in graphs.items()}
    assert not {name: dict(nodes) for name, nodes in leaving.items() if nodes}
    assert len(graphs) > len(NAMES) + len(test_tower.CASES) + 20


def test_only_quantizations_of_int8_leave(tmp_path):
    """onnxruntime's WebGPU has no QuantizeLinear, even for a dense model."""
    model = short_model("peaks")
    vit = Pretrained(model, tiny_vit.variables(model))
    file = imagepiece_jax.export(vit, tmp_path / "m.onnx")
    graph = onnx_format.quantize_graph(programs.open_program(file), draw(1))
    assert {kind for kind, _ in count_leaving_nodes(graph)} == {"QuantizeLinear"}


def test_only_readers_of_pixels_leave():
    vit = tiny_vit.pretrained("tome:r=4", depth=2)
    graph = onnx_runs.build_onnx(vit, batch_size=1, takes_pixels=True)
    assert count_leaving_nodes(graph) == {("Cast", "u"): 1}


@pytest.mark.parametrize(
    "kind, operands, options, leaving",
    [
        ("Add", ["counts", "counts"], {}, ("Add", "ii")),
        ("Transpose", ["flags"], {"perm": [1, 0]}, ("Transpose", "b")),
        ("Max", ["numbers", "numbers"], {}, ("Max", "ff")),
        ("Or", ["flags", "flags"], {}, ("Or", "bb")),
        ("Cast", ["numbers"], {"to": 7}, ("Cast", "f")),
        ("ArgMax", ["numbers"], {"axis": 1}, ("ArgMax", "f")),
        ("Gather", ["numbers", "counts"], {}, ("Gather", "fi")),  # computed indices
        ("Where", ["flags", "flags", "flags"], {}, ("Where", "bbb")),
        ("Reshape", ["numbers", "sides"], {}, None),
        ("Gather", ["numbers", "sides"], {}, None),
        ("Where", ["flags", "numbers", "numbers"], {}, None),
        ("Equal", ["numbers", "numbers"], {}, None),
    ],
)
def test_leaving_nodes_are_found(kind, operands, options, leaving):
    """Single nodes, by onnxruntime-webgpu 1.27's placement."""
    types = {"numbers": 1, "counts": 7, "flags": 9}
    make_input = onnx.helper.make_tensor_value_info
    inputs = [make_input(name, dtype, [1, 1]) for name, dtype in types.items()]
    node = onnx.helper.make_node(kind, operands, ["out"], **options)
    sides = onnx.numpy_helper.from_array(np.zeros(2, np.int64), "sides")
    output = onnx.helper.make_empty_tensor_value_info("out")
    graph = onnx.helper.make_graph([node], "hand", inputs, [output], [sides])
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset])
    expected = {} if leaving is None else {leaving: 1}
    assert count_leaving_nodes(model) == expected


# As in tests/helpers/onnx_runs.py: sums in another order, and sums of float16.
FLOAT32 = 256 * UNIT
FLOAT16 = 0.02


@needs_webgpu
@pytest.mark.slow
def test_onnxruntime_runs_every_graph_on_webgpu(graphs, tmp_path):
    files = []
    operators = set()
    for name, graph in graphs.items():
        files.append(tmp_path / f"{name}.onnx")
        onnx.save(graph, files[-1])
        operators |= {node.op_type for node in graph.graph.node}
    command = [PYTHON, ROOT / "tools" / "webgpu_placement.py", *files]
    ended = subprocess.run(command, capture_output=True, text=True)
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [row["file"] for row in rows] == [str(file) for file in files], ended.stderr
    leaving = []
    for name, row in zip(graphs, rows, strict=True):
        has_left = row["failure"] or row["elsewhere"] or not row["counts"]["WebGPU"]
        share = FLOAT16 if name.endswith("float16") else FLOAT32
        if has_left or not row["difference"] <= share * row["spread"]:
            leaving.append(row)
    assert not leaving
    # Every operator of the table ran, in a graph or in its own node.
    table = {*runtime_operators.NUMBERS, *runtime_operators.TYPES}
    assert table <= operators | {"Ceil", "DequantizeLinear", "ReduceLogSumExp"}
