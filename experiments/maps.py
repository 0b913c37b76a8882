"""How maps of a reduced model are compared with those of the dense one.

A feature map has a feature for every patch, after the final norm (`features`). A dense
head makes of it the saliency of every pixel, from 0 to 1. On the same images:

* correlation: Pearson's r over the pixels;
* IoU: of the pixels above THRESHOLD, their intersection over their union. Images
  without such a pixel in the dense map have none, and are counted apart;
* cosine: of a patch's two features.
"""

import numpy as np

THRESHOLD = 0.5


def figures(ours, theirs) -> dict:
    """Correlation and IoU of each image, JSON values: IoU is null where there is none.

    ours, theirs: maps [B, H, W]
    Returns both by name, and as "extra" the number of images where ours alone has a
        pixel above THRESHOLD.
    """
    images = len(ours)
    alike = correlation(ours.reshape(images, -1), theirs.reshape(images, -1))
    shared = overlap(ours, theirs)
    without = np.isnan(shared)
    extra = without & (ours > THRESHOLD).any(axis=(1, 2))
    iou = []
    for value, is_absent in zip(shared, without, strict=True):
        iou.append(None if is_absent else round(float(value), 5))
    return {
        "correlation": [round(float(value), 5) for value in alike],
        "iou": iou,
        "extra": int(extra.sum()),
    }


def correlation(ours, theirs):
    """Pearson's r of each row. [B, m] twice -> [B]; 0 where a row is constant."""
    ours = ours - ours.mean(axis=1, keepdims=True)
    theirs = theirs - theirs.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    products = (ours * theirs).sum(axis=1)
    return products / np.where(norms > 0, norms, 1)


def overlap(ours, theirs):
    """IoU of the pixels above THRESHOLD. [B, ..] twice -> [B]; NaN: theirs has none."""
    axes = tuple(range(1, theirs.ndim))
    ours = ours > THRESHOLD
    theirs = theirs > THRESHOLD
    shared = (ours & theirs).sum(axis=axes)
    either = (ours | theirs).sum(axis=axes)
    ratio = shared / np.maximum(either, 1)
    return np.where(theirs.any(axis=axes), ratio, np.nan)


def cosine(ours, theirs):
    """Cosine of a patch's two features. [B, n, D] twice -> [B, n]; 0 for a zero one."""
    products = normalized(ours) * normalized(theirs)
    return products.sum(axis=2)


def normalized(features):
    """Features of length 1, zero ones stay. [B, n, D] -> [B, n, D] float32."""
    features = np.asarray(features, np.float32)
    norms = np.linalg.norm(features, axis=2, keepdims=True)
    return features / np.where(norms > 0, norms, 1)
