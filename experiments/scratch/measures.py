"""What a run leaves besides its accuracy: harsher rates, masks, what is merged.

Everything is of the trained model, without further training: accuracy at lower keep
rates, accuracy behind random masks (the paper's table 4), and of ImagePiece the
measures of tables 5, 6 and 8. One pass over the test images for each figure but the
last three, which share one.
"""

import functools

import numpy as np

from experiments import analysis, masking, merges, published

PAPER_PATCHES = 196  # of the images that the paper's masks cover, a mask a patch
DIGITS = 5


class Measures:
    """The programs of a `train.Trainee`'s measures, compiled once for all seeds."""

    def __init__(self, trainee):
        self.trainee, options = trainee, trainee.options
        self.harsher = {
            rate: trainee.make_scorer(trainee.with_fields(keep_rate=rate))
            for rate in trainee.system.harsher
        }
        self.square = options.patch
        self.counts = mask_counts(options.image_size // options.patch)
        cover = functools.partial(masking.cover, square=self.square)
        self.masked = trainee.make_scorer(alter=cover)
        self.analyses, self.inside = {}, None
        sites = merges.sites(trainee.model)
        if any(site.merges and site.counts.candidates for site in sites):
            model = merges.observed(trainee.model)
            self.analyses = {
                "reassess": analysis.reassessing(model, trainee.system.method),
                "similarity": analysis.first_and_last_pairs(model),
                "lcb-similarity": analysis.first_pairs(
                    model, options.image_size // options.patch
                ),
            }
            self.inside = trainee.make_scorer(model, measure=self._measure)

    def _measure(self, outputs, batch):
        return {
            f"{name} {figure}": values
            for name, (measure, _) in self.analyses.items()
            for figure, values in measure(outputs, batch).items()
        }

    def of(self, variables, seed: int, data) -> dict:
        """Fields of a run's JSON: "harsher", "masked" and "merges".

        variables: replicated; masks are drawn by (seed, image): all systems of a seed
        have the same.
        """
        return {
            "harsher": {
                f"{rate:g}": _figures(self.trainee.evaluate(variables, seed, data, one))
                for rate, one in self.harsher.items()
            },
            "masked": {
                str(count): self._behind_masks(variables, seed, data, count)
                for count in self.counts
            },
            "merges": self._inside(variables, seed, data),
        }

    def _behind_masks(self, variables, seed, data, count):
        prepare = functools.partial(
            masking.with_corners,
            count=count,
            seed=seed,
            square=self.square,
            most=max(self.counts),
        )
        found = self.trainee.evaluate(variables, seed, data, self.masked, prepare)
        return _figures(found)

    def _inside(self, variables, seed, data):
        if self.inside is None:
            return {}
        each = self.trainee.evaluate(variables, seed, data, self.inside).each
        found = {}
        for name, (_, summarize) in self.analyses.items():
            own = {
                key.removeprefix(f"{name} "): values
                for key, values in each.items()
                if key.startswith(f"{name} ")
            }
            found[name] = _rounded(summarize(own))
        return found


def mask_counts(side: int) -> tuple[int, ...]:
    """The paper's numbers of masks at the same share of side * side patches."""
    share = side * side / PAPER_PATCHES
    return tuple(dict.fromkeys(max(1, round(m * share)) for m in published.MASKS))


def packed(right) -> str:
    """A bit for each image in the order of the set, first image first, as hex."""
    return np.packbits(right).tobytes().hex()


def _figures(result):
    return {"acc1": result.acc1, "right": packed(result.each["right"])}


def _rounded(value):
    """Estimates as lists, of as many digits as they mean."""
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [round(float(number), DIGITS) for number in value]
    return value
