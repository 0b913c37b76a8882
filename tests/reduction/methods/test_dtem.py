"""DTEM: the authors' soft merge and gradients; training changes W alone."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.kernels.similarity import cosine_similarity
from imagepiece_jax.models import create
from imagepiece_jax.reduction.methods import dtem
from tests.helpers import named_models, tiny_vit
from tests.reduction.test_methods_published import authors_arrays, embedding, load_deit


@pytest.mark.slow
def test_soft_merge_and_its_gradient_equal_the_authors(assets):
    """One merge by the authors' code: 7 of 9 tokens are live, 2 merge."""
    theirs = authors_arrays(assets, "dtem_unit_")
    live = int(theirs["n"]) - 1
    r = int(theirs["r"])
    # The class token is left out.
    x, size, w = (jnp.asarray(theirs[name][:, 1:]) for name in ("x", "size", "w"))

    @tiny_vit.compiled
    @functools.partial(jax.grad, has_aux=True)
    def run(metric):
        metric = metric[:, :live]
        similarity = cosine_similarity(metric[:, 0::2], metric[:, 1::2], eps=1e-12)
        mixing = dtem.merge_softly(similarity, size, live, r)
        moved = mixing.matrix @ x
        loss = jnp.sum(moved * w) + jnp.sum(mixing.attn_size * jnp.arange(1, 9)[None])
        top = dtem.choose_softly(similarity, r)
        return loss, (similarity, top, moved, mixing.attn_size)

    slope, ours = run(theirs["metric"][:, 1:])
    expected = theirs["scores"], theirs["assign"], theirs["x_out"], theirs["size_out"]
    for actual, wanted in zip(ours, expected, strict=True):
        wanted = wanted if wanted.shape == actual.shape else wanted[:, 1:]
        np.testing.assert_allclose(actual, wanted, atol=1e-6)
    wanted = theirs["grad_metric"][:, 1:]
    # Cosines are exact to 1e-7 in float32, and are divided by 0.01.
    np.testing.assert_allclose(slope, wanted, atol=2e-3 * np.abs(wanted).max())


@pytest.mark.slow
def test_training_step_equals_the_authors(assets):
    """Logits, loss and gradients of W and b, merging softly in one block."""
    block = 5
    theirs = authors_arrays(assets, f"dtem_trainb{block}_")
    variables, images, timm = load_deit(assets)
    labels = timm["labels"][:2]
    reduction = f"dtem:counts={(196,) * block + (180,) * (12 - block)}"
    model = create.build_model(named_models.config("deit_ti"), reduction, masked=True)

    @tiny_vit.compiled
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(embed, params):
        params = params | {f"reducer_{block}": {"embed": embed}}
        logits = model.apply({"params": params}, images, True).logits
        log_probs = jax.nn.log_softmax(logits)[jnp.arange(2), labels]
        return -jnp.mean(log_probs), logits

    (value, logits), slopes = loss(embedding(block), variables["params"])
    np.testing.assert_allclose(logits, theirs["logits"], atol=1e-4)
    assert value == pytest.approx(float(theirs["loss"]), abs=1e-5)
    expected = {"kernel": theirs["grad_w"].T, "bias": theirs["grad_b"][block]}
    for name, gradient in expected.items():
        scale = np.abs(gradient).max()
        assert scale > 0
        np.testing.assert_allclose(slopes[name], gradient, atol=2e-4 * scale)


def test_embedding_width_is_one_or_two_heads_and_the_rest_is_frozen():
    assert dtem.embedding_width(384, 6) == 64
    assert dtem.embedding_width(1024, 16) == 128
    groups = dtem.DTEM().param_groups
    assert groups("reducer_3/embed/kernel").frozen_epochs == 0
    assert groups("blocks_3/attn/q/kernel").frozen_epochs == math.inf
