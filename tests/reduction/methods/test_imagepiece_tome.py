"""ImagePiece + ToMe: ImagePiece's merge steps, ToMe's matching where it prunes."""

from imagepiece_jax.reduction.block_plan import KeepAtLeastHalf, Step
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece
from imagepiece_jax.reduction.methods.imagepiece_tome import ImagePieceToMe
from imagepiece_jax.reduction.reducers import Bipartite
from tests.helpers.named_models import facts


def test_merge_steps_are_imagepieces_and_prune_steps_match_pairs():
    fields = {"metric": "value", "merge_ratio": 0.15, "parity": 1, "keep_rate": 0.5}
    fields |= {"merge_blocks": (1,), "prune_blocks": (0, 2)}
    first_prune, merge, last_prune = ImagePieceToMe(**fields).steps(facts())
    assert merge == ImagePiece(**fields).steps(facts())[1]
    for block, step in ((0, first_prune), (2, last_prune)):
        assert step == Step(block, Bipartite("value"), KeepAtLeastHalf(0.5))
