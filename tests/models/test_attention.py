"""Attention against its definition, for every kernel and every reducer input."""

import functools
import itertools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from imagepiece_jax.kernels import choice
from imagepiece_jax.kernels.attention_scores import mean_attention, mean_query
from imagepiece_jax.models.attention import (
    attend,
    attention_columns,
    attention_map,
    resolve_backend,
    weighted_sum,
)
from imagepiece_jax.reduction.state import TokenState
from tests import compiling, oracles, oracles_learned, oracles_peaks
from tests.models import tiny
from tests.refused import refused
from tests.rounding import assert_close

# One compile a shape instead of one an operation.
attend_jit = tiny.compiled(attend)
row_of = tiny.compiled(mean_attention)
columns = tiny.compiled(attention_columns)


def masked_attend(query, key, value, mask, key_bias=None):
    return weighted_sum(attention_map(query, key, key_bias, mask), value)


attend_masked = tiny.compiled(masked_attend)


def random_qkv(length, heads=3, width=5, batch=2, seed=0):
    """Query, key and value, [batch, length, heads, width] each."""
    values = np.random.default_rng(seed).normal(size=(3, batch, length, heads, width))
    return tuple(values.astype(np.float32))


def random_bias(length, batch=2):
    """Log sizes, [batch, length]."""
    sizes = np.random.default_rng(1).integers(1, 9, size=(batch, length))
    return np.log(sizes, dtype=np.float32)


def slow_attention(query, key, value, bias=None):
    """float64 -> (output, weights [B, H, N, N])."""
    bias = np.zeros(query.shape[:2]) if bias is None else bias
    images = zip(query, key, value, bias, strict=True)
    out, weights = zip(*itertools.starmap(oracles.attention, images), strict=True)
    return np.stack(out), np.stack(weights)


@pytest.mark.parametrize("length, biased", [(1, True), (2, False), (7, True)])
def test_attend_equals_slow_attention(length, biased):
    query, key, value = random_qkv(length)
    bias = random_bias(length) if biased else None
    out, _ = slow_attention(query, key, value, bias)
    assert_close(attend_jit(query, key, value, bias), out)


def rows_of(query, rows):
    """Queries of the score "class", "mean" or "class_and_mean", one or two an image."""
    both = jnp.concatenate([query[:, :1], mean_query(query)], axis=1)
    return {"class": both[:, :1], "mean": both[:, 1:], "class_and_mean": both}[rows]


@pytest.mark.parametrize("rows", ["class", "mean", "class_and_mean"])
def test_rows_have_the_gradient_of_a_softmax(rows):
    """A token that EViT fuses learns by it; its own rule is that of log_sum_exp."""
    query, key, _ = random_qkv(7)
    bias = random_bias(7)
    along = np.random.default_rng(2).normal(size=(2, 7)).astype(np.float32)

    def by_softmax(query, key):
        first = query[:, 0]
        mean = sum(query[:, token] for token in range(7)) / 7
        queries = {"class": [first], "mean": [mean], "class_and_mean": [first, mean]}
        totals = []
        for each in queries[rows]:
            logits = jnp.einsum("bhd,bnhd->bnh", each, key, precision="highest")
            weights = jax.nn.softmax(logits / np.sqrt(5) + bias[:, :, None], axis=1)
            totals.append(jnp.sum(weights.mean(axis=2) * along))
        return sum(totals) / len(totals)

    def by_row(query, key):
        return jnp.sum(mean_attention(rows_of(query, rows), key, bias) * along)

    gradients = (tiny.compiled(jax.grad(f, (0, 1))) for f in (by_row, by_softmax))
    for found, wanted in zip(*(g(query, key) for g in gradients), strict=True):
        assert np.abs(wanted).max() > 0.01
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("length, biased", [(1, True), (2, False), (7, True)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_columns_and_the_class_row_are_float32(length, biased, dtype):
    query, key, _ = (a.astype(jnp.dtype(dtype)) for a in random_qkv(length))
    bias = random_bias(length) if biased else None
    _, weights = slow_attention(query, key, key, bias)
    got = columns(query, key, bias)
    row = row_of(query[:, :1], key, bias)
    assert got.dtype == row.dtype == jnp.float32
    assert_close(got, weights.mean(axis=(1, 2)))
    assert_close(row, weights[:, :, 0].mean(axis=1))


@pytest.mark.parametrize("length, biased", [(1, True), (2, False), (7, True)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fast", [False, True])
def test_the_row_of_the_mean_query_is_float32(length, biased, dtype, fast):
    """Alone and with the class row, whose mean is one score."""
    query, key, _ = (a.astype(jnp.dtype(dtype)) for a in random_qkv(length))
    bias = random_bias(length) if biased else None

    @tiny.compiled
    def both(query, key, bias):
        with choice.fast(fast):
            mean = mean_query(query)
            queries = jnp.concatenate([query[:, :1].astype(mean.dtype), mean], axis=1)
            return mean_attention(mean, key, bias), mean_attention(queries, key, bias)

    found = dict(zip(("mean", "class_and_mean"), both(query, key, bias), strict=True))
    sizes = np.exp(bias) if biased else [None, None]
    for name, got in found.items():
        assert got.dtype == jnp.float32
        for image in range(2):
            arrays = query[image], key[image], sizes[image]
            assert_close(got[image], oracles_peaks.scores(name, *arrays))


def test_a_token_far_from_the_query_gets_nothing():
    """Its exponential is 0 in float32, and the others' are what they are."""
    query = np.ones((1, 1, 1, 4), np.float32)
    key = np.float32([[2, 1, -100]])[:, :, None, None] * query
    got = row_of(query, key)
    assert_close(got[0], [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2)), 0])
    assert got[0, 2] == 0


# The road to cuDNN, which runs on GPUs alone: its kernel is replaced by XLA's here.


@pytest.fixture
def cudnn_calls(monkeypatch):
    """Calls that would have gone to cuDNN: (queries, keys, bias, masked?)."""
    calls = []
    plain = jax.nn.dot_product_attention

    def stand_in(query, key, value, *, bias, implementation, **options):
        if implementation == "xla":
            return plain(query, key, value, bias=bias, implementation="xla", **options)
        assert implementation == "cudnn"
        if bias is not None:  # cuDNN refuses one row for all queries
            assert bias.shape == (len(query), 1, query.shape[1], key.shape[1])
        masked = options.get("key_value_seq_lengths") is not None
        calls.append((query.shape[1], key.shape[1], bias, masked))
        if masked:
            key = spoilt(key)
            value = spoilt(value)
        return plain(query, key, value, bias=bias, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    return calls


@jax.custom_vjp
def spoilt(keys):
    """As cuDNN leaves it: nothing is written into the gradient of what is masked."""
    return keys


spoilt.defvjp(lambda keys: (keys, None), lambda _, g: (g.at[:, -1].set(jnp.nan),))


@pytest.mark.parametrize(
    "length, biased, train",
    [(6, True, True), (7, True, True), (7, False, True), (7, True, False)],
)
def test_gradients_pad_odd_lengths_and_change_nothing(
    cudnn_calls, length, biased, train
):
    layer = tiny.attention(15, 3, biased, attention_impl="cudnn")
    rng = np.random.default_rng(0)
    x, probe = rng.normal(size=(2, 2, length, 15)).astype(np.float32)
    size = np.exp(random_bias(length)) if biased else np.ones((2, length), np.float32)
    state = TokenState(x=x, size=size)
    variables = tiny.fill(jax.eval_shape(layer.init, jax.random.key(0), x, state))
    del cudnn_calls[:]

    def gradients(layer, train):
        def loss(variables, x):
            out = layer.apply(variables, x, state, {"cls_attn", "key"}, train)
            return jnp.sum(out[0] * probe), out

        slope = jax.grad(loss, argnums=(0, 1), has_aux=True)
        return tiny.compiled(slope)(variables, x)

    got = gradients(layer, train)
    want = gradients(tiny.attention(15, 3, biased), False)
    assert_close(got, want, scale=1.0)  # a key's bias has no gradient: terms cancel
    called, _, _, masked = cudnn_calls[-1]
    assert called == length + length % 2
    assert masked == (called != length)


@pytest.mark.parametrize(
    "length, keys, biased", [(7, 8, True), (9, 16, True), (6, 6, True), (7, 7, False)]
)
def test_inference_aligns_the_bias_of_odd_lengths(cudnn_calls, length, keys, biased):
    """The output is XLA's; a bias of even lengths is as fast without padding."""
    qkv = random_qkv(length)
    bias = random_bias(length) if biased else None
    out = tiny.compiled(functools.partial(attend, backend="cudnn"))(*qkv, bias)
    ((*lengths, given, masked),) = cudnn_calls
    assert (lengths, given is not None, masked) == ([length, keys], biased, False)
    assert_close(out, attend_jit(*qkv, bias))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_bias_of_padding_is_finite(cudnn_calls, dtype):
    """A kernel that subtracts infinities would give NaN."""
    if dtype == "float16":
        compiling.needs_float16()
    attend(*(a.astype(dtype) for a in random_qkv(7)), random_bias(7), backend="cudnn")
    ((_, _, bias, _),) = cudnn_calls
    assert bias.dtype == dtype
    assert np.isfinite(np.asarray(bias, np.float32)).all()
    unseen = np.exp(np.asarray(bias[..., 7:], np.float32))
    np.testing.assert_array_equal(unseen, 0)


def test_jax_refuses_odd_lengths_of_cudnn_in_training(monkeypatch):
    """Where it no longer does, padding can go: see Odd lengths in PERFORMANCE.md."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91300)

    padded = functools.partial(attend, backend="cudnn")
    plain = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")

    def trace(attention):
        query = jax.ShapeDtypeStruct((2, 7, 3, 64), jnp.bfloat16)
        grad = jax.grad(lambda x: attention(x, x, x).sum(dtype=jnp.float32))
        jax.jit(grad).trace(query)

    trace(padded)
    with pytest.raises(NotImplementedError, match="sequence length Q 7, KV 7"):
        trace(plain)


def device(platform, capability=None):
    found = types.SimpleNamespace(platform=platform)
    if capability is not None:
        found.compute_capability = capability
    return found


GPU = "an NVIDIA GPU of compute capability 8.0"


@pytest.mark.parametrize(
    "found, dtype, head_dim, lacking",
    [
        (device("gpu", "8.0"), "bfloat16", 64, ""),
        (device("gpu", "10.0"), "float16", 8, ""),
        (device("gpu", "9.0"), "float32", 64, "'bfloat16' or 'float16', not 'float32'"),
        (device("gpu", "9.0"), "bfloat16", 12, "8, 16, .. 128, not 12"),
        (device("gpu", "9.0"), "bfloat16", 136, "8, 16, .. 128, not 136"),
        (device("gpu", "7.5"), "bfloat16", 64, GPU),
        (device("gpu", "gfx942"), "bfloat16", 64, GPU),
        (device("cpu"), "bfloat16", 64, GPU),
    ],
)
def test_auto_takes_cudnn_where_it_runs(monkeypatch, found, dtype, head_dim, lacking):
    monkeypatch.setattr(jax, "local_devices", lambda: [found])
    backend = "xla" if lacking else "cudnn"
    assert resolve_backend("auto", dtype, head_dim) == backend
    assert resolve_backend("xla", dtype, head_dim) == "xla"
    if not lacking:
        assert resolve_backend("cudnn", dtype, head_dim) == "cudnn"
        return
    with refused("attention", lacking):
        resolve_backend("cudnn", dtype, head_dim)


X = np.random.default_rng(0).normal(size=(2, 7, 12)).astype(np.float32)


def attention(num_prefix=1):
    """(Attention of width 12, its variables, the state of the seven tokens X)."""
    module = tiny.attention(12, 3)
    state = TokenState(x=X, size=np.ones((2, 7), np.float32), num_prefix=num_prefix)
    shapes = jax.eval_shape(module.init, jax.random.key(0), X, state)
    return module, tiny.fill(shapes), state


def projected(variables, name):
    layer = variables["params"][name]
    return (X.astype(float) @ layer["kernel"] + layer["bias"]).reshape(2, 7, 3, 4)


def test_only_what_is_needed_is_tapped():
    def shapes(*reads, num_prefix=1):
        module, variables, state = attention(num_prefix)
        call = functools.partial(module.apply, reads=reads)
        _, scores = jax.eval_shape(call, variables, X, state)
        return {name: score.shape for name, score in scores.items()}

    assert shapes() == {}
    assert shapes("cls_attn", num_prefix=2) == {"cls_attn": (2, 5)}
    assert shapes("cls_attn", "key") == {"cls_attn": (2, 6), "key": (2, 6, 4)}
    assert shapes("mean_attn", num_prefix=0) == {"mean_attn": (2, 7)}
    both = {"cls_and_mean_attn": (2, 5)}
    assert shapes("cls_and_mean_attn", num_prefix=2) == both
    assert shapes("input") == {"input": (2, 6, 12)}


@pytest.mark.parametrize("metric", ["query", "key", "value"])
def test_the_metric_is_the_mean_over_heads_of_one_projection(metric):
    module, variables, state = attention()
    apply = functools.partial(module.apply, reads={metric})
    _, scores = tiny.compiled(apply)(variables, X, state)
    want = projected(variables, metric[0])
    assert scores[metric].dtype == jnp.float32
    np.testing.assert_allclose(scores[metric], want[:, 1:].mean(axis=2), atol=2e-6)


@pytest.mark.parametrize("prefix, masked", [(0, False), (1, True), (2, True)])
def test_the_tap_has_image_columns_of_all_live_queries(prefix, masked):
    """The prefix reads as well; masked tokens neither read nor are read."""
    module, variables, state = attention(prefix)
    mask = np.float32([[1, 1, 0, 1, 1, 0, 1] if masked else [1] * 7, [1] * 7])
    if masked:
        state = state.replace(mask=mask[:, prefix:])
    run = tiny.compiled(functools.partial(module.apply, reads={"attn_columns"}))
    _, scores = run(variables, X, state)
    query, key = (projected(variables, name) for name in "qk")
    _, weights = slow_attention(query, key, key, np.where(mask, 0, -1e9))
    want = np.einsum("bq,bhqk->bk", mask, weights) / 3 / mask.sum(axis=1)[:, None]
    got = scores["attn_columns"]
    np.testing.assert_allclose(got, want[:, prefix:], rtol=1e-4, atol=1e-5)


ROWS = {"class": "cls_attn", "mean": "mean_attn", "class_and_mean": "cls_and_mean_attn"}


@pytest.mark.parametrize(
    "name, prefix, masked",
    [("mean", 0, False), *((name, 1, True) for name in ROWS), ("mean", 2, True)],
)
def test_rows_have_image_columns_of_all_live_tokens(name, prefix, masked):
    """The mean query is that of the prefix, too, and not of masked tokens."""
    module, variables, state = attention(prefix)
    mask = np.float32([[1, 1, 0, 1, 1, 0, 1] if masked else [1] * 7, [1] * 7])
    sizes = np.random.default_rng(1).uniform(0.5, 4, (2, 7)).astype(np.float32)
    module = module.clone(prop_attn=True)
    state = state.replace(attn_size=sizes)
    if masked:
        state = state.replace(mask=mask[:, prefix:])
    run = tiny.compiled(functools.partial(module.apply, reads={ROWS[name]}))
    _, scores = run(variables, X, state)
    query, key = (projected(variables, name) for name in "qk")
    for image in range(2):
        arrays = query[image], key[image], sizes[image], mask[image]
        want = oracles_peaks.scores(name, *arrays)
        got = scores[ROWS[name]][image]
        np.testing.assert_allclose(got, want[prefix:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("length, biased", [(1, True), (2, False), (7, True)])
def test_masked_attention_equals_the_oracle(length, biased):
    query, key, value = random_qkv(length, batch=3)
    bias = random_bias(length, 3) if biased else np.zeros((3, length), np.float32)
    mask = np.random.default_rng(1).integers(2, size=(3, length)).astype(np.float32)
    mask[1:] = np.float32([[1], [0]])
    got = attend_masked(query, key, value, mask, key_bias=bias)
    first = attend_masked(query[:, :1], key, value, mask, key_bias=bias)
    for image in range(3):
        arrays = (np.asarray(a[image], float) for a in (query, key, value))
        want = oracles_learned.masked_attention(*arrays, mask[image], bias[image])
        np.testing.assert_allclose(got[image], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(first[image], want[:1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_masked_and_far_apart_stays_finite(dtype):
    heads = np.stack(random_qkv(5)) * 60
    mask = np.zeros((2, 5), np.float32)
    heads = heads.astype(jnp.dtype(dtype))

    def total(heads, mask):
        out = masked_attend(*heads, mask)
        assert out.dtype == dtype
        return jnp.sum(out.astype(jnp.float32) ** 2)

    run = tiny.compiled(jax.value_and_grad(total, argnums=(0, 1)))
    chex.assert_tree_all_finite(run(heads, mask))
