import collections

import jax
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.exporters.program_interface import ProgramInterface
from imagepiece_jax.inference.features import features
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.reduction.methods import METHODS
from tests.helpers import tiny_vit
from tests.helpers.onnx_runs import (
    EVIT,
    FORBIDDEN_OPERATORS,
    IMAGEPIECE,
    build_onnx,
    check_graph,
    open_session,
    run_onnxruntime,
)
from tests.helpers.refused_calls import refused
from tests.helpers.small_architectures import (
    ARCHITECTURES,
    MEANS,
    MERGED,
    ROTARY,
    covering_architectures,
    narrow_model,
    short_model,
)
from tests.models.test_vit_families import FAMILIES

onnx = pytest.importorskip("onnx")


@pytest.mark.parametrize("family", ["siglip", "gap"])
@pytest.mark.parametrize("name", ["attended", "diffrate", "imagepiece", "peaks"])
def test_models_without_a_prefix_and_with_registers(name, family):
    check_graph(short_model(name, FAMILIES[family]))


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"random"}))
def test_every_method_has_jaxs_logits(name):
    check_graph(short_model(name))


@pytest.mark.parametrize("name, most", [("tome", 31), ("attended", 29), ("peaks", 38)])
def test_a_reduction_adds_few_nodes(name, most):
    """A CPU takes microseconds to start a node, even for small arrays."""
    counts = []
    for model in (short_model("none"), short_model(name)):
        graph = build_onnx(Pretrained(model, tiny_vit.variables(model)))
        counts.append(len(graph.graph.node))
    assert counts[1] - counts[0] <= 2 * most


# Blocks 0 and 1 prune without merging.
PRUNING = "diffrate:prune=(24,20,15):merge=(24,17,15)"


@pytest.mark.parametrize(
    "reduction, options, batch_size",
    [
        (tiny_vit.with_fields(EVIT, score="shift"), {}, None),
        (tiny_vit.with_fields(EVIT, score="class_and_mean"), {}, None),
        ("peaks:blocks=(0,1)", {"arch": FAMILIES["gap"]}, 1),  # no class token
        (EVIT, {"image_size": (12, 28)}, None),
        (PRUNING, {"depth": 3}, 2),
    ],
)
def test_other_options_have_jaxs_logits(reduction, options, batch_size):
    model = tiny_vit.model(reduction, **{"depth": 2} | options)
    check_graph(model, options.get("image_size", tiny_vit.SIDE), batch_size)


# Block 0 attends to all tokens, block 1 to merged tokens.
ARCHITECTURE_CASES = [
    (name, "tome:r=2:inflection=-1.0", 2)
    for name in covering_architectures(FAMILIES | ARCHITECTURES)
]
# The last block attends to merged tokens after a prune, or to means.
for planes, reduction, depth in (("halves", MERGED, 3), ("neighbors", MEANS, 2)):
    names = sorted(ROTARY.values())
    name = next(n for n in names if ARCHITECTURES[n].rotary.planes == planes)
    ARCHITECTURE_CASES.append((name, reduction, depth))


@pytest.mark.parametrize("name, reduction, depth", ARCHITECTURE_CASES)
def test_architectures_have_jaxs_logits(name, reduction, depth):
    check_graph(narrow_model(name, reduction, depth), runtimes=[run_onnxruntime])


def test_the_conv_stem():
    graph = check_graph(tiny_vit.model(IMAGEPIECE, stem="conv", depth=2))
    order = [node.op_type for node in graph.graph.node]
    first = order.index("Conv")
    last = len(order) - order[::-1].index("Conv")
    assert order.count("Conv") > 2
    assert "Transpose" not in order[first:last]


def test_a_fixed_batch_has_fixed_shapes_and_whole_nodes():
    """In half precision norms and GELUs must be single nodes."""
    graph = check_graph(tiny_vit.model(IMAGEPIECE, depth=2), batch_size=2)
    sides = graph.graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_value for side in sides] == [2, tiny_vit.SIDE, tiny_vit.SIDE, 3]
    kinds = collections.Counter(node.op_type for node in graph.graph.node)
    assert kinds["LayerNormalization"] == 2 * 2 + 1
    assert kinds["Gelu"] == 2
    assert kinds["Softmax"] >= 2
    assert not {"Erf", "Exp", "Shape", "Expand"} & kinds.keys()


def test_an_open_batch_and_weights_are_named():
    """Weights are stored once. Opset 20 came with IR 9, by ONNX's table of versions."""
    vit = tiny_vit.pretrained(EVIT, depth=2)
    model = build_onnx(vit)
    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert (model.opset_import[0].version, model.ir_version) == (20, 9)
    names = [constant.name for constant in model.graph.initializer]
    assert "blocks_0.attn.q.kernel" in names
    assert len(set(names)) == len(names)
    weights = 4 * tiny_vit.count(vit.variables)
    assert weights < model.ByteSize() < 1.2 * weights + 60_000


def build_half(vit):
    """A checked graph of the float16 model."""
    half = vit.model.with_execution(dtype=np.dtype(np.float16))
    graph = build_onnx(Pretrained(half, vit.variables))
    onnx.checker.check_model(graph, full_check=True)
    return graph


@pytest.mark.parametrize("name", covering_architectures(FAMILIES | ARCHITECTURES))
def test_float16_graphs_of_all_architectures_have_sound_types(name):
    model = narrow_model(name, depth=1)
    build_half(Pretrained(model, tiny_vit.variables(model)))


DECIDING = ("Greater", "LayerNormalization", "ReduceMax", "Softmax")


@pytest.mark.parametrize(
    "name", ["dynamicvit", "evit", "imagepiece", "mctf", "peaks", "tome"]
)
def test_norms_softmax_and_scores_are_float32_in_float16(name):
    """Layer weights are float16, and logits equal JAX's up to rounding."""
    vit = tiny_vit.pretrained(tiny_vit.small_reduction(name), depth=3)
    graph = build_half(vit)
    inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True).graph
    types = {value.name: value.data_type for value in inferred.initializer}
    assert types["blocks_0.attn.q.kernel"] == onnx.TensorProto.FLOAT16
    assert types["head.kernel"] == onnx.TensorProto.FLOAT
    for value in inferred.value_info:
        types[value.name] = value.type.tensor_type.elem_type
    deciding = [node for node in graph.graph.node if node.op_type in DECIDING]
    assert {types[node.input[0]] for node in deciding} == {onnx.TensorProto.FLOAT}
    assert {"LayerNormalization", "Softmax"} < {node.op_type for node in deciding}
    images = np.asarray(tiny_vit.images(2))
    logits, logits_of_one = run_onnxruntime(graph, images, images[:1])
    assert logits.dtype == np.float32
    expected = tiny_vit.logits(vit.model)(vit.variables, images)
    assert 0 < np.abs(logits - expected).max() < 0.02 * np.ptp(expected)
    np.testing.assert_allclose(logits_of_one, logits[:1], atol=0.01 * np.ptp(expected))


@pytest.mark.parametrize(
    "reduction, options",
    [
        ("none", {"batch_size": 2}),
        (tiny_vit.with_fields(EVIT, blocks=(0, 1)), {}),
        ("tome:r=4", {"output": "patches"}),
        ("tome:r=4", {"arch": FAMILIES["siglip"]}),  # no prefix
        ("token_learner:num_tokens=5:block=0", {}),
    ],
)
def test_features_equal_jaxs(reduction, options):
    options = {"output": "features"} | options
    arch = options.pop("arch", None)
    vit = tiny_vit.pretrained(reduction, depth=2, arch=arch)
    images = np.asarray(tiny_vit.images(2))
    graph = build_onnx(vit, **options)
    onnx.checker.check_model(graph, full_check=True)
    assert not FORBIDDEN_OPERATORS & {node.op_type for node in graph.graph.node}
    session = open_session(graph)
    names = [value.name for value in session.get_outputs()]
    arrays = dict(zip(names, session.run(None, {"images": images}), strict=True))
    expected_names = ["patches"]
    if options["output"] == "features":
        expected_names = ["pooled", "patches", *([] if arch else ["prefix"]), "dropped"]
    assert names == expected_names
    maps = features(vit, images)
    for name, values in arrays.items():
        expected = np.asarray(getattr(maps, name))
        assert values.dtype.kind == expected.dtype.kind
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    if reduction.startswith("evit"):
        assert 0 < arrays["dropped"].mean() < 1


def test_a_step_that_keeps_all_tokens_draws_nothing(tmp_path):
    vit = tiny_vit.pretrained("random:blocks=(1,):keep_rate=1.0", depth=2)
    assert imagepiece_jax.export(vit, tmp_path / "m.onnx").exists()


def test_constants_that_jax_draws_have_no_graph(monkeypatch):
    make_forward = ProgramInterface.make_forward_function

    def make_noisy_forward(self, model):
        forward = make_forward(self, model)
        key = jax.random.key(0)
        return lambda *args: [x + jax.random.normal(key) for x in forward(*args)]

    monkeypatch.setattr(ProgramInterface, "make_forward_function", make_noisy_forward)
    with refused("reduction", "jax.random", "NumPy"):
        build_onnx(tiny_vit.pretrained(depth=1))
