"""Table 2: is ImagePiece more accurate than methods that merge, and as fast?

Token Pooling clusters tokens in a loop that the MACs do not count: it is timed beside
DynamicViT, whose blocks see just as many tokens.
"""

from imagepiece_jax.experiments import table1
from imagepiece_jax.experiments.rows import DENSE, Row, present

MERGE_ONLY = {"name": "imagepiece", "merge_ratio": 0.15, "prune_blocks": ()}
POOLING = Row("Token Pooling", {"name": "token_pooling", "keep_rate": 0.7})
TOME = Row("ToMe", {"name": "tome", "r": 13})
ROWS = (
    DENSE,
    POOLING,
    Row("TokenLearner", {"name": "token_learner", "num_tokens": 16, "block": 7}),
    TOME,
    Row("ImagePiece, no pruning", MERGE_ONLY, stem="conv"),
    Row("ImagePiece, no pruning, patch stem", MERGE_ONLY),
    table1.IMAGEPIECE,
    table1.IMAGEPIECE_PATCH,
    table1.DENSE_CONV,
)


def run(lab):
    """Measure every row that there is a model for, and write table2.md."""
    present(
        lab,
        "table2",
        "comparison with merging methods",
        ROWS,
        more=(lambda found: clustering(lab, found[POOLING.name]),),
    )


def clustering(lab, pooling):
    """What the clustering takes, as a sentence; empty where it was not timed."""
    if pooling is None or pooling.speed is None:
        return ""
    rate = pooling.reduction["keep_rate"]
    same = {"name": "dynamicvit", "keep_rate": rate}
    other = lab.speed(pooling.subject, same)
    ours, theirs = pooling.speed["ms"], other["ms"]
    return (
        f"Clustering: a batch takes {ours:.1f} ms with Token Pooling and {theirs:.1f} "
        f"ms with DynamicViT at the same counts (keep {rate}), whose selectors are "
        f"small, so clustering takes about {ours - theirs:.1f} ms."
    )
