"""Fused kernels against class attention, reducer and move in plain JAX.

Truths: the slow NumPy oracles where arithmetic is exact, ties and NaN included, and the
plain version on random inputs, where images that differ must be near ties.
"""

import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.config import files as config_files
from imagepiece_jax.data import loader
from imagepiece_jax.pretrained import load
from imagepiece_jax.reduction.kernels import fused
from imagepiece_jax.reduction.kernels.fused import Kernel
from imagepiece_jax.reduction.layer_plan import Counts
from tests import oracles, oracles_tome
from tests.models import tiny
from tests.reduction.kernels.inputs import needs_compiler, random_inputs
from tools import kernel_agreement as agreement
from tools.check_kernels import real_inputs
from tools.kernel_agreement import Comparison, PlainAndFused

pytestmark = needs_compiler

BATCH = 3
N = 19
PRUNE = PlainAndFused("prune", n_out=12)
RETOKENIZE = PlainAndFused("retokenize", n_out=15, candidates=11)
BIPARTITE = PlainAndFused("bipartite", n_out=13)
ALL = (PRUNE, RETOKENIZE, BIPARTITE)

fuse = tiny.compiled(PlainAndFused.fused, static_argnums=0)
in_plain = tiny.compiled(PlainAndFused.plain, static_argnums=0)


def integers(seed, prefix=1, heads=2, width=8, dim=24, dtype="float32"):
    """Inputs whose sums are exact in any order, and whose scores have many ties.

    The query has one component that is not zero, keys are -1 and 1: their logits, and
    the cosines between mean keys, are few different numbers.
    """
    draw = np.random.default_rng(seed)
    shape = (BATCH, N + prefix, heads, width)
    query = np.zeros(shape)
    query[..., 0] = 3
    key = draw.choice([-1.0, 1.0], shape)
    key[:, :, 1:] = key[:, :, :1]  # the mean over heads is one of them
    x = draw.integers(-4, 5, (BATCH, N + prefix, dim))
    size = 2.0 ** draw.integers(0, 2, (BATCH, N + prefix))
    arrays = (a.astype(jnp.dtype(dtype)) for a in (query, key, x))
    return *arrays, np.float32(size)


def truth(reduction, query, key, x, size):
    """(x, size, dest) of one image by the oracles; arrays of this image."""
    prefix = reduction.num_prefix
    n = N
    query = np.float64(query).swapaxes(0, 1)
    key = np.float64(key).swapaxes(0, 1)
    sizes = np.float64(size) if reduction.prop_attn else None
    # Equal logits have equal scores; float32 keeps what rounding may have split equal.
    scores = np.float32(oracles.cls_attention(query, key, sizes, prefix))
    mean = key.mean(0)
    cosines = np.float32(oracles.cosine(mean, mean))
    leaving = n - reduction.n_out
    if reduction.rule == "prune":
        dest = oracles.top_k(scores, reduction.n_out)
    elif reduction.rule == "bipartite":
        groups = oracles_tome.bipartite(cosines, leaving, prefix)
        dest = oracles_tome.slots(groups, prefix)
    else:
        dest = oracles.retokenize(
            scores,
            cosines[prefix:, prefix:],
            reduction.candidates,
            leaving,
            reduction.order,
            reduction.parity,
        )
    weight = None if reduction.size_weighting else np.ones(n)
    moved, counted = oracles.apply_map(
        np.float64(x[prefix:]), size[prefix:], dest, weight, reduction.n_out
    )
    return (
        np.concatenate([x[:prefix], moved]),
        np.concatenate([size[:prefix], counted]),
        dest,
    )


FORMS = [
    PRUNE,
    dataclasses.replace(PRUNE, num_prefix=2, prop_attn=True),
    RETOKENIZE,
    dataclasses.replace(RETOKENIZE, order="ascending", parity=1),
    dataclasses.replace(RETOKENIZE, num_prefix=2, size_weighting=False),
    dataclasses.replace(RETOKENIZE, prop_attn=True, candidates=18, n_out=10),
    BIPARTITE,
    dataclasses.replace(BIPARTITE, num_prefix=2, n_out=10),
    dataclasses.replace(BIPARTITE, num_prefix=0, n_out=11),
]


@pytest.mark.parametrize(
    "reduction, dtype",
    [
        *((form, "float32") for form in FORMS),
        *((form, "bfloat16") for form in (FORMS[1], FORMS[4], FORMS[7])),
    ],
    ids=str,
)
def test_decisions_with_ties_are_the_oracles(reduction, dtype):
    arrays = integers(7, reduction.num_prefix, dtype=dtype)
    moved, size, dest = fuse(reduction, *arrays)
    assert moved.dtype == arrays[2].dtype
    for image in range(BATCH):
        one = [np.asarray(a[image], np.float64) for a in arrays]
        want = truth(reduction, *one)
        np.testing.assert_array_equal(dest[image], want[2])
        np.testing.assert_array_equal(size[image], want[1])
        error = 2e-6 if dtype == "float32" else 0.02  # of numbers up to 4
        np.testing.assert_allclose(np.float64(moved[image]), want[0], atol=error)


@pytest.mark.parametrize(
    "reduction, token",
    [(PRUNE, 0), (RETOKENIZE, 4), (BIPARTITE, 4), (BIPARTITE, 9)],
    ids=lambda value: getattr(value, "rule", value),
)
def test_nan_keys_decide_as_in_the_plain_version(reduction, token):
    """A key that is NaN makes all scores NaN, and all similarities to it."""
    query, key, x, size = random_inputs(3, 3, 19, 3, 16, "float32")
    key = np.copy(key)
    key[1, token] = np.nan
    ours = fuse(reduction, query, key, x, size)
    plain = in_plain(reduction, query, key, x, size)
    np.testing.assert_array_equal(ours[2], plain[2])
    np.testing.assert_array_equal(ours[1], plain[1])


@pytest.mark.parametrize(
    "dtype, batch, n, heads, width",
    [("float32", 65, 196, 3, 64), ("bfloat16", 3, 41, 2, 80)],
)
def test_random_images_are_decided_as_in_the_plain_version(
    dtype, batch, n, heads, width
):
    arrays = random_inputs(0, batch, n, heads, width, dtype)
    for reduction in agreement.reductions(n):
        comparison = Comparison()
        prop_attn = dtype == "float32"
        comparison.add(dataclasses.replace(reduction, prop_attn=prop_attn), arrays)
        assert comparison.agrees, comparison


@pytest.mark.slow
def test_photographs_are_decided_as_in_the_plain_version(assets, tmp_path, monkeypatch):
    """Of twelve photographs, in a batch of twelve instead of sixty-four."""
    batches = loader.EvalBatches

    def of_twelve(*given, batch_size):
        return batches(*given, batch_size=12)

    monkeypatch.setattr(loader, "EvalBatches", of_twelve)
    rows = (assets / "data/nips2017_224_jpg/labels.csv").read_text().splitlines()
    (tmp_path / "images").symlink_to(assets / "data/nips2017_224_jpg/images")
    (tmp_path / "labels.csv").write_text("\n".join(rows[:13]))
    config = config_files.load_config("configs/deit_s_imagepiece.py:deit_ti")
    config.model.stem = "patch"
    config.data.resize = "none"
    vit = load.load(assets / "weights/deit_tiny_patch16_224.npz")
    data = f"csv:{tmp_path / 'labels.csv'}"
    # Of the nine reductions the first and the last: shapes are compiled.
    inputs = itertools.islice(real_inputs(config, vit, data, "bfloat16"), 0, 9, 8)
    found = agreement.compare(inputs)
    assert len(found) == 3
    assert all(c.images == 24 and c.agrees for c in found.values()), found


@pytest.mark.parametrize(
    "reduction",
    [*ALL, dataclasses.replace(RETOKENIZE, size_weighting=False)],
    ids=["prune", "retokenize", "bipartite", "retokenize, all weights 1"],
)
def test_gradients_are_the_plain_ones(reduction):
    arrays = random_inputs(2, 2, N, 2, 8, "float32")
    draw = np.random.default_rng(1)
    weight = draw.normal(size=(2, reduction.n_out + 1, 16)).astype(np.float32)

    def loss(run):
        def of(query, key, x, size):
            moved, counted, _ = run(query, key, x, size)
            return jnp.sum(moved * weight) + jnp.sum(counted**2)

        return tiny.compiled(jax.grad(of, argnums=(0, 1, 2, 3)))(*arrays)

    for ours, plain in zip(loss(reduction.fused), loss(reduction.plain), strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-6)


def test_vmap_and_single_images():
    """Images do not know of each other: alone, in a batch, over an axis."""
    arrays = integers(11)
    whole = fuse(RETOKENIZE, *arrays)
    stacked = [a[:, None] for a in arrays]
    mapped = tiny.compiled(jax.vmap(RETOKENIZE.fused))(*stacked)
    alone = fuse(RETOKENIZE, *(a[1:2] for a in arrays))
    for w, m, a in zip(whole, mapped, alone, strict=True):
        np.testing.assert_array_equal(w, m[:, 0])
        np.testing.assert_array_equal(w[1:2], a)


def test_many_calls_at_once_give_the_same():
    """Threads of the pool are shared by calls that run side by side."""
    arrays = random_inputs(4, 16, 41, 2, 8, "float32")
    reduction = PlainAndFused("bipartite", n_out=30)
    run = tiny.compiled(lambda *a: [reduction.fused(*a) for _ in range(8)])
    first, *others = run(*arrays)
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "rule, width, options, words",
    [
        ("retokenize", 8, {}, None),
        ("bipartite", 8, {"class_token": False}, None),
        ("prune", 128, {"dtype": "bfloat16"}, None),
        ("prune", 8, {"dtype": "float16"}, "not 'float16'"),
        ("bipartite", 12, {}, "not 12"),
        ("bipartite", 136, {}, "not 136"),
        ("retokenize", 8, {"class_token": False}, "'retokenize'"),
    ],
)
def test_what_does_not_fit_is_named(rule, width, options, words):
    model = tiny.model(embed_dim=2 * width, num_heads=2, **options)
    found = Kernel(rule).unsupported_reason(model, Counts(25, 20, 11))
    assert found is words is None or words in found


@pytest.mark.parametrize(
    "platform, capability, found",
    [
        ("tpu", None, "'tpu'"),
        ("cuda", "7.5", "'7.5'"),
        ("gpu", "gfx942", "'gfx942'"),
        ("gpu", None, "None"),
    ],
)
def test_other_devices_are_unsupported(platform, capability, found):
    assert f"not {found}" in fused.unsupported_reason(platform, capability)


def test_wrong_shapes_end_the_call():
    query, key, x, size = integers(1)
    with pytest.raises(jax.errors.JaxRuntimeError, match="differ in batch"):
        jax.block_until_ready(PRUNE.fused(query, key, x[:, :, :16], size[:, :-1]))


@pytest.mark.parametrize("broken", [None, 2])
def test_cuda_kernels_are_loaded_on_every_local_gpu_before_xla_knows_them(
    monkeypatch, broken
):
    """A model with fused kernels is only made, and stepped, after that is asked."""
    gpus = [types.SimpleNamespace(local_hardware_id=number) for number in (0, 1, 2, 3)]
    events = []

    def load(device):
        events.append(device)
        return b"no kernel image" if device == broken else None

    def register(name, handler, platform):
        events.append((name, handler, platform))

    library = types.SimpleNamespace(ImagepieceReduce="handler", imagepiece_load=load)
    monkeypatch.setattr(fused.build, "library", lambda *device: library)
    monkeypatch.setattr(fused.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(fused.jax, "local_devices", lambda: gpus)
    monkeypatch.setattr(fused.jax.ffi, "pycapsule", lambda handler: handler)
    monkeypatch.setattr(fused.jax.ffi, "register_ffi_target", register)
    monkeypatch.setattr(fused, "register_library", fused.register_library.__wrapped__)
    answer = fused.unsupported_reason("cuda", "9.0")
    if broken is None:
        assert answer is None
        assert events == [0, 1, 2, 3, (fused.TARGET, "handler", "CUDA")]
    else:
        assert answer.startswith("a driver that runs it on ")
        assert answer.endswith(": no kernel image")
        assert events == [0, 1, 2]
