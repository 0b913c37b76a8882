"""Table 1: is ImagePiece more accurate than methods that prune, and as fast?

The paper's ImagePiece has a convolutional stem and its rivals have not, so each stem
has its own dense model here.
"""

from imagepiece_jax.experiments.rows import DENSE, Row, present

DYNAMICVIT = Row("DynamicViT", {"name": "dynamicvit", "keep_rate": 0.7})
SPVIT = Row("SPViT", {"name": "spvit"})
EVIT = Row("EViT", {"name": "evit", "keep_rate": 0.7})
IMAGEPIECE = Row("ImagePiece", {"name": "imagepiece"}, stem="conv")
IMAGEPIECE_PATCH = Row("ImagePiece, patch stem", {"name": "imagepiece"})
DENSE_CONV = Row("DeiT, conv stem", {"name": "none"}, stem="conv")
ROWS = (
    DENSE,
    DYNAMICVIT,
    SPVIT,
    EVIT,
    IMAGEPIECE,
    IMAGEPIECE_PATCH,
    DENSE_CONV,
)


def run(lab):
    """Measure every row that there is a model for, and write table1.md."""
    title, sizes = "comparison with pruning methods", ("deit_s", "deit_ti")
    present(lab, "table1", title, ROWS, sizes=sizes)
