"""Published figures of the papers, shown beside measured ones and never mixed.

Accuracies are top-1 in percent on ImageNet-1k's 50,000 validation images, of models
trained on it. Speeds are img/s on one RTX 3090, without a stated batch size or
precision. Source: ImagePiece (AAAI 2025) unless a comment names another, without its
slips (its SPViT row prints a difference of -0.39 where the accuracies give -0.49; its
text on masks does not match its table).
"""

LABEL = "ImageNet-1k, published"
SIZES = {"deit_ti": "DeiT-Ti", "deit_s": "DeiT-S"}

# Tables 1 and 2: (acc1, img/s)
ACCURACY_SPEED = {
    "deit_ti": {
        "DeiT": (72.13, 6429.2),
        "DynamicViT": (71.20, 9351.0),
        "SPViT": (72.09, 9245.2),
        "SPViT, keep .7, .49, .343": (72.09, 9245.2),  # the same row
        "EViT": (71.70, 9432.9),
        "ImagePiece": (72.61, 9450.2),
    },
    "deit_s": {
        "DeiT": (79.83, 2531.1),
        "DynamicViT": (79.32, 3762.0),
        "SPViT": (79.34, 3722.1),
        "SPViT, keep .7, .49, .343": (79.34, 3722.1),
        "EViT": (79.37, 3787.5),
        "Token Pooling": (71.35, 3571.0),
        "TokenLearner": (79.01, 3747.7),
        "ToMe": (79.36, 3806.1),
        "ImagePiece, no pruning": (79.67, 3890.1),
        "ImagePiece": (80.22, 3891.9),
        # Table 9
        "ImagePiece + DynamicViT": (80.11, 3857.1),
        "ImagePiece + ToMe": (80.08, 3876.5),
        "ImagePiece + EViT": (80.22, 3891.9),
        # Table 3
        "ImagePiece, keep .6": (79.38, 4868.0),
        # the text on the local coherence bias
        "ImagePiece, patch stem": (79.81, None),
    },
}

# Figure 3, at the text's one speed: points below DeiT-S at 2.51 times its speed.
HYPERSPEED = {
    "speed": 2.51,
    "drop": {"DynamicViT": 20.05, "EViT": 13.99, "ToMe": 9.24, "ImagePiece": 6.28},
}

# Table 3, DeiT-S: tokens after the last block, class token included.
OUTPUT_TOKENS = {"DynamicViT": 68, "EViT": 69, "ToMe": 41, "ImagePiece, keep .6": 26}

# Table 4, DeiT-S: acc1 by the number of masks of 16 x 16 pixels.
MASKS = (7, 10, 15, 20, 25, 50)
MASKING = {
    "DeiT": (79.05, 78.65, 77.78, 76.52, 75.29, 68.28),
    "DynamicViT": (78.54, 78.06, 77.09, 75.95, 74.81, 68.17),
    "EViT": (78.21, 77.72, 76.77, 75.42, 74.47, 68.10),
    "ToMe": (78.41, 77.73, 76.49, 74.99, 73.68, 65.41),
    "ImagePiece": (79.63, 79.13, 78.36, 77.20, 76.63, 71.42),
}

# Table 5, by block counted from 0 (the paper counts layers from 1), percent.
REASSESS = {1: 27.99, 2: 44.39, 4: 35.49, 5: 58.77, 7: 28.97, 8: 43.27}

# Table 6, DeiT-S: cosine similarity of merged pairs at the first and last merge.
SIMILARITY = {"ToMe": (0.7852, 0.6763), "ImagePiece": (0.8091, 0.8096)}

# Table 7: percent of ToMe's merged tokens among the top k % by class attention.
OVERLAP_K = (15, 20, 30, 70)
OVERLAP = {
    "deit_ti": (43.29, 52.83, 65.16, 91.80),
    "deit_s": (39.35, 48.28, 60.10, 88.70),
}

# Table 8, DeiT-S: similarity at the first merge by stem.
LCB_SIMILARITY = {"patch": 0.5293, "conv": 0.8091}


def format_figure(figure, digits=2):
    """A published figure; blank where there is none."""
    return "" if figure is None else f"{figure:.{digits}f}"
