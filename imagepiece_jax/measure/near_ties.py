"""Do the plain and the fused reduction decide alike, and where not, was it a near tie?

Both round, in another order. Where two scores or similarities are nearly equal they may
choose differently: the gaps between all that a decision compares say how near it was.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.models.attention import class_attention
from imagepiece_jax.reduction import moving, ops, reducers
from imagepiece_jax.reduction.schedule import Counts
from imagepiece_jax.reduction.tokens import Taps, TokenState

NEAR = 4  # a gap of at most so many float32 ulp


@dataclasses.dataclass(frozen=True)
class Reduction:
    """One reduction: rule "prune", "retokenize" or "bipartite", counts and options.

    What is reduced is everywhere (query, key [B, N, H, d], x [B, N, D], size [B, N]).
    """

    rule: str
    n_out: int
    candidates: int = 0
    num_prefix: int = 1
    prop_attn: bool = False
    order: str = "descending"
    parity: int = 0
    size_weighting: bool = True

    def fused(self, query, key, x, size):
        """-> (x, size, dest), as one kernel."""
        state = TokenState(x=x, size=size, num_prefix=self.num_prefix)
        state, result = self._reducer().fused(
            query, key, state, self._counts(x), self.prop_attn
        )
        return state.x, state.size, result.dest

    def plain(self, query, key, x, size):
        """-> (x, size, dest), by class attention, a reducer and moving.apply."""
        prefix = self.num_prefix
        taps = Taps(
            x=x[:, prefix:],
            size=size[:, prefix:],
            metric=self.metric(key),
            cls_attn=self.scores(query, key, size),
            num_prefix=prefix,
        )
        result = self._reducer()(taps, self._counts(x))
        state = moving.apply(TokenState(x=x, size=size, num_prefix=prefix), result)
        return state.x, state.size, result.dest

    def scores(self, query, key, size):
        """Class attention of the image tokens, [B, n] float32."""
        bias = jnp.log(size) if self.prop_attn else None
        return class_attention(query[:, 0], key, bias)[:, self.num_prefix :]

    def metric(self, key):
        """What is compared, [B, n, d] float32."""
        return jnp.mean(key[:, self.num_prefix :], axis=2, dtype=jnp.float32)

    def _counts(self, x):
        n = x.shape[1] - self.num_prefix
        return Counts(n_in=n, n_out=self.n_out, candidates=self.candidates)

    def _reducer(self):
        if self.rule == "prune":
            return reducers.TopK()
        if self.rule == "bipartite":
            return reducers.Bipartite()
        return reducers.Retokenize(
            order=self.order, parity=self.parity, size_weighting=self.size_weighting
        )

    def gap(self, query, key, size):
        """The smallest gap of what one image's decision compares, in float32 ulp.

        Arrays of one image ([1, N, ..]); scores and cosines are the plain version's.
        """
        scores = np.asarray(self.scores(query, key, size))[0]
        ranked = np.argsort(-scores, kind="stable")
        n, dealt, parity = len(scores), np.arange(len(scores)), self.num_prefix % 2
        gaps = [np.inf]
        if self.rule == "prune":
            gaps += [*_steps(scores[ranked[self.n_out - 1 : self.n_out + 1]])]
            return min(gaps)
        if self.rule == "retokenize":
            line = ranked[n - self.candidates :]
            gaps += [*_steps(scores[ranked[n - self.candidates - 1 :]])]
            dealt = line if self.order == "descending" else line[::-1]
            parity = self.parity
        metric = self.metric(key)
        sides = metric[:, dealt[parity::2]], metric[:, dealt[1 - parity :: 2]]
        # Highest first: of each row the two best, and the rows by their best.
        cosines = -np.sort(-np.asarray(ops.cosine(*sides))[0], axis=1)
        best = cosines[np.argsort(-cosines[:, 0], kind="stable")]
        leaving = n - self.n_out
        gaps += [*_steps(best[leaving - 1 : leaving + 1, 0])]
        for row in best[: leaving + 1]:
            gaps += [*_steps(row[:2])]
        return min(gaps)


@dataclasses.dataclass
class Comparison:
    """What came of many images; `gaps` of those that differ, in ulp.

    error: the largest of the others' outputs, in units of the type's last place at the
    largest number.
    """

    images: int = 0
    gaps: list[float] = dataclasses.field(default_factory=list)
    error: float = 0.0

    @property
    def agrees(self):
        """Below 1 % differ, all of them near ties, and outputs but for rounding."""
        near = all(gap <= NEAR for gap in self.gaps)
        return near and 100 * len(self.gaps) < self.images and self.error <= 2

    def add(self, reduction, arrays):
        """One batch: both versions of `reduction`, image by image."""
        plain, ours = _both(reduction, arrays)
        same = np.all(plain[2] == ours[2], axis=1) & np.all(plain[1] == ours[1], axis=1)
        query, key, _, size = arrays
        for i in np.flatnonzero(~same):
            one = slice(i, i + 1)
            self.gaps.append(float(reduction.gap(query[one], key[one], size[one])))
        place = float(jnp.finfo(plain[0].dtype).eps)
        if same.any():
            a, b = (np.asarray(out[0][same], np.float64) for out in (plain, ours))
            self.error = max(self.error, np.abs(a - b).max() / np.abs(a).max() / place)
        self.images += len(same)


def _both(reduction, arrays):
    versions = (_plain, _fused)
    return [[np.asarray(a) for a in run(reduction, *arrays)] for run in versions]


@jax.jit(static_argnums=0)
def _plain(reduction, *arrays):
    return reduction.plain(*arrays)


@jax.jit(static_argnums=0)
def _fused(reduction, *arrays):
    return reduction.fused(*arrays)


def _steps(values):
    """Gaps between neighbours, in ulp of the larger one. [m] float32 -> [m - 1]."""
    size = np.maximum(np.abs(values[1:]), np.abs(values[:-1]))
    return np.abs(np.diff(values.astype(np.float64))) / np.spacing(size)
