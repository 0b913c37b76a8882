"""How much of the dense model's feature map reduced models keep.

The map of every method of --sweep (`inference.features.feature_map`, after the final
norm) is compared with that of the dense model on the same images, [B, n, D] with a
feature for each patch; methods that drop patches have a row for each way to fill them.
The cosine of a patch's two features says whether a head that was trained on the dense
ones can read the others. The other figures do not depend on the scale or direction of
single features, only on their similarity:

* self-similarity: which patches of an image are alike? The correlation, over all pairs
  of patches, of their cosines in one map with those in the other.
* probe: does a patch still say what it shows? Patches are labeled by clusters of the
  dense model's features; a nearest-neighbor classifier reads these labels from the
  map, with half of the images as its memory, tested on the other half.

Merging makes patches equal, so self-similarity inside a group is free of charge; the
probe compares across images, where being equal does not help.
"""

import functools

import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments import intervals, render
from experiments.dense_maps.maps import (
    FILLED,
    FeatureMaps,
    correlation,
    of_other_images,
)
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference.features import FILLS
from imagepiece_jax.reduction import settings
from imagepiece_jax.reduction.provenance import patch_slots, rows_of
from imagepiece_jax.reduction.tokens import DROPPED

CLUSTERS, NEIGHBORS, SEED = 32, 5, 0
FEWEST = 4  # images: half of them are the memory, the others are tested, and both vary
FATES = ("alone", "merged", "dropped")
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
    from sklearn.neighbors import NearestNeighbors

    bank, tested = (np.concatenate(features[part]) for part in (memory, ~memory))
    nearest = NearestNeighbors(n_neighbors=NEIGHBORS, metric="cosine").fit(bank)
    near = nearest.kneighbors(tested, return_distance=False)
    read = stats.mode(np.concatenate(labels[memory])[near], axis=1).mode
    return (read.reshape(-1, labels.shape[1]) == labels[~memory]).mean(axis=1)


def probe_position(labels, memory):
    """As `probe`, by the most frequent label at a patch's position."""
    read = stats.mode(labels[memory], axis=0).mode
    return (labels[~memory] == read).mean(axis=1)


def cosine(ours, theirs):
    """Cosine of a patch's two features. [B, n, D] twice -> [B, n]; 0 for a zero one."""
    return (normalized(ours) * normalized(theirs)).sum(axis=2)


def normalized(features):
    """Features of length 1, zero ones stay. [B, n, D] -> [B, n, D] float32."""
    features = np.asarray(features, np.float32)
    norms = np.linalg.norm(features, axis=2, keepdims=True)
    return features / np.where(norms > 0, norms, 1)


class Reference(FeatureMaps):
    """Feature maps of the dense model, beside which others stand."""

    @functools.cached_property
    def dense(self):
        """(its map, self-similarity, labels of the patches, which images are memory)"""
        features = self.maps(settings.DENSE)[0][FILLS[0]]
        memory = np.arange(len(features)) % 2 == 0
        labels = cluster_labels(features, memory)
        return features, self_similarity(features), labels, memory

    def maps(self, reduction):
        """(maps [images, n, D] by fill, fate [images, n] of each patch).

        A fate is one of FATES; after a soft reduction all patches are merged.
        """
        prefix = self.weights.model.arch.class_token
        fills = [fill for fill in FILLS if fill != "class" or prefix]

        def read(outputs, batch, patches):
            maps = {fill: patches(fill=fill) for fill in fills}
            flat = {fill: x.reshape(len(x), -1, x.shape[3]) for fill, x in maps.items()}
            state, shape = outputs.state, flat[FILLS[0]].shape[:2]
            *_, slots = patch_slots(outputs.results, len(state.x), shape[1])
            if slots is None:
                return flat | {"behind": jnp.full(shape, 2.0)}
            size = rows_of(state.size[:, state.num_prefix :], slots)
            return flat | {"behind": jnp.where(slots == DROPPED, 0, size)}

        _, each = self.run(reduction, read)
        behind = each["behind"]  # patches in the token of each, 0 where it is gone
        fate = np.array(FATES)[np.select([behind == 1, behind > 1], [0, 1], 2)]
        return {fill: each[fill] for fill in fills}, fate

    def rows(self, reduction) -> list[dict]:
        """Rows of the table, measured once; of the dense model position alone, too."""
        return self.result(
            "patch_features", reduction, lambda: {"rows": [*self._rows(reduction)]}
        )["rows"]

    def _rows(self, reduction):
        vit = self.weights.with_reduction(reduction, self.weights.source.seed)
        tokens = vit.model.image_tokens
        row = {"setting": vit.label, "tokens": tokens, "gmacs": vit.gmacs}
        theirs, pairs, labels, memory = self.dense

        def figures(ours, right):
            alike = intervals.mean(correlation(ours, pairs))
            return {"self_similarity": alike, "probe": intervals.mean(right)}

        if reduction == settings.DENSE:
            yield row | figures(pairs, probe(theirs, labels, memory))
            right = probe_position(labels, memory)
            yield {"setting": POSITION} | figures(of_other_images(pairs), right)
            return
        maps, fate = self.maps(reduction)
        drops = "dropped" in fate
        for fill in maps if drops else FILLS[:1]:
            ours = maps[fill]
            near = cosine(ours, theirs)
            right = probe(ours, labels, memory)
            yield row | {
                "fill": fill if drops else None,
                "agreement": intervals.mean(near.mean(axis=1)),
                "cosine": {
                    f: float(near[fate == f].mean()) for f in FATES if f in fate
                },
                **figures(self_similarity(ours), right),
            }


def patch_features(context):
    """The map of every reduction of --sweep beside the dense one; patch_features.md."""
    if len(context.images) < FEWEST:
        count, allowed = len(context.images), f"{FEWEST} or more"
        problem = f"has {count} images"
        raise InputError(problem, field="--data", value=count, allowed=allowed)
    reductions, reference = context.reductions, Reference(context)
    rows = [
        row
        for reduction in (settings.DENSE, *reductions)
        for row in reference.rows(reduction)
    ]
    title = "how much of the dense model's feature map is left"
    note = f"{render.note(context)} The probe is tested on half of the images."
    table = render.table(HEAD, map(_cells, rows))
    render.page(context, "patch_features", title, table, note)


def _cells(row):
    """A row as text."""
    near = row.get("cosine", {})
    cells = [row["setting"], FILLED.get(row.get("fill")), row.get("tokens")]
    cells += [f"{row['gmacs']:.3f}" if "gmacs" in row else None]
    for name in ("self_similarity", "probe", "agreement"):
        cells.append(render.interval(row[name], 3) if name in row else None)
    return cells + [f"{near[f]:.3f}" if f in near else None for f in FATES]
