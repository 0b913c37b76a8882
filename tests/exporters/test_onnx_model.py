"""ONNX graphs: the logits of JAX in onnxruntime, by operators of every runtime."""

import collections
import dataclasses
import functools
import inspect
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.common import nodes
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.exporters import onnx_graph, onnx_ops
from imagepiece_jax.exporters import onnx_model as onnx_model_file
from imagepiece_jax.exporters.onnx_model import (
    build_onnx_model,
    remove_weights,
    wrap_graph,
    write_onnx,
)
from imagepiece_jax.exporters.onnx_primitives import add_equations
from imagepiece_jax.exporters.program_outputs import ProgramOutputs
from imagepiece_jax.inference.features import features
from imagepiece_jax.kernels import (
    attention,
    attention_scores,
    gelu,
    joining,
    merging,
    norm,
    ranking,
    similarity,
)
from imagepiece_jax.kernels.joining import distance_to_earlier, find_partners, join_kept
from imagepiece_jax.kernels.merging import merge_features
from imagepiece_jax.kernels.ranking import (
    gather_rows,
    index_kept_tokens,
    invert_order,
    pick_by_rank,
    rank_tokens,
)
from imagepiece_jax.kernels.similarity import cosine_similarity
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.reduction.methods import METHODS
from tests.helpers import tiny_vit
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close
from tests.models.test_vit_families import FAMILIES
from tests.reduction.test_moves import make

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")

FORBIDDEN = {"Loop", "If", "Scan", "NonZero", "Unique", "Compress", "Scatter"}
FORBIDDEN |= {"ScatterElements", "ScatterND", "SequenceAt", "Range", "Einsum"}


# Fields of two blocks in place of a method's own of three.
SHORT = {
    "blocks": (0, 1),
    "counts": (23, 19),
    "prune": (22, 17),
    "merge": (19, 14),
    "block": 0,
    "prune_blocks": (0,),  # after its attention: in the last block logits would be
    "merge_blocks": (1,),  # the same without
}
IMAGEPIECE = tiny_vit.changed(tiny_vit.IMAGEPIECE, prune_blocks=(0,), merge_blocks=(1,))
EVIT = tiny_vit.changed(tiny_vit.EVIT, blocks=(0,))


def session_of(graph):
    """onnxruntime's; its own optimizations are on, as usual."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(graph, *batches):
    """Logits of each batch by onnxruntime."""
    session = session_of(graph)
    return [session.run(None, {"images": np.asarray(images)})[0] for images in batches]


def run_openvino(graph, *batches):
    """Logits of each batch by OpenVINO on a CPU, in float32 throughout."""
    core = openvino.Core()
    read = core.read_model(graph.SerializeToString())
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [compiled([np.asarray(images)])[0] for images in batches]


@functools.cache
def by_jax(model, side):
    """(variables, images, logits) of a model: two images."""
    variables = tiny_vit.variables(model)
    images = tiny_vit.images(2, side=side)
    return variables, images, logits_of(model, variables, images)


def logits_of(model, variables, images):
    """JAX's; what nobody reads of Outputs need not be compiled."""
    run = tiny_vit.jit(lambda *args: model.apply(*args).logits)
    return run(variables, images)


def check(
    model,
    side=tiny_vit.SIDE,
    batch_size=None,
    gathers=False,
    runtimes=(run, run_openvino),
):
    """The graph of `model`, which gives the logits of JAX for two images and one."""
    variables, images, want = by_jax(model, side)
    vit = Pretrained(model, variables)
    graph = build_onnx_model(vit, batch_size=batch_size, gathers=gathers)
    onnx.checker.check_model(graph, full_check=True)
    assert not FORBIDDEN & {node.op_type for node in graph.graph.node}
    assert not with_constants_per_row(graph.graph)
    counts = (2, 1) if batch_size is None else (batch_size,)
    for runtime in runtimes:
        logits = runtime(graph, *(images[:count] for count in counts))
        for count, each in zip(counts, logits, strict=True):
            assert_close(each, want[:count], units=256)
    return graph


def with_constants_per_row(graph):
    """Nodes that add a constant per row to sums of rows, as OpenVINO does wrongly."""
    made = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    for node in graph.node:
        kinds = [getattr(made.get(name), "op_type", "") for name in node.input]
        sides = [constants[name].dims for name in node.input if name in constants]
        per_row = [each for each in sides if np.prod(each) > 1 and each[-1] == 1]
        is_sum = any(kind.startswith("Reduce") for kind in kinds)
        if node.op_type in ("Add", "Div", "Mul", "Sub") and is_sum and per_row:
            found.append(node.name)
    return found


def short(name, arch=None):
    """A model with two or three blocks, reduced in two of them."""
    reduction = tiny_vit.small(name)
    if name in ("mctf", "token_pooling"):  # which begin at the second block
        return tiny_vit.model(reduction, depth=3, arch=arch)
    typed = [field for field in SHORT if f":{field}=" in reduction]
    reduction = tiny_vit.changed(reduction, **{field: SHORT[field] for field in typed})
    return tiny_vit.model(reduction, depth=2, arch=arch)


@pytest.mark.parametrize("family", ["siglip", "gap"])
@pytest.mark.parametrize("name", ["attended", "diffrate", "imagepiece", "peaks"])
def test_models_without_a_prefix_and_with_registers(name, family):
    check(short(name, FAMILIES[family]))


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"random"}))
def test_every_method_has_the_logits_of_jax(name, gathers):
    check(short(name), gathers=gathers)


@pytest.mark.parametrize("name, most", [("tome", 47), ("attended", 43), ("peaks", 44)])
def test_a_reduction_adds_few_nodes(name, most):
    """A CPU takes microseconds to start a node, however small its arrays are."""
    counts = []
    for model in (short("none"), short(name)):
        graph = build_onnx_model(Pretrained(model, tiny_vit.variables(model)))
        counts.append(len(graph.graph.node))
    dense, reduced = counts
    assert reduced - dense <= 2 * most


# In the first two blocks it prunes and does not merge.
PRUNING = "diffrate:prune=(24,20,15):merge=(24,17,15)"


@pytest.mark.parametrize(
    "reduction, options, batch_size",
    [
        (tiny_vit.changed(EVIT, score="shift"), {}, None),
        (tiny_vit.changed(EVIT, score="class_and_mean"), {}, None),
        ("peaks:blocks=(0,1)", {"arch": FAMILIES["gap"]}, 1),  # no class token
        (EVIT, {"image_size": (12, 28)}, None),
        (PRUNING, {"depth": 3}, 2),
    ],
)
def test_other_forms_have_the_logits_of_jax(reduction, options, batch_size):
    model = tiny_vit.model(reduction, **{"depth": 2} | options)
    check(model, options.get("image_size", tiny_vit.SIDE), batch_size)


# One public model of each architecture, and of each form of rotary positions.
PUBLIC = {str(row["arch"]): name for name, row in registry.public_models().items()}
ARCHITECTURES = {
    name: Architecture(**registry.public_models()[name]["arch"])
    for name in PUBLIC.values()
}
ROTARY = {str(arch.rotary): name for name, arch in ARCHITECTURES.items() if arch.rotary}


def pairs(arch):
    """Every two fields with their values; registers and rotary are none or some."""
    fields = dataclasses.asdict(arch)
    fields["registers"] = arch.registers > 0
    fields["rotary"] = arch.rotary is not None
    values = [(name, str(value)) for name, value in fields.items()]
    return set(itertools.combinations(values, 2))


def with_all_pairs(archs):
    """Names of a few architectures that have every pair of `archs`, {name: arch}."""
    of_each = {name: pairs(arch) for name, arch in sorted(archs.items())}
    missing = set().union(*of_each.values())
    few = []
    while missing:
        few.append(max(of_each, key=lambda name: len(of_each[name] & missing)))
        missing -= of_each[few[-1]]
    for name in few[:]:  # which may have no pair that others, chosen later, do not have
        others = [each for each in few if each != name]
        covered = set().union(*(of_each[each] for each in others))
        if of_each[name] <= covered:
            few = others
    return few


def small(name, reduction=None, depth=2):
    """A tiny model of an architecture by its name; a public one's grid is another."""
    arch = (FAMILIES | ARCHITECTURES)[name]
    return tiny_vit.model(reduction, arch=arch, embed_dim=24, depth=depth)


@pytest.mark.parametrize("name", with_all_pairs(FAMILIES | ARCHITECTURES))
def test_pairs_of_fields_of_all_architectures_have_the_logits_of_jax(name):
    """A first block that attends to all tokens, a second one to merged tokens."""
    check(small(name, "tome:r=2:inflection=-1.0"), runtimes=[run])


MERGED = tiny_vit.changed(tiny_vit.IMAGEPIECE, merge_blocks=(0,), prune_blocks=(1,))
MEANS = "token_learner:num_tokens=8:block=0"


@pytest.mark.parametrize(
    "planes, reduction, depth", [("halves", MERGED, 3), ("neighbors", MEANS, 2)]
)
def test_rotary_positions_of_merged_and_of_learned_tokens(planes, reduction, depth):
    """The last block attends to what a prune has left of merged tokens, or to means."""
    names = sorted(ROTARY.values())
    name = next(n for n in names if ARCHITECTURES[n].rotary.planes == planes)
    check(small(name, reduction, depth), runtimes=[run])


def test_the_conv_stem():
    graph = check(tiny_vit.model(IMAGEPIECE, stem="conv", depth=2))
    order = [node.op_type for node in graph.graph.node]
    first = order.index("Conv")
    last = len(order) - order[::-1].index("Conv")
    assert order.count("Conv") > 2
    assert "Transpose" not in order[first:last]


def test_the_format_is_the_oldest_that_has_the_operators():
    """Opset 20 came with IR 9 (the table of versions in ONNX's docs)."""
    model = build_onnx_model(tiny_vit.pretrained())
    assert (model.opset_import[0].version, model.ir_version) == (20, 9)


def test_a_fixed_batch_has_fixed_shapes_and_whole_nodes():
    """Norms and GELUs in half precision are sound only where they are one node."""
    graph = check(tiny_vit.model(IMAGEPIECE, depth=2), batch_size=2)
    sides = graph.graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_value for side in sides] == [2, tiny_vit.SIDE, tiny_vit.SIDE, 3]
    kinds = collections.Counter(node.op_type for node in graph.graph.node)
    assert kinds["LayerNormalization"] == 2 * 2 + 1
    assert kinds["Gelu"] == 2
    assert kinds["Softmax"] >= 2
    assert not {"Erf", "Exp", "Shape", "Expand"} & kinds.keys()


def test_an_open_batch_and_weights_are_named():
    """Weights are there once."""
    vit = tiny_vit.pretrained(EVIT, depth=2)
    model = build_onnx_model(vit)
    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["logits"]
    names = [constant.name for constant in model.graph.initializer]
    assert "blocks_0.attn.q.kernel" in names
    assert len(set(names)) == len(names)
    weights = 4 * tiny_vit.count(vit.variables)
    assert weights < model.ByteSize() < 1.2 * weights + 60_000


DECIDING = ("Greater", "LayerNormalization", "ReduceMax", "Softmax")


@pytest.mark.parametrize(
    "name", ["dynamicvit", "evit", "imagepiece", "mctf", "peaks", "tome"]
)
def test_norms_softmax_and_scores_are_float32_in_float16(name):
    """Weights of layers are float16; the logits are JAX's but for rounding."""
    vit = tiny_vit.pretrained(tiny_vit.small(name), depth=3)
    half = vit.model.with_execution(dtype=np.dtype(np.float16))
    graph = build_onnx_model(Pretrained(half, vit.variables))
    onnx.checker.check_model(graph, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True).graph
    kinds = {each.name: each.type.tensor_type.elem_type for each in inferred.value_info}
    kinds |= {each.name: each.data_type for each in inferred.initializer}
    deciding = [node for node in graph.graph.node if node.op_type in DECIDING]
    assert {kinds[node.input[0]] for node in deciding} == {onnx.TensorProto.FLOAT}
    assert {"LayerNormalization", "Softmax"} < {node.op_type for node in deciding}
    stored = {each.name: each.data_type for each in graph.graph.initializer}
    assert stored["blocks_0.attn.q.kernel"] == onnx.TensorProto.FLOAT16
    assert stored["head.kernel"] == onnx.TensorProto.FLOAT
    images = np.asarray(tiny_vit.images(2))
    logits, of_one = run(graph, images, images[:1])
    assert logits.dtype == np.float32
    want = logits_of(vit.model, vit.variables, images)
    assert 0 < np.abs(logits - want).max() < 0.02 * np.ptp(want)
    np.testing.assert_allclose(of_one, logits[:1], atol=0.01 * np.ptp(want))


@pytest.mark.parametrize("name", with_all_pairs(FAMILIES | ARCHITECTURES))
def test_float16_graphs_of_all_architectures_have_sound_types(name):
    model = small(name, depth=1)
    half = model.with_execution(dtype=np.dtype(np.float16))
    graph = build_onnx_model(Pretrained(half, tiny_vit.variables(model)))
    onnx.checker.check_model(graph, full_check=True)


def test_pixels_are_normalized_inside():
    vit = tiny_vit.pretrained(EVIT, depth=1)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), np.uint8)
    images = normalize(jnp.asarray(pixels), vit.model.config.mean, vit.model.config.std)
    want = logits_of(vit.model, vit.variables, images)
    (logits,) = run(build_onnx_model(vit, pixels=True), pixels)
    np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "reduction, options",
    [
        ("none", {"batch_size": 2}),
        (tiny_vit.changed(EVIT, blocks=(0, 1)), {}),
        ("tome:r=4", {"output": "patches"}),
        ("tome:r=4", {"arch": FAMILIES["siglip"]}),  # no prefix
        ("token_learner:num_tokens=5:block=0", {}),
    ],
)
def test_features_are_those_of_jax(reduction, options):
    options = {"output": "features"} | options
    arch = {}
    if "arch" in options:
        arch["arch"] = options.pop("arch")
    vit = tiny_vit.pretrained(reduction, depth=2, **arch)
    images = np.asarray(tiny_vit.images(2))
    output = options.pop("output")
    graph = build_onnx_model(vit, outputs=ProgramOutputs(vit, output), **options)
    onnx.checker.check_model(graph, full_check=True)
    assert not FORBIDDEN & {node.op_type for node in graph.graph.node}
    session = session_of(graph)
    names = [value.name for value in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"images": images}), strict=True))
    wanted = ["pooled", "patches", "prefix", "dropped"]
    if output == "patches":
        wanted = ["patches"]
    elif arch:
        wanted.remove("prefix")
    assert names == wanted
    computed = features(vit, images)
    for name, values in found.items():
        want = np.asarray(getattr(computed, name))
        assert values.dtype.kind == want.dtype.kind
        np.testing.assert_allclose(values, want, rtol=1e-4, atol=1e-5)
    if reduction.startswith("evit"):
        assert found["dropped"].any()
        assert not found["dropped"].all()


@pytest.fixture
def small_files(monkeypatch):
    """Files hold 20 kB, as if a tiny model were one of more than 2 GB."""
    monkeypatch.setattr(onnx_model_file, "MAX_PROTOBUF_BYTES", 20_000)


def answers(path, images):
    """Logits by both runtimes, from a file."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(
        str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return session.run(None, {"images": images})[0], compiled([images])[0]


def test_large_weights_are_in_one_file_beside_the_graph(small_files, tmp_path):
    path = tmp_path / "model.onnx"
    vit = tiny_vit.pretrained(EVIT, depth=2)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), np.uint8)
    (want,) = run(build_onnx_model(vit, pixels=True), pixels)
    data = write_onnx(path, build_onnx_model(vit, pixels=True))
    assert sorted(tmp_path.iterdir()) == [path, data]
    assert path.stat().st_size < 20_000 < data.stat().st_size
    onnx.checker.check_model(path, full_check=True)
    for logits in answers(path, pixels):
        np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-6)
    model = onnx.load(path, load_external_data=False)
    outside = [t for t in model.graph.initializer if t.external_data]
    places = [{e.key: e.value for e in tensor.external_data} for tensor in outside]
    assert {place["location"] for place in places} == {data.name}
    assert len(places) > 10


def test_a_graph_is_never_beside_weights_of_another(small_files, tmp_path, monkeypatch):
    """A kill between the two files leaves the old graph with its own."""
    path = tmp_path / "model.onnx"
    images = np.asarray(tiny_vit.images(1))
    old = tiny_vit.pretrained(EVIT, depth=1)
    new = tiny_vit.pretrained(EVIT, depth=2)
    first = write_onnx(path, build_onnx_model(old))
    want, _ = answers(path, images)
    replace = os.replace

    def killed(source, target):
        if target == path:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_onnx(path, build_onnx_model(new))
    np.testing.assert_array_equal(answers(path, images)[0], want)
    second = write_onnx(path, build_onnx_model(new))
    remove_weights(path, first.name, second)
    remove_weights(path, second.name, second)
    remove_weights(path, "model.onnx", second)
    assert sorted(tmp_path.iterdir()) == [path, second]
    assert not np.array_equal(answers(path, images)[0], want)


def test_equally_good_tokens_are_taken_in_the_order_of_jax():
    """All patches are alike: every score and every similarity is a tie."""
    for reduction in (EVIT, IMAGEPIECE, "tome:r=4", "peaks:blocks=(0,)"):
        vit = tiny_vit.pretrained(reduction, depth=2)
        vit.variables["params"]["pos_embed"][:] = 0
        images = np.ones((2, tiny_vit.SIDE, tiny_vit.SIDE, 3), np.float32)
        want = logits_of(vit.model, vit.variables, images)
        (logits,) = run(build_onnx_model(vit), images)
        np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-5)


def test_what_draws_has_no_graph():
    with refused("reduction", "it has no graph"):
        build_onnx_model(tiny_vit.pretrained("random:blocks=(1,)"))


def outputs(fn, *shapes, gathers=False):
    """Of `fn` of arrays of these shapes: by JAX, onnxruntime and OpenVINO."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    return outputs_of(fn, *arrays, gathers=gathers)


def outputs_of(fn, *arrays, gathers=False):
    """`outputs` of arrays; the first is the graph's input."""
    entry = onnx_graph.Value(arrays[0].shape, arrays[0].dtype, "images")
    graph = onnx_graph.Graph(entry, gathers)
    others = map(onnx_graph.Value.constant, arrays[1:])
    (out,) = add_equations(graph, jax.make_jaxpr(fn)(*arrays), [entry, *others])
    want = fn(*arrays)
    finished = graph.graph_proto({"logits": graph.expand(out, want.shape)})
    model = wrap_graph(finished)
    return want, *run(model, arrays[0]), *run_openvino(model, arrays[0])


def whole(x):
    """Integers of both signs, with repetitions."""
    return (4 * x).astype(jnp.int32)


@pytest.mark.parametrize(
    "fn, shapes",
    [
        (lambda x, y: (x.transpose(1, 0, 2) + y) * 2, [(3, 4, 5), (1, 1, 5)]),
        (lambda x, y: (x.T - y).T * x, [(3, 4), (4, 1)]),
        (lambda x: jnp.where(x.T > 0.5, x.T, 0.0).T, [(3, 4)]),
        (lambda x: x.transpose(1, 2, 0).transpose(1, 0, 2).sum(1), [(3, 4, 5)]),
        (lambda x: jnp.sum(x > 0, axis=1).astype(float), [(3, 4, 5)]),
        (lambda x: jnp.concatenate(jnp.split(x, [1, 3], 2)[::-1], 2), [(3, 4, 5)]),
        (lambda x: x[:, ::-1, ::-1] - x, [(3, 4, 5)]),
        (lambda x: jnp.maximum(x > 1, x.transpose(0, 2, 1) < 0), [(3, 4, 4)]),
        (lambda x: (1 * x.mean(1, keepdims=True) + 0) ** 1.0 / 1, [(3, 4, 5)]),
        (lambda x: x.sum(1) / 5, [(3, 4, 5)]),  # of four
        (lambda x: jnp.concatenate([x, 2 * x], 1)[:, 4:8], [(3, 4, 5)]),  # a part
        (lambda x: jnp.concatenate([x, 2 * x], 1)[:, 4:7], [(3, 4, 5)]),
        (lambda x: jnp.concatenate([x, 2 * x], 2)[:, 1:3], [(3, 4, 5)]),
        (lambda x: x[1:, 1:, ::2][:, :, 1:][:, ::2], [(3, 4, 5)]),
        (lambda x: jnp.broadcast_to(x[:, :1, None], (3, 2, 4, 5)), [(3, 4, 5)]),
        (lambda x: whole(x), [(3, 40)]),
        (lambda x: jax.lax.div(whole(x), jnp.int32(3)), [(3, 40)]),
        (lambda x: jax.lax.rem(whole(x), jnp.int32(3)), [(3, 40)]),
        (lambda x: jax.lax.div(whole(x), jnp.int32(-3)), [(3, 40)]),
        (lambda x: jax.lax.rem(x, 0.3), [(3, 40)]),
        (lambda x: whole(x) // 3 + 4 * (whole(x) % 3), [(3, 40)]),
        (lambda x: jnp.sign(x) + jnp.maximum(x, -2 * x), [(3, 40)]),
        (lambda x: jnp.minimum(jnp.maximum(x, -0.5), 0.25), [(3, 40)]),
        (lambda x: jnp.where(x > 0, x > 1, x < -1), [(3, 40)]),
        (lambda x: jnp.argmax(whole(x), axis=1) - jnp.argmin(x, axis=1), [(3, 40)]),
    ],
)
def test_rewritten_nodes_give_the_same(fn, shapes):
    want, *others = outputs(lambda *x: fn(*x).astype(jnp.float32), *shapes)
    for each in others:
        np.testing.assert_allclose(each, want, rtol=1e-5, atol=1e-6)


MARKED = nodes.onnx_op(lambda: None).__code__
ROOMS = (attention, attention_scores, gelu, joining, merging, norm, ranking, similarity)


def onnx_translations():
    """{name of a marked function: function that adds its nodes}."""
    translations = {}
    for name, fn in vars(onnx_ops).items():
        if name.startswith("add_"):
            translations[name.removeprefix("add_")] = fn
    return translations


@pytest.mark.parametrize("room", ROOMS)
def test_marked_functions_have_onnx_operators_of_their_name_and_arguments(room):
    """The graph argument comes first."""
    translations = onnx_translations()
    marked = []
    for name, fn in vars(room).items():
        if getattr(fn, "__code__", None) is MARKED:
            marked.append(name)
            expected = inspect.signature(fn).parameters
            graph, *parameters = inspect.signature(translations[name]).parameters
            assert parameters == [*expected]
    assert marked


def test_onnx_operators_are_of_marked_functions():
    """A function that nobody marks would never be called."""
    functions = collections.ChainMap(*map(vars, ROOMS))
    for name in onnx_translations():
        assert functions[name].__code__ is MARKED


NUMBERS = np.arange(11, 23, dtype=np.int32).reshape(2, 6)


def partners(x):
    """A constant's entry for every value."""
    return find_partners(x[:, :, None] * x[:, None], NUMBERS[:1])[1]


def by_rank(x, other):
    """Values in the order of ranks, taken at the tokens sorted by `other`."""
    return gather_rows(gather_rows(x, rank_tokens(x)), sorted_by(other))


def sorted_by(x):
    return invert_order(rank_tokens(x), x.shape[1])


def rows_after_first(x, tokens):
    """Rows of tokens, counted from the second row."""
    rows = jnp.stack([x, 2 * x, -x], 2)
    return gather_rows(jnp.concatenate([rows, 3 * rows], 1)[:, 1:], tokens)


def both(numbers):
    return jnp.broadcast_to(jnp.asarray(numbers, jnp.float32), (2, len(numbers)))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: pick_by_rank(rank_tokens(x), 3, NUMBERS)[0],
        lambda x: pick_by_rank(index_kept_tokens(x > 0), 6, NUMBERS)[
            0
        ],  # fewer are kept
        lambda x: pick_by_rank(index_kept_tokens(x > 0), 6, both(np.arange(6) + 1.0))[
            0
        ],
        lambda x: invert_order(rank_tokens(x), np.array([1, 3])),
        lambda x: invert_order(rank_tokens(x), np.array([-1, 9, 2])),  # two are missing
        lambda x: invert_order(index_kept_tokens(x > 0), 6),
        lambda x: invert_order(index_kept_tokens(rank_tokens(x) < 4), 4),
        lambda x: 1 + jax.lax.div(partners(x), jnp.int32(2)) * 3,
        # by rank, and from there the sorted tokens 2 to 4, or others
        lambda x: by_rank(x, x)[:, 2:5],
        lambda x: gather_rows(gather_rows(x, rank_tokens(x)), NUMBERS[:, :2] % 6),
        lambda x: by_rank(x, -x)[:, 2:5],
        lambda x: rows_after_first(x, invert_order(rank_tokens(x), 4)),
        lambda x: rows_after_first(x, NUMBERS % 11),
        lambda x: rows_after_first(x, sorted_by(x).reshape(2, 3, 2)),
        lambda x: gather_rows(x > 0, sorted_by(x)).astype(float),
        # constants of the same numbers for all images: two that are no steps, and steps
        lambda x: gather_rows(both([1e8, 1.0]), sorted_by(x) // 3),
        lambda x: gather_rows(both(np.arange(6) * 2 + 1.0), sorted_by(x)),
    ],
)
@pytest.mark.parametrize("gathers", [False, True])
def test_tokens_are_picked_as_by_jax(fn, gathers):
    with nodes.marked_functions():
        want, *others = outputs(fn, (2, 6), gathers=gathers)
    for each in others:
        np.testing.assert_array_equal(each, want)


@pytest.mark.parametrize("n_out", [1, 4, 8])
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("gathers", [False, True])
def test_distances_and_kept_tokens_are_those_of_jax(n_out, ties, gathers):
    """Tokens on a few axes: most cosines are ties, and so are scores of three values.

    OpenVINO sorts ties of scores in an order of its own, if a graph gathers. The first
    token's distance is 2, and any larger number in a graph.
    """
    rng = np.random.default_rng(n_out)
    axes = np.eye(4)[rng.integers(4, size=(3, 9))] * rng.choice([-1, 1], (3, 9, 1))
    score = rng.choice([0.0, 0.25, 0.5], (3, 9, 1)) if ties else rng.random((3, 9, 1))

    def decided(both):
        tokens, score = jnp.split(both, [4], 2)
        alike = cosine_similarity(tokens, tokens)
        order = rank_tokens(score[..., 0])
        distance = distance_to_earlier(alike, order)
        slot, to_kept = join_kept(alike, order, n_out)
        distance = jnp.minimum(distance, 2.0)
        return jnp.stack([distance, slot.astype(jnp.float32), to_kept], axis=1)

    both = np.concatenate([axes, score], axis=2).astype(np.float32)
    with nodes.marked_functions():
        want, *others = outputs_of(decided, both, gathers=gathers)
    for each in others[:1] if ties and gathers else others:
        np.testing.assert_array_equal(each[:, 1], want[:, 1])
        assert_close(each, want)


@pytest.mark.parametrize(
    "n_out, drop, options, fields",
    [
        (4, 0, {}, {}),
        (4, 0, {"prefix": 0, "weighted": True}, {}),
        (4, 0, {"prefix": 2}, {"by_size": False}),
        (4, 0, {"weighted": True, "mean": False}, {}),
        (4, 0, {"mean": False}, {"by_size": False}),
        (4, 0, {}, {"index": None}),
        (4, 0, {"weighted": True}, {"index": None}),
        (4, 0, {"weighted": True, "mean": False, "prefix": 0}, {"index": None}),
        (4, 0, {}, {"weight": np.ones((3, 7), bool)}),  # a mean over tokens
        (4, 0, {"mean": False}, {"weight": np.full((3, 7), 0.5, np.float16)}),
        (4, 1, {"prefix": 2}, {}),  # tokens are dropped, and none merges
        (7, 0, {"weighted": True}, {}),
    ],
)
def test_tokens_and_values_are_merged_as_by_jax(n_out, drop, options, fields):
    """Of three images; the oracle of `apply` is in tests/reduction."""
    n = 7
    state, result = make(n, n_out, drop=drop, **options)
    result = result.replace(**fields)
    rng = np.random.default_rng(1)
    tokens = state.x.shape[1]
    slots = state.num_prefix + n_out
    weights = rng.uniform(size=(3, 2, tokens, tokens)).astype(np.float32)
    value = rng.normal(size=(3, slots, 2, 4)).astype(np.float32)
    parts = (state.x, state.size[..., None], weights.reshape(3, tokens, -1))

    def merged(x, result):
        x, size, weights = jnp.split(x, [4, 5], 2)
        size = size[..., 0]
        rows, sizes = merge_features(x, size, result)
        weights = weights.reshape(3, 2, tokens, tokens)
        out = attention.attend_merged(weights, value, result, size)
        first = attention.attend_merged(weights[:, :, :1], value, result, size)
        parts = (rows, sizes, out, first)
        return jnp.concatenate([part.reshape(3, -1) for part in parts], axis=1)

    with nodes.marked_functions():
        want, *others = outputs_of(
            lambda x: merged(x, result), np.concatenate(parts, axis=2)
        )
    for each in others:
        np.testing.assert_allclose(each, want, rtol=1e-5, atol=1e-5)


def test_a_side_may_be_a_multiple_of_an_open_batch():
    def with_ones(x):
        rows = x.reshape(-1, 2)
        return jnp.concatenate([rows, jnp.ones((rows.shape[0], 1))], axis=1)

    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, 6), np.float32)
    entry = onnx_graph.Value(images.shape, images.dtype, "images")
    graph = onnx_graph.Graph(entry)
    (out,) = add_equations(graph, jax.make_jaxpr(with_ones)(images), [entry])
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    for each in run(wrap_graph(graph.graph_proto({"logits": out})), x):
        np.testing.assert_array_equal(each, with_ones(x))


def test_the_size_of_an_open_batch_is_no_number():
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, 6), np.float32)
    entry = onnx_graph.Value(images.shape, images.dtype, "images")
    mean = jax.make_jaxpr(lambda x: x.mean(0))(images)
    with refused("the model"):
        add_equations(onnx_graph.Graph(entry), mean, [entry])


def custom_sum(x):
    return jax.lax.add_reduction(x, 0.0, lambda a, b: a + 2 * b, (1,))


def reversed_padding(x):
    kernel = jnp.ones((2, 3, 1))
    axes = ("NHC", "HIO", "NHC")
    return jax.lax.conv_general_dilated(x, kernel, (1,), [(-1, 0)], (1,), (1,), axes)


@pytest.mark.parametrize(
    "fn",
    [
        jnp.sort,
        lambda x: jnp.int32(x) & 1,
        custom_sum,
        reversed_padding,
        lambda x: x.at[:, 9].get(mode="fill", fill_value=7.0),  # beyond its array
    ],
)
def test_what_has_no_operator_is_refused(fn):
    with refused("the model"):
        outputs(fn, (2, 4, 3))
