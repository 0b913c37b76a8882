"""ONNX graphs in onnxruntime and OpenVINO, beside JAX."""

import jax
import numpy as np
import pytest

from imagepiece_jax.common import nodes
from imagepiece_jax.exporters import onnx_format, onnx_graph
from imagepiece_jax.exporters.onnx_primitives import add_equations
from imagepiece_jax.exporters.program_interface import ProgramInterface
from imagepiece_jax.models.pretrained import Pretrained
from tests.helpers import tiny_vit
from tests.helpers.rounding import assert_close

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")
FORBIDDEN_OPERATORS = {"Loop", "If", "Scan", "NonZero", "Unique", "Compress", "Scatter"}
FORBIDDEN_OPERATORS |= {"ScatterElements", "ScatterND", "SequenceAt", "Range", "Einsum"}
BLOCKS = {"prune_blocks": (0,), "merge_blocks": (1,)}
IMAGEPIECE = tiny_vit.with_fields(tiny_vit.IMAGEPIECE, **BLOCKS)
EVIT = tiny_vit.with_fields(tiny_vit.EVIT, blocks=(0,))


def build_onnx(vit, output="logits", **options):
    """The ONNX graph of a model; `options` are fields of ProgramInterface."""
    return onnx_format.build_graph(ProgramInterface(vit, output, **options))


def open_session(model):
    """A session of onnxruntime for a graph or a file, with usual optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model, options, providers=providers)


def run_onnxruntime(model, *batches):
    session = open_session(model)
    return [session.run(None, {"images": np.asarray(images)})[0] for images in batches]


def run_openvino(model, *batches):
    """Logits of each batch by OpenVINO on a CPU, in float32 throughout."""
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model), "CPU", hints)
    return [compiled([np.asarray(images)])[0] for images in batches]


RUNTIMES = (run_onnxruntime, run_openvino)


def check_graph(model, side=tiny_vit.SIDE, batch_size=None, runtimes=RUNTIMES):
    """Return the graph of `model` after comparing its logits with JAX's."""
    variables = tiny_vit.variables(model)
    images = tiny_vit.images(2, side=side)
    expected = tiny_vit.logits(model)(variables, images)
    vit = Pretrained(model, variables)
    graph = build_onnx(vit, batch_size=batch_size)
    onnx.checker.check_model(graph, full_check=True)
    assert not FORBIDDEN_OPERATORS & {node.op_type for node in graph.graph.node}
    counts = (2, 1) if batch_size is None else (batch_size,)
    for runtime in runtimes:
        logits = runtime(graph, *(images[:count] for count in counts))
        for count, rows in zip(counts, logits, strict=True):
            assert_close(rows, expected[:count], units=256)
    return graph


def random_outputs(fn, *shapes):
    """Outputs of `fn` for random arrays: by JAX, onnxruntime and OpenVINO."""
    rng = np.random.default_rng(0)
    return function_outputs(fn, *[np.float32(rng.normal(size=s)) for s in shapes])


def function_outputs(fn, *arrays):
    """Outputs of `fn` for arrays. The first array is the graph's input."""
    entry = onnx_graph.Value(arrays[0].shape, arrays[0].dtype, "images")
    graph = onnx_graph.Graph(entry)
    constants = map(onnx_graph.Value.constant, arrays[1:])
    with nodes.marked_functions():
        # Another function: JAX would compile the marked trace below.
        jaxpr = jax.make_jaxpr(lambda *args: fn(*args))(*arrays)
    (out,) = add_equations(graph, jaxpr, [entry, *constants])
    expected = tiny_vit.compiled(fn)(*arrays)
    model = graph.make_model({"logits": graph.expand(out, expected.shape)})
    results = run_onnxruntime(model, arrays[0]) + run_openvino(model, arrays[0])
    return expected, *results
