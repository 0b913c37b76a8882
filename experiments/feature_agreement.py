"""Figures of how alike two feature maps are, and a table of them.

Maps of the same images are compared, [B, n, D] with a feature for each patch. The
cosine of a patch's two features says whether a head that was trained on the dense ones
can read the others. The other figures do not depend on the scale or direction of single
features, only on their similarity:

* self-similarity: which patches of an image are alike? The correlation, over all pairs
  of patches, of their cosines in one map with those in the other.
* probe: does a patch still say what it shows? Patches are labeled by clusters of the
  dense model's features; a nearest-neighbor classifier reads these labels from the
  map, with half of the images as its memory, tested on the other half.

Merging makes patches equal, so self-similarity inside a group is free of charge; the
probe compares across images, where being equal does not help.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.image_size import whole_patches
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.data.decode import UnreadableImage
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.data.sources import open_source
from imagepiece_jax.data.transforms import EvalTransform
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.inference.features import FILLS, feature_map, final_norm
from imagepiece_jax.pretrained.trained_model import Pretrained
from imagepiece_jax.reduction.tokens import unmerge

CLUSTERS, NEIGHBORS, SEED = 32, 5, 0
BATCH = 10
FEWEST = 4  # images: half of them are the memory, the others are tested, and both vary
FATES = ("alone", "merged", "dropped")
FILLED = {
    "nearest": "the nearest kept token's",
    "last": "their last feature",
    "zero": "zero",
    "class": "the class token's",
}
POSITION = "position alone"
HEAD = [
    *("setting", "dropped patches get", "tokens", "GMACs", "self-similarity", "probe"),
    *("cosine", *(f"cosine, {fate}" for fate in FATES)),
]


def self_similarity(features):
    """Cosines of all pairs of patches of each image. [B, n, D] -> [B, n (n - 1) / 2].

    A patch without a feature (zero) is like nothing: its cosines are 0.
    """
    units = normalized(features)
    first, second = np.triu_indices(features.shape[1], k=1)
    return np.stack([(image @ image.T)[first, second] for image in units])


def correlation(ours, theirs):
    """Pearson's r of each row. [B, m] twice -> [B]; 0 where a row is constant."""
    ours, theirs = (x - x.mean(axis=1, keepdims=True) for x in (ours, theirs))
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return (ours * theirs).sum(axis=1) / np.where(norms > 0, norms, 1)


def of_other_images(pairs):
    """For each image the mean of all others: what position explains. [B, m]."""
    return (pairs.sum(axis=0) - pairs) / (len(pairs) - 1)


def cluster_labels(dense, memory):
    """A label for every patch: its cluster in the dense map. [B, n, D] -> [B, n] int.

    memory: [B] bool, the images whose patches make the clusters.
    """
    from sklearn.cluster import KMeans

    units = normalized(dense)
    width = units.shape[2]
    clusters = KMeans(CLUSTERS, n_init=1, random_state=SEED)
    clusters.fit(units[memory].reshape(-1, width))
    return clusters.predict(units.reshape(-1, width)).reshape(units.shape[:2])


def probe(features, labels, memory):
    """Share of patches read correctly in each image outside of `memory`. -> [images].

    features [B, n, D], labels [B, n] int, memory [B] bool. A patch gets the most
    frequent label among its nearest patches by cosine.
    """
    units = normalized(features)
    bank = units[memory].reshape(-1, units.shape[2])
    labels_of_bank = labels[memory].reshape(-1)
    shares = []
    for tested, right in zip(units[~memory], labels[~memory], strict=True):
        order = np.argpartition(-tested @ bank.T, NEIGHBORS - 1, axis=1)
        near = order[:, :NEIGHBORS]
        read = [np.bincount(votes).argmax() for votes in labels_of_bank[near]]
        shares.append(np.mean(read == right))
    return np.array(shares)


def probe_position(labels, memory):
    """As `probe`, by the most frequent label at a patch's position."""
    read = [np.bincount(column).argmax() for column in labels[memory].T]
    return (labels[~memory] == read).mean(axis=1)


def cosine(ours, theirs):
    """Cosine of a patch's two features. [B, n, D] twice -> [B, n]; 0 for a zero one."""
    return (normalized(ours) * normalized(theirs)).sum(axis=2)


def normalized(features):
    """Features of length 1, zero ones stay. [B, n, D] -> [B, n, D] float32."""
    features = np.asarray(features, np.float32)
    norms = np.linalg.norm(features, axis=2, keepdims=True)
    return features / np.where(norms > 0, norms, 1)


def read_images(data: str, count: int, transform: EvalTransform) -> np.ndarray:
    """`count` images of a set, spread over it, as uint8 [B, H, W, 3].

    Its classes need not be the model's: features have none. Unreadable images are left
    out.
    """
    source, images = open_source(data, "val"), []
    for index in np.linspace(0, len(source) - 1, min(count, len(source))).astype(int):
        try:
            image, _ = source.read(int(index))
        except UnreadableImage:
            continue
        try:
            images.append(transform(image))
        except InputError as error:
            raise InputError(f"{source.name(int(index))}: {error}") from error
    if len(images) < FEWEST:
        raise InputError(
            f"--data {data} has {len(images)} readable images; allowed are {FEWEST} or "
            "more"
        )
    return np.stack(images)


def compare(
    dense: Pretrained, reduced: Iterable[Pretrained], images: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Rows of the table: the dense model, position alone, then each reduced model.

    images: uint8 [B, H, W, 3]. Intervals are (value, low, high).
    """
    theirs, _, tokens = maps(dense, images)
    theirs = theirs[FILLS[0]]
    memory = np.arange(len(images)) % 2 == 0
    pairs = self_similarity(theirs)
    labels = cluster_labels(theirs, memory)

    def figures(ours, right):
        alike = correlation(ours, pairs)
        return {
            "self_similarity": statistics.mean(alike),
            "probe": statistics.mean(right),
        }

    row = {"setting": dense.label, "tokens": tokens, "gmacs": dense.gmacs}
    yield row | figures(pairs, probe(theirs, labels, memory))
    right = probe_position(labels, memory)
    yield {"setting": POSITION} | figures(of_other_images(pairs), right)
    for vit in reduced:
        ours, fate, tokens = maps(vit, images)
        row = {"setting": vit.label, "tokens": tokens, "gmacs": vit.gmacs}
        drops, fills = "dropped" in fate, list(ours)
        for fill in fills if drops else fills[:1]:
            near = cosine(ours[fill], theirs)
            row["fill"] = fill if drops else None
            row["agreement"] = statistics.mean(near.mean(axis=1))
            row["cosine"] = {
                f: float(near[fate == f].mean()) for f in FATES if f in fate
            }
            right = probe(ours[fill], labels, memory)
            yield row | figures(self_similarity(ours[fill]), right)


def table(rows: Sequence[dict[str, Any]], images: str) -> str:
    """The rows as a Markdown table; `images` says how many and which."""
    lines = markdown_table(HEAD, map(cells, rows))
    note = f"{images}; 95 % intervals; the probe is tested on half of them."
    return "\n".join(lines) + f"\n\n{note}\n"


def cells(row: dict[str, Any]) -> list[str]:
    """A row as text."""
    near = row.get("cosine", {})
    return [
        row["setting"],
        FILLED.get(row.get("fill"), ""),
        str(row.get("tokens", "")),
        f"{row['gmacs']:.3f}" if "gmacs" in row else "",
        statistics.format_estimate(row["self_similarity"], 3),
        statistics.format_estimate(row["probe"], 3),
        statistics.format_estimate(row["agreement"], 3) if near else "",
        *(f"{near[fate]:.3f}" if fate in near else "" for fate in FATES),
    ]


def maps(vit: Pretrained, images: np.ndarray):
    """(maps [B, n, D] by fill, fate [B, n] of each patch, image tokens at the end).

    A fate is "alone", "merged" or "dropped"; after a soft reduction all are merged.
    """
    parts = [
        jax.device_get(_maps(vit.variables, images[i : i + BATCH], vit.model))
        for i in range(0, len(images), BATCH)
    ]
    features, behind = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    fate = np.array(FATES)[np.select([behind == 1, behind > 1], [0, 1], 2)]
    features = {fill: features[fill] for fill in FILLS if fill in features}
    prefix = vit.model.arch.prefix
    return features, fate, vit.model.plan[-1].mlp_tokens - prefix


@functools.partial(jax.jit, static_argnames="model")
def _maps(variables, images, model):
    """Maps by fill, and the patches behind each patch's token, 0 where it is gone."""
    images = normalize(images, model.mean, model.std)
    with jax.default_matmul_precision("highest"):  # or TF32 on GPUs
        outputs = model.clone(trace_source=True).apply(variables, images)
    _, grid = whole_patches(images, model.patch_size)
    norm = final_norm(model, variables)
    features = {}
    for fill in FILLS:
        if fill != "class" or model.arch.class_token:
            whole = feature_map(outputs, grid, fill, norm)
            features[fill] = whole.reshape(whole.shape[0], math.prod(grid), -1)
    state = outputs.state
    if state.source is None:
        return features, jnp.full(features[FILLS[0]].shape[:2], 2.0)
    size = state.size[:, state.num_prefix :, None]
    return features, unmerge(size, state.source)[..., 0]
