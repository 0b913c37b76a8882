"""Where a plan puts its steps, and what it refuses."""

import dataclasses

from imagepiece_jax.reduction.layer_plan import Step, build
from imagepiece_jax.reduction.reducers import Reducer
from imagepiece_jax.reduction.token_counts import Keep, Merge


def step(rule, block=0, site="mid"):
    return Step(block=block, reducer=Reducer(), rule=rule, site=site)


def test_build_puts_mid_steps_between_attention_and_mlp():
    steps = [step(Keep(0.7), block=4), step(Keep(0.7), block=1)]
    plan = build(depth=6, n0=196, steps=steps)
    tokens = [(layer.attn_tokens, layer.mlp_tokens) for layer in plan]
    later = [(139, 139)] * 2 + [(139, 98), (98, 98)]
    assert tokens == [(197, 197), (197, 139), *later]
    assert [layer.step for layer in plan if layer.step] == steps[::-1]


def test_build_puts_pre_steps_before_the_block_whatever_the_prefix():
    plan = build(depth=3, n0=196, steps=[step(Keep(0.7), block=1, site="pre")])
    tokens = [(layer.attn_tokens, layer.mlp_tokens) for layer in plan]
    assert tokens == [(197, 197), (139, 139), (139, 139)]
    assert plan[1].counts.n_in == 196
    # A distillation token changes no count: N is n + 1 whatever the prefix is.
    steps = [step(Merge(0.08, 0.3), block=0), step(Keep(0.8), block=1)]
    one = build(2, 196, steps, num_prefix=1)
    two = build(2, 196, steps, num_prefix=2)
    for a, b in zip(one, two, strict=True):
        assert a.counts == b.counts
        assert (a.attn_tokens, a.mlp_tokens) == (b.attn_tokens - 1, b.mlp_tokens - 1)


def test_masked_training_keeps_what_evaluation_would_remove():
    held = dataclasses.replace(step(Keep(0.8)), when_masked=0)
    appended = dataclasses.replace(step(Keep(0.8), block=1), when_masked=1)
    plan = build(3, 196, [held, appended, step(Keep(0.8), block=2)], masked=True)
    # In evaluation 157, 126 and 101 image tokens stay: the last step removes 25.
    assert [layer.mlp_tokens for layer in plan] == [197, 198, 173]


def test_stages_count_the_steps_that_change_something():
    steps = [step(Keep(rate), block) for block, rate in enumerate((0.9, 1.0, 0.9))]
    plan = build(depth=4, n0=20, steps=[*steps, step(Merge(0.0, 0.3), block=3)])
    assert [layer.step for layer in plan][:3] == steps
    assert [layer.counts and layer.counts.stage for layer in plan] == [1, None, 2, None]
    assert plan[1].mlp_tokens == plan[0].mlp_tokens
