"""Near ties: where the plain and the fused reduction may decide differently.

Both round, in another order and with another exp. Where two scores or similarities are
nearly equal they may choose differently: a gap is measured in units of what rounding
explains (`score_rounding`, `cosine_rounding`), and above 1 it is a fault.

The error of a sum of n terms grows as n at worst and as sqrt(n) as rounding goes, here
in proportion to the sum of the terms' magnitudes, which is far above the typical error.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.models.attention import class_attention
from imagepiece_jax.reduction import apply, ops, reducers
from imagepiece_jax.reduction.schedule import Counts
from imagepiece_jax.reduction.tokens import Taps, TokenState

EPS = float(np.finfo(np.float32).eps)
EXP = 2  # ulp: the error of CUDA's expf over its full range, by its documentation


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
        state = apply.apply(TokenState(x=x, size=size, num_prefix=prefix), result)
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
        """The smallest gap of what one image's decision compares; up to 1 it is a tie.

        In units of what rounding explains. Arrays of one image ([1, N, ..]); scores and
        cosines are the plain version's.
        """
        scores = np.asarray(self.scores(query, key, size), np.float64)[0]
        ties = score_rounding(query, key) * scores
        ranked = np.argsort(-scores, kind="stable")
        n, dealt, parity = len(scores), np.arange(len(scores)), self.num_prefix % 2
        gaps = [np.inf]
        if self.rule == "prune":
            at = ranked[self.n_out - 1 : self.n_out + 1]
            return min([*gaps, *_steps(scores[at], ties[at])])
        if self.rule == "retokenize":
            line = ranked[n - self.candidates :]
            at = ranked[n - self.candidates - 1 :]
            gaps += [*_steps(scores[at], ties[at])]
            dealt = line if self.order == "descending" else line[::-1]
            parity = self.parity
        sides = dealt[parity::2], dealt[1 - parity :: 2]
        metric, rounding = self.metric(key), cosine_rounding(key[:, self.num_prefix :])
        cosines = np.asarray(ops.cosine(*(metric[:, side] for side in sides)))[0]
        ties = rounding[sides[0]][:, None] + rounding[sides[1]]
        # Highest first: of each row the two best, and the rows by their best.
        two = np.argsort(-cosines, axis=1, kind="stable")[:, :2]
        cosines, ties = (np.take_along_axis(a, two, axis=1) for a in (cosines, ties))
        rows, leaving = np.argsort(-cosines[:, 0], kind="stable"), n - self.n_out
        at = rows[leaving - 1 : leaving + 1]
        gaps += [*_steps(cosines[at, 0], ties[at, 0])]
        for row in rows[: leaving + 1]:
            gaps += [*_steps(cosines[row], ties[row])]
        return min(gaps)


def score_rounding(query, key):
    """Relative error of class attention that rounding explains, of one image.

    query, key: [1, N, H, d]. A logit's absolute error is its exponential's relative
    one: that of a sum of d products, and of what is subtracted from it, the highest
    logit or the logarithm of the sum. Then two exps, and sums over tokens and heads.
    """
    query, key = (np.asarray(a, np.float64)[0] for a in (query, key))
    tokens, heads, width = key.shape
    terms = np.abs(query[0] * key).sum(axis=-1).max() / np.sqrt(width)
    logit = np.sqrt(width) * terms + 2 * (terms + np.log(tokens))
    return EPS * (logit + 2 * EXP + np.sqrt(tokens) + np.sqrt(heads))


def cosine_rounding(key):
    """What each of two tokens adds to the absolute error of their cosine, [n].

    key: [1, n, H, d] of one image. The magnitudes of a unit vector's products sum to 1
    at most, of d terms; so do the squares that it is divided by. The mean over heads
    comes before, and loses what the heads cancel.
    """
    key = np.asarray(key, np.float64)[0]
    _, heads, width = key.shape
    mean, whole = (np.linalg.norm(a.mean(axis=1), axis=-1) for a in (key, np.abs(key)))
    lost = whole / np.maximum(mean, EPS)
    return EPS * (np.sqrt(width) + np.sqrt(heads) * lost)


@dataclasses.dataclass
class Comparison:
    """What came of many images; `gaps` of those that differ, 1 is what rounding does.

    error: the largest of the others' outputs, in units of the type's last place at the
    largest number.
    """

    images: int = 0
    gaps: list[float] = dataclasses.field(default_factory=list)
    error: float = 0.0

    @property
    def agrees(self):
        """Below 1 % differ, all of them near ties, and outputs but for rounding."""
        near = all(gap <= 1 for gap in self.gaps)
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


def _steps(values, rounding):
    """Gaps between neighbours, over the larger one's rounding. [m] twice -> [m - 1]."""
    rounding = np.maximum(rounding[1:], rounding[:-1])
    return np.abs(np.diff(values)) / np.maximum(rounding, np.finfo(np.float32).tiny)
