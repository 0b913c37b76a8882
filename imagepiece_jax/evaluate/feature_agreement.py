"""How much of the dense model's map is left in that of a reduced one? Two figures.

Both compare maps of the same images, [B, n, D] with a feature for each patch, and
neither depends on the scale or direction of single features, but on what is like what:

* self-similarity: which patches of an image are alike? The correlation, over all pairs
  of patches, of their cosines in one map with those in the other.
* probe: does a patch still say what it shows? Patches are labelled by clusters of the
  dense model's features; a nearest-neighbour classifier reads these labels from the
  map, with half of the images as its memory, asked about the other half.

Merging makes patches equal, so self-similarity inside a group is free of charge; the
probe asks across images, where being equal does not help.
"""

import math
from typing import NamedTuple

import numpy as np

CLUSTERS, NEIGHBOURS, SEED = 32, 5, 0
CONFIDENT = 1.96  # standard errors of a 95 % interval


class Share(NamedTuple):
    """A mean over images and half of its 95 % interval."""

    mean: float
    error: float

    def __str__(self):
        return f"{self.mean:.3f} ± {self.error:.3f}"


def over_images(values):
    """The Share of one value an image, [B]."""
    values = np.asarray(values, float)
    error = CONFIDENT * values.std(ddof=1) / math.sqrt(len(values))
    return Share(float(values.mean()), float(error))


def self_similarity(features):
    """Cosines of all pairs of patches of each image. [B, n, D] -> [B, n (n - 1) / 2].

    A patch without a feature (zero) is like nothing: its cosines are 0.
    """
    units = normalised(features)
    first, second = np.triu_indices(features.shape[1], k=1)
    return np.stack([(image @ image.T)[first, second] for image in units])


def correlation(ours, theirs):
    """Pearson's r of each row. [B, m] twice -> [B]; 0 where a row is constant."""
    ours, theirs = (x - x.mean(axis=1, keepdims=True) for x in (ours, theirs))
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return (ours * theirs).sum(axis=1) / np.where(norms > 0, norms, 1)


def of_other_images(pairs):
    """For each image the mean of all others': what position alone tells. [B, m]."""
    return (pairs.sum(axis=0) - pairs) / (len(pairs) - 1)


def cluster_labels(dense, memory):
    """A label for every patch: its cluster in the dense map. [B, n, D] -> [B, n] int.

    memory: [B] bool, the images whose patches make the clusters.
    """
    from sklearn.cluster import KMeans

    units = normalised(dense)
    width = units.shape[2]
    clusters = KMeans(CLUSTERS, n_init=1, random_state=SEED)
    clusters.fit(units[memory].reshape(-1, width))
    return clusters.predict(units.reshape(-1, width)).reshape(units.shape[:2])


def probe(features, labels, memory):
    """Share of patches read rightly in each image that is not `memory`. -> [images].

    features [B, n, D], labels [B, n] int, memory [B] bool. A patch gets the most
    frequent label among its nearest patches by cosine.
    """
    units = normalised(features)
    bank, known = units[memory].reshape(-1, units.shape[2]), labels[memory].reshape(-1)
    shares = []
    for asked, right in zip(units[~memory], labels[~memory], strict=True):
        order = np.argpartition(-asked @ bank.T, NEIGHBOURS - 1, axis=1)
        near = order[:, :NEIGHBOURS]
        said = [np.bincount(votes).argmax() for votes in known[near]]
        shares.append(np.mean(said == right))
    return np.array(shares)


def probe_position(labels, memory):
    """As `probe`, but told by where a patch is: the most frequent label there."""
    said = [np.bincount(column).argmax() for column in labels[memory].T]
    return (labels[~memory] == said).mean(axis=1)


def cosine(ours, theirs):
    """Of each patch's two features. [B, n, D] twice -> [B, n]; 0 for a zero feature."""
    return (normalised(ours) * normalised(theirs)).sum(axis=2)


def normalised(features):
    """Features of length 1, zero ones stay. [B, n, D] -> [B, n, D] float32."""
    features = np.asarray(features, np.float32)
    norms = np.linalg.norm(features, axis=2, keepdims=True)
    return features / np.where(norms > 0, norms, 1)
