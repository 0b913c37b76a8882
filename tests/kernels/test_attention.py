import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax import kernels
from imagepiece_jax.kernels import attention
from imagepiece_jax.kernels.attention import dot_product_attention, resolve_backend
from imagepiece_jax.reduction.state import TokenState
from tests.helpers import oracles, oracles_learned, tiny_vit
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close


def attend_by_map(query, key, value, key_bias=None, mask=None):
    attention_map = attention.attention_map(query, key, key_bias, mask)
    return attention.weighted_sum(attention_map, value)


compiled_attention = tiny_vit.compiled(attend_by_map)


def random_qkv(length, heads=3, width=5, batch=2, seed=0):
    """Query, key and value, [batch, length, heads, width] each."""
    values = np.random.default_rng(seed).normal(size=(3, batch, length, heads, width))
    return tuple(values.astype(np.float32))


def random_bias(length, batch=2):
    """Log sizes, [batch, length]."""
    sizes = np.random.default_rng(1).integers(1, 9, size=(batch, length))
    return np.log(sizes, dtype=np.float32)


@pytest.mark.parametrize("length, biased", [(1, True), (2, False), (7, True)])
def test_the_definition_equals_slow_attention(length, biased):
    qkv = random_qkv(length)
    bias = random_bias(length) if biased else np.zeros((2, length))
    images = zip(*qkv, bias, strict=True)
    out = [oracles.attention(*image)[0] for image in images]
    for attend in (compiled_attention, tiny_vit.compiled(dot_product_attention)):
        assert_close(attend(*qkv, bias if biased else None), np.stack(out))


# cuDNN runs only on GPUs. XLA's kernel replaces it here.


@pytest.fixture
def cudnn_calls(monkeypatch):
    """Arguments of calls to cuDNN: (query length, key length, bias, is masked)."""
    calls = []
    attend = jax.nn.dot_product_attention

    def stand_in(query, key, value, *, bias, implementation, **options):
        if implementation == "xla":
            return attend(query, key, value, bias=bias, implementation="xla", **options)
        assert implementation == "cudnn"
        if bias is not None:  # cuDNN refuses one row for all queries
            assert bias.shape == (len(query), 1, query.shape[1], key.shape[1])
        masked = options.get("key_value_seq_lengths") is not None
        calls.append((query.shape[1], key.shape[1], bias, masked))
        if masked:
            key = leave_gradient_unwritten(key)
            value = leave_gradient_unwritten(value)
        return attend(query, key, value, bias=bias, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    return calls


@jax.custom_vjp
def leave_gradient_unwritten(keys):
    """Keys whose masked gradient stays unwritten, as with cuDNN."""
    return keys


leave_gradient_unwritten.defvjp(
    lambda keys: (keys, None), lambda _, g: (g.at[:, -1].set(jnp.nan),)
)


@pytest.mark.parametrize(
    "length, biased, train",
    [(6, True, True), (7, True, True), (7, False, True), (7, True, False)],
)
def test_gradients_pad_odd_lengths_and_change_nothing(
    cudnn_calls, length, biased, train
):
    layer = tiny_vit.attention(15, 3, biased, attention_impl="cudnn")
    rng = np.random.default_rng(0)
    x, probe = rng.normal(size=(2, 2, length, 15)).astype(np.float32)
    size = np.exp(random_bias(length)) if biased else np.ones((2, length), np.float32)
    state = TokenState(x=x, size=size)
    variables = tiny_vit.fill(jax.eval_shape(layer.init, jax.random.key(0), x, state))
    cudnn_calls.clear()

    def gradients():
        def loss(variables, x):
            out = layer.apply(variables, x, state, {"cls_attn", "key"}, train)
            return jnp.sum(out[0] * probe), out

        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        return tiny_vit.compiled(gradient)(variables, x)

    padded = gradients()
    length_called, _, _, is_masked = cudnn_calls.pop()
    with kernels.reference_forms():
        expected = gradients()
    assert not cudnn_calls
    # The terms of a key bias's gradient cancel.
    assert_close(padded, expected, scale=1.0)
    assert length_called == length + length % 2
    assert is_masked == (length_called != length)


@pytest.mark.parametrize(
    "length, keys, dtype",
    [(7, 8, "float32"), (9, 16, "float32"), (6, 6, "float32"), (7, 8, "float16")],
)
def test_inference_aligns_the_bias_of_odd_lengths(cudnn_calls, length, keys, dtype):
    """A bias of even length needs no padding, which is finite: inf - inf is NaN."""
    qkv = [a.astype(dtype) for a in random_qkv(length)]
    bias = random_bias(length)
    out = dot_product_attention(*qkv, bias, backend="cudnn")
    ((*lengths, bias_seen, masked),) = cudnn_calls
    assert (lengths, masked) == ([length, keys], False)
    assert np.isfinite(np.asarray(bias_seen, np.float32)).all()
    if dtype == "float32":
        assert_close(out, compiled_attention(*qkv, bias))


@pytest.mark.parametrize(
    "facts, dtype, head_dim, runs",
    [
        ({"compute_capability": "8.0"}, "bfloat16", 64, True),
        ({"compute_capability": "10.0"}, "float16", 8, True),
        ({"compute_capability": "9.0"}, "float32", 64, False),
        ({"compute_capability": "9.0"}, "bfloat16", 12, False),
        ({"compute_capability": "9.0"}, "bfloat16", 136, False),
        ({"compute_capability": "7.5"}, "bfloat16", 64, False),
        ({"compute_capability": "gfx942"}, "bfloat16", 64, False),
        ({}, "bfloat16", 64, False),
    ],
)
def test_auto_takes_cudnn_where_it_runs(monkeypatch, facts, dtype, head_dim, runs):
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(**facts)])
    assert resolve_backend("auto", dtype, head_dim) == ("cudnn" if runs else "xla")
    assert resolve_backend("xla", dtype, head_dim) == "xla"
    if runs:
        assert resolve_backend("cudnn", dtype, head_dim) == "cudnn"
        return
    with refused("attention is 'cudnn'", dtype, head_dim):
        resolve_backend("cudnn", dtype, head_dim)


@pytest.mark.parametrize("length, biased", [(1, True), (2, False), (7, True)])
def test_masked_attention_equals_the_oracle(length, biased):
    query, key, value = random_qkv(length, batch=3)
    bias = random_bias(length, 3) if biased else np.zeros((3, length), np.float32)
    mask = np.random.default_rng(1).integers(2, size=(3, length)).astype(np.float32)
    mask[1:] = np.float32([[1], [0]])
    attended = compiled_attention(query, key, value, bias, mask)
    first_row = compiled_attention(query[:, :1], key, value, bias, mask)
    for image in range(3):
        arrays = (np.asarray(a[image], float) for a in (query, key, value))
        expected = oracles_learned.masked_attention(*arrays, mask[image], bias[image])
        np.testing.assert_allclose(attended[image], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(first_row[image], expected[:1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_masked_logits_stay_finite(dtype):
    qkv = 60 * np.stack(random_qkv(5)).astype(jnp.dtype(dtype))

    def squared_sum(qkv, mask):
        out = attend_by_map(*qkv, mask=mask)
        assert out.dtype == dtype
        return jnp.sum(out.astype(jnp.float32) ** 2)

    run = tiny_vit.compiled(jax.value_and_grad(squared_sum, argnums=(0, 1)))
    chex.assert_tree_all_finite(run(qkv, np.zeros((2, 5), np.float32)))
