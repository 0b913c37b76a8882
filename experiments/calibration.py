"""Whether a schedule chosen on a few images of a model beats the fixed ones.

64 images without labels choose among 28 schedules, at every cost; other images judge
the choice beside the best of the fixed schedules. Images change by the divergence of
their class probabilities from the dense model's; of a model without a head, by the
features: the mean over patches of 1 - cosine, plus the same of the pooled vector.
"""

import numpy as np
from scipy.special import log_softmax

from experiments import parts, render
from experiments.patch_features import cosine
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.inference.features import FILLS, feature_map, final_norm
from imagepiece_jax.models.config import patch_grid
from imagepiece_jax.reduction import settings

# The best for classes and for features, by docs/tables/parts.
CLASSES = {"name": "mctf", "score": "class", "prop_attn": True}
FEATURES = {"name": "tome", "prop_attn": True}
COSTS = (0.6, 0.5, 0.4)
IMAGES = 64  # that choose, evenly spaced over the even rows
FIXED = parts.SCHEDULES
MIDDLES, SLOPES = (0.3, 0.4, 0.5, 0.6, 0.7), (2, 4, 8, 16)
CURVES = tuple(f"curve-{middle:g}-{slope}" for middle in MIDDLES for slope in SLOPES)
NAMES = ("logits", "patches", "pooled")  # of what is compared


class Change:
    """How much each image's outputs change, by reduction and part of the images."""

    def __init__(self, context):
        self._context, self._weights = context, context.pretrained
        rows = np.arange(len(context.images))
        even = rows[parts.EVEN]
        few = even[np.linspace(0, len(even), IMAGES, endpoint=False).astype(int)]
        self._images = {
            "few": context.images.subset(few),
            "odd": context.images.subset(rows[parts.ODD]),
        }
        self._dense: dict = {}
        labeled = self._weights.config.num_classes
        self.selector = CLASSES if labeled else FEATURES

    def of(self, schedule: str, macs: float, images: str) -> np.ndarray | None:
        """[images]; None where no counts of the schedule come near the cost."""
        reduction = {**self.selector, "macs": macs, "counts": schedule}
        try:
            self._weights.model(reduction)
        except InputError:
            return None
        subset = self._images[images]
        checkpoint = self._context.checkpoint(self._weights, subset)
        setting = checkpoint.setting("calibration", reduction) | {"rows": images}
        what = f"{settings.label(reduction)}, {len(subset)} images"
        found = self._context.cache.result(
            setting, lambda: {"change": self._measured(reduction, images)}, what
        )
        return np.array(found["change"])

    def _measured(self, reduction, images):
        if images not in self._dense:
            self._dense[images] = self._outputs(settings.DENSE, images)
        ours, theirs = self._outputs(reduction, images), self._dense[images]
        if "logits" in ours:
            ours, theirs = (
                log_softmax(each["logits"].astype(np.float64), axis=1)
                for each in (ours, theirs)
            )
            change = np.sum(np.exp(theirs) * (theirs - ours), axis=1)
        else:
            change = sum(
                np.mean(1 - cosine(ours[name], theirs[name]), axis=1) for name in ours
            )
        return [float(f"{value:.6g}") for value in change]

    def _outputs(self, reduction, images):
        vit = self._weights.pretrained(reduction)
        labeled, model = bool(self._weights.config.num_classes), vit.model
        norm = None if labeled else final_norm(vit.model, vit.variables)
        grid = patch_grid(vit.image_size, model.patch_size, cut=True)

        def measure(outputs, batch):
            if labeled:
                return {"logits": outputs.logits}
            maps = feature_map(outputs, grid, FILLS[0], norm)
            patches = maps.reshape(len(maps), -1, maps.shape[3])
            return {"patches": patches, "pooled": outputs.pooled[:, None]}

        each = self._context.measurement(model, vit.variables, measure)
        found = each(self._images[images])
        return {name: found[name] for name in NAMES if name in found}


def calibration(context):
    """Chosen beside fixed schedules at every cost, as calibration.md."""
    if len(context.images) < 4 * IMAGES:
        raise InputError(
            f"--data has {len(context.images)} images; allowed: {4 * IMAGES} or more"
        )
    change = Change(context)
    lines, tests = [], []
    for macs in COSTS:
        few = {name: change.of(name, macs, "few") for name in (*FIXED, *CURVES)}
        few = {name: each.mean() for name, each in few.items() if each is not None}
        odd = {name: change.of(name, macs, "odd") for name in FIXED}
        odd = {name: each for name, each in odd.items() if each is not None}
        chosen = min(few, key=few.get)
        fixed = min(odd, key=lambda name: odd[name].mean())
        ours = change.of(chosen, macs, "odd")
        lines += [
            [macs, f"{chosen}, chosen of {len(few)}", _mean(ours)],
            [macs, f"{fixed}, the best fixed one", _mean(odd[fixed])],
        ]
        tests.append(
            parts.paired(f"{chosen} - {fixed} at {macs}", ours, odd[fixed], "change")
        )
    render.page(
        context,
        "calibration",
        f"a schedule chosen on {IMAGES} images beside fixed ones",
        render.note(context),
        render.table(["share of the MACs", "schedule", "change on odd rows"], lines),
        parts.tests_table(tests),
    )


def _mean(values):
    return statistics.format_estimate(statistics.student(values), 3)
