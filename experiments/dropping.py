"""Methods that drop the tokens that they would merge: a fate of `parts` and `late`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from imagepiece_jax.reduction import ops
from imagepiece_jax.reduction.methods.atc import ATC, Agglomeration
from imagepiece_jax.reduction.methods.dpc_knn import DensityPeaks, DpcKnn
from imagepiece_jax.reduction.methods.mctf import MCTF
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.methods.pitome import PiToMe
from imagepiece_jax.reduction.methods.tofu import without_joined
from imagepiece_jax.reduction.methods.tome import ToMe
from imagepiece_jax.reduction.reducers import Reducer

END = "_dropped"  # of the names of these methods
CLUSTERING = (Agglomeration, DensityPeaks)  # their slots are clusters of equals


@dataclasses.dataclass(frozen=True)
class Dropping(Reducer):
    """Drops the tokens that `reducer` would merge: one token of each slot stays.

    The token that stays is the one that others would join. Of a cluster it is the one
    that is nearest to the cluster's mean, or the first of equally near ones.
    """

    reducer: Reducer

    @property
    def needs(self):
        return self.reducer.needs

    @property
    def metric(self):
        return self.reducer.metric

    def check_fits(self, grid, counts):
        self.reducer.check_fits(grid, counts)

    def __call__(self, taps, counts, train=False):
        merged = self.reducer(taps, counts, train)
        keep = merged.index.keep
        if isinstance(self.reducer, CLUSTERING):
            keep = nearest_to_means(taps.x, taps.size, merged)
        return without_joined(merged, keep, counts)


def nearest_to_means(x, size, result):
    """The token of each slot that is nearest to the slot's mean. [B, n_out] int32.

    That token has the least sum of weighted squared distances to the tokens of its
    slot. The distances to the mean itself would have rounding errors: of two tokens
    with the same weight, which are equally near to their mean, not always the first
    would be kept.

    x: [B, n, D]
    size: [B, n], of the tokens
    result: an Assignment whose slots are means
    """
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    squares = ops.squared_distances(x)
    weight = jax.lax.stop_gradient(result.weights(size))
    together = result.dest[:, :, None] == result.dest[:, None, :]
    cost = jnp.where(together, weight[:, None, :] * squares, 0)
    cost = jnp.sum(cost, axis=-1)
    slots = jnp.arange(result.n_out, dtype=jnp.int32)[None, :, None]
    belongs = result.dest[:, None, :] == slots
    cost = jnp.where(belongs, cost[:, None, :], jnp.inf)
    return jnp.argmin(cost, axis=-1).astype(jnp.int32)


def dropping(kind: type[Method]) -> type[Method]:
    """The method whose steps are those of `kind`, and drop what they would merge."""

    @dataclasses.dataclass(frozen=True)
    class Dropped(kind):
        def planned_steps(self, depth, patches):
            steps = []
            for step in super().planned_steps(depth, patches):
                reducer = Dropping(step.reducer)
                steps.append(dataclasses.replace(step, reducer=reducer))
            return steps

    return Dropped


def as_method(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a reduction, whose method drops where the fate "drop" is among them."""
    fields = dict(fields)
    if fields.pop("fate", None):
        fields["name"] += END
    return fields


MERGING = {"tome": ToMe, "pitome": PiToMe, "mctf": MCTF, "dpc_knn": DpcKnn, "atc": ATC}
DROPPED = {f"{name}{END}": dropping(kind) for name, kind in MERGING.items()}
