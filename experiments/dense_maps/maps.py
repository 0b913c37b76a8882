"""Maps of one checkpoint by reduction, and how they are compared with dense ones.

A feature map has a feature for every patch, after the final norm (`features`). A dense
head makes of it the saliency of every pixel, from 0 to 1. Maps of a reduced model are
compared with those of the dense model on the same images:

* correlation: Pearson's r over the pixels;
* IoU: of the pixels above THRESHOLD, their intersection over their union. Images
  without such a pixel in the dense map have none, and are counted apart.
"""

import functools
import hashlib
import math
import pathlib

import jax
import numpy as np

from experiments import intervals
from experiments.dense_maps.head import decode, read_head
from imagepiece_jax.common.image_size import patch_grid, sides
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.cache import plan_facts
from imagepiece_jax.inference.features import FILLS, feature_map, final_norm
from imagepiece_jax.reduction import settings

THRESHOLD = 0.5
HEAD = ("correlation", "IoU", "a pixel where dense has none")
FLOOR = "mean of the other maps"
FILLED = {
    "nearest": "the nearest kept token's",
    "last": "their last feature",
    "zero": "zero",
    "class": "the class token's",
}


class FeatureMaps:
    """Feature maps of one checkpoint on the images of a Context."""

    def __init__(self, context):
        self.context, self.weights = context, context.pretrained

    def run(self, reduction, read, tokens=None, images=None):
        """(the model, read(outputs, batch, patches) of all images, by name).

        read: gives {name: [B, ..]}; patches(fill) is the feature map [B, h, w, D]
        tokens: as `imagepiece_jax.features` takes them
        images: others than the context's
        """
        vit = self.weights.with_reduction(reduction, self.weights.source.seed)
        model = vit.model_with_tokens(tokens)
        norm = final_norm(vit.model, vit.variables)
        grid = patch_grid(vit.image_size, model.patch_size, cut=True)

        def measure(outputs, batch):
            patches = functools.partial(feature_map, outputs, grid, norm=norm)
            return read(outputs, batch, patches)

        return model, self.context.measure(model, vit.variables, measure, images)

    def result(self, kind, reduction, measured, *, tokens=None, images=None, **more):
        """The cached result of measured(); `more`: what else decides it."""
        checkpoint = self.context.checkpoint(self.weights, images, tokens)
        setting = checkpoint.setting(kind, reduction) | more
        what = f"{kind} of {settings.label(reduction)}"
        what = f"{what}, {len(self.context.images)} images"
        return self.context.cache.result(setting, measured, what)


class HeadMaps(FeatureMaps):
    """The maps of a dense head, from the features.

    fills: how many ways --fills may name
    """

    def __init__(self, context, fills=1):
        super().__init__(context)
        named = getattr(context.settings, "fills", FILLS[:1])
        if not {*named} <= {*FILLS} or len(named) > fills:
            number = "one" if fills == 1 else "one or more"
            context.settings.refuse("fills", f"{number} of {', '.join(FILLS)}")
        path = context.settings.decoder
        if path is None:
            allowed = "the weights file of a head that makes saliency maps"
            raise InputError("is missing", field="--decoder", allowed=allowed)
        self.head = read_head(path, self.weights.model.embed_dim)
        content = pathlib.Path(path).read_bytes()
        self.digest = hashlib.sha256(content).hexdigest()[:16]
        size = sides(self.weights.image_size)
        self.decode = jax.jit(functools.partial(decode, self.head, size=size))

    def draw(self, reduction, fill: str, tokens: int | None = None):
        """The model, its maps [images, H, W], the share of patches that each drops."""

        def read(outputs, batch, patches):
            features = patches(fill=fill)
            state = outputs.state
            left = state.size[:, state.num_prefix :].sum(axis=1)
            dropped = 1 - left / math.prod(features.shape[1:3])
            return {"map": self.decode(features), "dropped": dropped}

        model, each = self.run(reduction, read, tokens)
        return model, each["map"], each["dropped"]

    @functools.cached_property
    def dense(self):
        """The dense model's maps."""
        return self.draw(settings.DENSE, "last")[1]

    def floor(self):
        """Figures of the mean of all other images' dense maps, as if it were a map."""
        if len(self.context.images) < 2:
            allowed = "2 or more"
            raise InputError("has 1 image", field="--data", value=1, allowed=allowed)

        def measured():
            dense = self.dense
            flat = of_other_images(dense.reshape(len(dense), -1))
            return figures(flat.reshape(dense.shape), dense)

        return self._saliency(settings.DENSE, FLOOR, measured)

    def is_measured(self, reduction, fill):
        """Whether `compare` has its result already."""
        setting = self.context.checkpoint(self.weights).setting("saliency", reduction)
        setting |= {"decoder": self.digest, "fill": fill}
        return setting in self.context.cache

    def compare(self, reduction, fill, tokens=None):
        """Figures of each image beside the dense model's, as JSON has them."""

        def measured():
            dense = self.dense
            model, ours, dropped = self.draw(reduction, fill, tokens)
            return figures(ours, dense) | {
                "dropped": round(float(np.mean(dropped)), 5),
                **plan_facts(model, self.weights.image_size),
            }

        return self._saliency(reduction, fill, measured, tokens)

    def _saliency(self, reduction, fill, measured, tokens=None):
        more = {"decoder": self.digest, "fill": fill}
        return self.result("saliency", reduction, measured, tokens=tokens, **more)


def figures(ours, theirs) -> dict:
    """Correlation and IoU of each image, JSON values: IoU is null where there is none.

    ours, theirs: maps [B, H, W]; extra: the images where ours alone has a pixel above
    THRESHOLD.
    """
    alike = correlation(*(maps.reshape(len(maps), -1) for maps in (ours, theirs)))
    shared = overlap(ours, theirs)
    extra = np.isnan(shared) & (ours > THRESHOLD).any(axis=(1, 2))
    return {
        "correlation": [round(float(value), 5) for value in alike],
        "iou": [None if np.isnan(v) else round(float(v), 5) for v in shared],
        "extra": int(extra.sum()),
    }


def correlation(ours, theirs):
    """Pearson's r of each row. [B, m] twice -> [B]; 0 where a row is constant."""
    ours, theirs = (x - x.mean(axis=1, keepdims=True) for x in (ours, theirs))
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return (ours * theirs).sum(axis=1) / np.where(norms > 0, norms, 1)


def overlap(ours, theirs):
    """IoU of the pixels above THRESHOLD. [B, ..] twice -> [B]; NaN: theirs has none."""
    axes = tuple(range(1, theirs.ndim))
    ours, theirs = ours > THRESHOLD, theirs > THRESHOLD
    shared, either = (ours & theirs).sum(axis=axes), (ours | theirs).sum(axis=axes)
    some = theirs.any(axis=axes)
    return np.where(some, shared / np.maximum(either, 1), np.nan)


def of_other_images(pairs):
    """For each image the mean of all others: what position explains. [B, m]."""
    return (pairs.sum(axis=0) - pairs) / (len(pairs) - 1)


def estimate(result, name, base=None):
    """Mean over images, less that of `base`, by bootstrap; None where there is none."""
    values = np.array(result[name], float)
    values = values if base is None else values - np.array(base[name], float)
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    return intervals.bootstrap(lambda index: float(values[index].mean()), len(values))


def cells(result):
    """Figures as text, a cell for each of HEAD."""
    both = (estimate(result, name) for name in ("correlation", "iou"))
    return [*(statistics.format_estimate(each, 3) for each in both), result["extra"]]
