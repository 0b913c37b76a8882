"""The contract of all methods on all families of vision transformers.

The pairs of `RUN` are computed: every method on one family, and about five methods on
every family with another prefix or pooling than DeiT. Values show what a step does to
the prefix and where patches end. All methods are traced without a prefix, and with
three prefix tokens in test_rotary. Other families differ only in their blocks, so two
methods are traced.
"""

import functools
import itertools

import jax
import numpy as np
import pytest

from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.block import BlockReduction
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.state import Mixing
from tests.helpers import oracles, tiny_vit

FAMILIES = {
    "deit": Architecture(),
    "distilled": Architecture(dist_token=True),
    "deit3": Architecture(prefix_positions=False, layer_scale=True),
    "dinov2": Architecture(registers=4, prefix_positions=False, mlp="swiglu"),
    "clip": Architecture(patch_bias=False, pre_norm=True, norm_eps=1e-5, gelu="quick"),
    "siglip": Architecture(class_token=False, gelu="tanh", pool="map"),
    "mae": Architecture(pool="mean", final_norm=False, fc_norm=True),
    "gap": Architecture(class_token=False, registers=2, pool="mean", layer_scale=True),
}
PREFIX = dict(zip(FAMILIES, (1, 2, 1, 5, 1, 0, 1, 2), strict=True))
# Method: (blocks, a reduction with steps in so few blocks, image tokens left of 25).
# Other methods run in three blocks, as in `tiny_vit.small`.
PIECE = "merge_blocks=(0,):prune_blocks=(1,):merge_ratio=0.06"
FEW = {
    "none": (1, "none", 25),
    "imagepiece": (2, f"imagepiece:{PIECE}", 19),
    "evit": (1, "evit:blocks=(0,):fuse_token=True", 19),
    "dynamicvit": (1, "dynamicvit:blocks=(0,)", 17),
    "spvit": (1, "spvit:blocks=(0,):keep_rates=(0.6,)", 16),
    "tome": (1, "tome:r=4", 21),
    "token_learner": (1, "token_learner:num_tokens=8:block=0", 8),
    "token_pooling": (2, "token_pooling:blocks=(1,)", 17),
    "random": (1, "random:blocks=(0,)", 18),
    "grid_pooling": (1, "grid_pooling:grid_size=2:block=0", 4),
    "imagepiece_tome": (2, f"imagepiece_tome:{PIECE}", 19),
    "imagepiece_dynamicvit": (2, f"imagepiece_dynamicvit:{PIECE}", 19),
    "diffrate": (2, "diffrate:prune=(24,20):merge=(22,15)", 14),
    "pitome": (2, "pitome:keep_rate=0.9", 21),
    "tofu": (2, "tofu:keep_rate=0.9", 21),
    "mctf": (2, "mctf:r=6", 19),
    "dtem": (2, "dtem:counts=(22,18)", 18),
    "dpc_knn": (2, "dpc_knn:blocks=(1,)", 17),
    "atc": (2, "atc:blocks=(1,)", 17),
}


def few(name):
    """(blocks, reduction, tokens left or None) of a method."""
    return FEW.get(name, (3, tiny_vit.small(name), None))


SOFT = {"token_learner"}  # no patch is in one token alone
DIFFERENT = ("distilled", "dinov2", "siglip", "mae")
IMAGES = (2, tiny_vit.SIDE, tiny_vit.SIDE, 3)
RUN = list(zip(METHODS, itertools.cycle(DIFFERENT), strict=False))


def model_of(name, family, changes=None, depth=None, **options):
    own, reduction, _ = few(name)
    reduction = tiny_vit.changed(reduction, **(changes or {}))
    return tiny_vit.model(
        reduction, arch=FAMILIES[family], depth=depth or own, **options
    )


def facts(model, variables):
    """The outputs that the test reads. All Outputs would take long to compile."""
    states = []
    prefix = model.config.arch.prefix
    reduce = BlockReduction.__call__

    def note(reduction, state, *args):
        after, record = reduce(reduction, state, *args)
        states.append([state.x[:, :prefix] for state in (state, after)])
        return after, record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockReduction, "__call__", note)
        out = model.apply(variables, tiny_vit.images(2))
    return out.logits, out.state.size, tiny_vit.slots(out), states


TRACED = {*itertools.product(METHODS, ["siglip"])}
TRACED |= {*itertools.product(("evit", "tome"), FAMILIES)}
TRACED -= {*RUN}


@pytest.mark.parametrize("name, family", sorted(TRACED))
def test_every_method_runs_on_every_family(name, family):
    model = model_of(name, family)
    images = jax.ShapeDtypeStruct(IMAGES, np.float32)
    out = jax.eval_shape(model.apply, tiny_vit.shapes(model), images)
    left = few(name)[-1] or model.num_image_tokens
    left += PREFIX[family]
    assert model.config.arch.prefix == PREFIX[family]
    assert out.logits.shape == (2, tiny_vit.CLASSES)
    assert out.pooled.shape == (2, tiny_vit.WIDTH)
    assert out.tokens.shape == out.state.x.shape == (2, left, tiny_vit.WIDTH)
    assert out.state.size.shape == (2, left)
    assert model.plan[-1].mlp_tokens == left
    counts = [layer.counts for layer in model.plan if layer.counts]
    for result, inputs, count in zip(
        out.results, out.reducer_inputs, counts, strict=True
    ):
        before = count.n_in
        after = count.n_out
        assert inputs.x.shape == (2, before, tiny_vit.WIDTH)  # of image tokens alone
        for row in (inputs.size, inputs.cls_attn, inputs.attn_columns):
            assert row is None or row.shape == (2, before)
        if isinstance(result, Mixing):
            assert result.matrix.shape == (2, after, before)
        else:
            assert result.slot_of_token.shape == (2, before)
            assert result.n_out == after


@pytest.mark.parametrize("name, family", RUN)
def test_the_prefix_is_protected_and_every_patch_is_accounted_for(name, family):
    model = model_of(name, family)
    prefix = PREFIX[family]
    variables = tiny_vit.variables(model)
    logits, size, source, states = tiny_vit.jit(functools.partial(facts, model))(
        variables
    )
    assert logits.shape == (2, tiny_vit.CLASSES)
    assert np.isfinite(logits).all()
    assert size.shape == (2, model.plan[-1].mlp_tokens)
    assert len(states) == sum(bool(layer.counts) for layer in model.plan)
    assert bool(states) == (name != "none")
    for before, after in states:
        np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(size[:, :prefix], 1)
    if name in SOFT:
        return
    size = np.asarray(size)[:, prefix:]
    source = np.asarray(source)
    for image in range(2):
        counted = oracles.count_sources(source[image], size.shape[1])
        np.testing.assert_array_equal(size[image], counted)
        assert size[image].sum() + (source[image] < 0).sum() == tiny_vit.TOKENS
