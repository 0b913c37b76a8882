"""ImagePiece + ToMe: ImagePiece's merge steps, ToMe's matching where it prunes."""

import pytest

from imagepiece_jax.reduction.block_plan import Merge, MergeTo, build
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece
from imagepiece_jax.reduction.methods.imagepiece_tome import ImagePieceToMe
from imagepiece_jax.reduction.reducers import Bipartite

FIELDS = [
    {},
    {"parity": 1, "size_weighting": False},
    {"merge_blocks": (1,), "prune_blocks": (0, 2)},
    {"metric": "value", "merge_ratio": 0.15, "candidate_ratio": 0.5},
]


@pytest.mark.parametrize("fields", FIELDS)
def test_merge_steps_are_imagepieces_and_the_others_match(fields):
    ours = ImagePieceToMe(**fields).steps(12)
    theirs = ImagePiece(**fields).steps(12)
    assert vars(ImagePieceToMe()) == vars(ImagePiece())
    metric = fields.get("metric", "key")
    assert {type(step.rule) for step in ours} == {Merge, MergeTo}
    for step, other in zip(ours, theirs, strict=True):
        assert step.block == other.block
        assert (step.site, step.when_masked) == ("mid", None)
        if isinstance(other.rule, Merge):
            assert step == other
        else:
            assert step.reducer == Bipartite(metric)
            assert step.rule.rate == other.rule.rate


@pytest.mark.parametrize("rate", [0.5, 0.8])
def test_it_has_as_many_tokens_as_imagepiece(rate):
    ours = build(12, 196, ImagePieceToMe(keep_rate=rate).steps(12))
    theirs = build(12, 196, ImagePiece(keep_rate=rate).steps(12))
    tokens = [[layer.mlp_tokens for layer in plan] for plan in (ours, theirs)]
    assert tokens[0] == tokens[1]
