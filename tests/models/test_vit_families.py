"""The contract of all methods on all families of vision transformers.

Pairs in `RUN` are computed: every method on one family, and about five methods on each
family whose prefix or pooling differs from DeiT's. Values show a step's effect on the
prefix and on patches. All methods are traced without a prefix, and in test_rotary with
three prefix tokens. Other families differ only in their blocks, so two methods are
traced.
"""

import functools
import itertools

import jax
import numpy as np
import pytest

from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.block import BlockReduction
from imagepiece_jax.reduction.methods import METHODS
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
# Method: (blocks, a reduction with steps in them, image tokens left of 25).
# Other methods run in three blocks, with `tiny_vit.small_reduction`.
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


def small_case(name):
    """(blocks, reduction, tokens left or None) of a method."""
    return FEW.get(name, (3, tiny_vit.small_reduction(name), None))


SOFT = {"token_learner"}  # no patch is in one token alone
DIFFERENT = ("distilled", "dinov2", "siglip", "mae")
RUN = list(zip(METHODS, itertools.cycle(DIFFERENT), strict=False))


def family_model(name, family):
    depth, reduction, _ = small_case(name)
    return tiny_vit.model(reduction, arch=FAMILIES[family], depth=depth)


def read_outputs(model, variables):
    """The outputs that a test reads. All Outputs would compile for long."""
    states = []
    prefix = model.config.arch.prefix
    call = BlockReduction.__call__

    def record_prefix(reduction, state, *args):
        after, decision = call(reduction, state, *args)
        states.append([each.x[:, :prefix] for each in (state, after)])
        return after, decision

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockReduction, "__call__", record_prefix)
        out = model.apply(variables, tiny_vit.images(2))
    return out.logits, out.state.size, tiny_vit.final_slots(out), states


TRACED = {*itertools.product(METHODS, ["siglip"])}
TRACED |= {*itertools.product(("evit", "tome"), FAMILIES)}
TRACED -= {*RUN}


@pytest.mark.parametrize("name, family", sorted(TRACED))
def test_every_method_runs_on_every_family(name, family):
    model = family_model(name, family)
    out = jax.eval_shape(model.apply, tiny_vit.shapes(model), tiny_vit.images(2))
    left = model.plan[-1].mlp_tokens
    if num_kept := small_case(name)[-1]:
        left = num_kept + PREFIX[family]
    assert model.config.arch.prefix == PREFIX[family]
    assert out.logits.shape == (2, tiny_vit.CLASSES)
    assert out.tokens.shape == out.state.x.shape == (2, left, tiny_vit.WIDTH)
    assert out.state.size.shape == (2, model.plan[-1].mlp_tokens) == (2, left)
    counts = [plan.counts for plan in model.plan if plan.counts]
    for inputs, count in zip(out.reducer_inputs, counts, strict=True):
        assert inputs.x.shape == (2, count.n_in, tiny_vit.WIDTH)  # image tokens alone


@pytest.mark.parametrize("name, family", RUN)
def test_the_prefix_stays_and_every_patch_is_counted(name, family):
    model = family_model(name, family)
    prefix = PREFIX[family]
    variables = tiny_vit.variables(model)
    run = tiny_vit.jit(functools.partial(read_outputs, model))
    logits, size, token_of_patch, states = run(variables)
    assert np.isfinite(logits).all()
    assert size.shape == (2, model.plan[-1].mlp_tokens)
    assert bool(states) == (name != "none")
    for before, after in states:
        np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(size[:, :prefix], 1)
    if name in SOFT:
        return
    size = np.asarray(size)[:, prefix:]
    token_of_patch = np.asarray(token_of_patch)
    for image in range(2):
        patches = oracles.count_sources(token_of_patch[image], size.shape[1])
        np.testing.assert_array_equal(size[image], patches)
        assert size[image].sum() + (token_of_patch[image] < 0).sum() == tiny_vit.TOKENS
