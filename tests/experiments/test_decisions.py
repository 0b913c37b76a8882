"""Decisions in bfloat16: kinds agree where there is nothing to round, and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import decisions
from imagepiece_jax.data.normalize import normalize
from tests.experiments import tiny_context

TOME = {"name": "tome", "r": 8, "prop_attn": True}


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decisions")
    made = tiny_context.context(folder, tiny_context.pretrained(folder))
    yield made
    made.cache.close()


def images(context, model):
    pixels = context.images.batches()[0]["image"].reshape(-1, 16, 16, 3)
    return normalize(pixels[:2], model.mean, model.std)


def dest(context, kind):
    """Where each token goes in every block."""
    vit = context.pretrained.pretrained(TOME)
    exact = vit.model.clone(dtype=jnp.dtype("float32"), kernels=None)
    rough = exact.clone(dtype=jnp.dtype("bfloat16"))
    image = images(context, vit.model)
    first = []
    with decisions.patched(keep=first):
        exact.apply(vit.variables, image)
    if kind is None:
        return [np.asarray(result.dest) for result, _ in first]
    with decisions.patched(replay=first * (kind == "replayed"), scores=kind):
        done = rough.apply(vit.variables, image).results
    return [np.asarray(result.dest) for result in done if result is not None]


def test_what_is_replayed_is_what_float32_decided(context):
    exact, rough = dest(context, None), dest(context, "replayed")
    assert len(exact) == len(rough) == 4
    for ours, theirs in zip(rough, exact, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    alone = dest(context, "bfloat16")
    assert any((a != b).any() for a, b in zip(alone, exact, strict=True))


def test_scores_are_those_of_float32_products(context):
    """By the kernel and bias themselves, on what the block's attention was given."""
    vit, seen = context.pretrained.pretrained(TOME), []
    rough = vit.model.clone(dtype=jnp.dtype("bfloat16"), kernels=None)
    image = images(context, vit.model)
    with decisions.patched(keep=seen, scores="float32"):
        rough.apply(vit.variables, image)
    keys = [np.asarray(taps.metric) for _, taps in seen]
    with decisions.patched(keep=seen, scores="bfloat16"):
        rough.apply(vit.variables, image)
    rounded = np.asarray(seen[4][1].metric)
    assert np.abs(keys[0] - rounded).max() > 0
    np.testing.assert_allclose(
        keys[0], rounded, rtol=0, atol=np.abs(rounded).max() / 64
    )


def test_the_page_has_every_kind(context):
    folder, sweep = context.out / "page", ("tome:r=8",)
    asked = tiny_context.context(folder, context.pretrained, sweep=sweep)
    decisions.decisions(asked)
    asked.cache.close()
    page = (context.out / "page" / "decisions.md").read_text()
    for kind in (*decisions.KINDS, "none: float32"):
        assert f"| {kind} |" in page
