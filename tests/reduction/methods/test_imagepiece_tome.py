"""ImagePiece + ToMe: ImagePiece's merge steps, ToMe's matching where it prunes."""

from imagepiece_jax.reduction.block_plan import (
    KeepAtLeastHalf,
    MergeCandidates,
    plan_blocks,
)
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece
from imagepiece_jax.reduction.methods.imagepiece_tome import ImagePieceToMe
from imagepiece_jax.reduction.reducers import Bipartite
from tests.helpers.named_models import facts


def test_merge_steps_are_imagepieces_and_prune_steps_match_pairs():
    fields = {"metric": "value", "merge_ratio": 0.15, "parity": 1, "keep_rate": 0.5}
    fields |= {"merge_blocks": (1,), "prune_blocks": (0, 2)}
    ours = ImagePieceToMe(**fields).steps(facts())
    theirs = ImagePiece(**fields).steps(facts())
    assert {type(step.rule) for step in ours} == {MergeCandidates, KeepAtLeastHalf}
    plans = (plan_blocks(12, 196, steps) for steps in (ours, theirs))
    tokens, imagepiece_tokens = ([layer.mlp_tokens for layer in plan] for plan in plans)
    assert tokens == imagepiece_tokens
    for step, other in zip(ours, theirs, strict=True):
        assert step.block == other.block
        assert (step.site, step.added_when_masked) == ("mid", None)
        if isinstance(other.rule, MergeCandidates):
            assert step == other
        else:
            assert step.reducer == Bipartite("value")
            assert step.rule.rate == other.rule.rate
