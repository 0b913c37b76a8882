"""Token counts by hand; tests/models/cost_vectors.json has the published ones."""

import pytest

from imagepiece_jax.reduction.block_plan import plan_blocks
from imagepiece_jax.reduction.reduction import Reduction
from tests.helpers.named_models import facts


def expand_counts(text):
    """Expand "3*197 98" to [197, 197, 197, 98]."""
    pairs = [part.rpartition("*")[::2] for part in text.split()]
    counts = []
    for repeats, number in pairs:
        counts += [int(number)] * int(repeats or 1)
    return counts


@pytest.mark.parametrize(
    "text, site, tokens",
    [
        ("random:keep_rate=0.7", "mid", "3*197 3*139 3*98 3*69"),  # as EViT
        ("dynamicvit:keep_rate=0.0", "pre", "3*197 9*2"),
        ("token_pooling:keep_rate=0.5:blocks=(9,3,6)", "pre", "3*197 3*99 3*50 3*25"),
        # One token and a package are left, so later steps cannot shrink.
        ("spvit:keep_rates=(0.,0.,0.)", "pre", "3*197 9*3"),
        ("spvit:keep_rates=(.1,.001,0.)", "pre", "3*197 3*21 6*4"),
        # A step without a change leaves no package.
        ("spvit:keep_rates=(1.,.5,.5)", "pre", "6*197 6*100"),
        ("tome:r=1000", "mid", "99 50 26 14 8 5 3 5*2"),
    ],
)
def test_tokens_by_hand(text, site, tokens):
    plan = plan_blocks(12, 196, Reduction.read(text).method.steps(facts()))
    assert [layer.mlp_tokens for layer in plan] == expand_counts(tokens)
    arriving = [197, *expand_counts(tokens)[:-1]]
    attn_tokens = expand_counts(tokens) if site == "pre" else arriving
    assert [layer.attn_tokens for layer in plan] == attn_tokens


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("dynamicvit", "12*197"),
        ("dtem", "12*197"),
        ("spvit", "3*197 3*198 3*199 3*200"),  # a package each step
        # Masks keep all tokens except those merged in evaluation.
        ("imagepiece_dynamicvit", "181 2*166 155 2*145 137 5*130"),
        ("imagepiece_dynamicvit:mode=topk", "181 166 133 122 112 90 82 75 4*61"),
    ],
)
def test_tokens_in_masked_training(text, tokens):
    plan = plan_blocks(12, 196, Reduction.read(text).method.steps(facts()), masked=True)
    assert [layer.mlp_tokens for layer in plan] == expand_counts(tokens)
    assert any(layer.counts for layer in plan)
