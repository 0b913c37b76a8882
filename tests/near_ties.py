"""Agreement of two ways to compute a reduction, up to near ties.

Both round, in different orders and with different exps. Where two scores or
similarities are nearly equal they may decide differently: a gap is measured in units of
what rounding explains (`score_rounding`, `cosine_rounding`), and a gap above 1 is a
fault.

The error of a sum of n terms grows as n at worst and typically as sqrt(n), here in
proportion to the sum of the terms' magnitudes, which is far above the typical error.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.kernels import choice
from imagepiece_jax.reduction import moves, ops, reducers
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.diffrate import ALL, PruneAndMerge
from imagepiece_jax.reduction.methods.imagepiece import Retokenize
from imagepiece_jax.reduction.methods.peaks import KeepPeaks
from imagepiece_jax.reduction.state import ReducerInputs, TokenState

EPS = float(np.finfo(np.float32).eps)
EXP = 2  # ulp: the error of CUDA's expf over its full range, by its documentation
REDUCERS = {
    "prune": reducers.TopK(),
    "bipartite": reducers.Bipartite(),
    "join": PruneAndMerge(ALL),
    "peaks": KeepPeaks(score="class_and_mean"),
    "retokenize": Retokenize(),
}


@dataclasses.dataclass(frozen=True)
class OneReduction:
    """The reduction of one block by a rule, one of REDUCERS.

    All inputs are (query, key [B, N, H, d], x [B, N, D], size [B, N]).
    fast: in the form that `optimize(reductions="fast")` takes
    """

    rule: str
    n_out: int
    candidates: int = 0
    num_prefix: int = 1
    prop_attn: bool = False
    fast: bool = False

    @jax.jit(static_argnums=0)
    def __call__(self, query, key, x, size):
        """Return (x, size, dest) of attention, a reducer and `apply`."""
        prefix = self.num_prefix
        scores = self.scores(query, key, size)
        inputs = ReducerInputs(
            x=x[:, prefix:],
            size=size[:, prefix:],
            attn_size=size[:, prefix:],
            metric=self.metric(key),
            cls_attn=scores,
            cls_and_mean_attn=scores,
            num_prefix=prefix,
            all_x=x,
        )
        counts = StepCounts(inputs.x.shape[1], self.n_out, candidates=self.candidates)
        reducer = REDUCERS[self.rule]
        with choice.fast(self.fast):
            result = reducer(inputs, counts)
            state = moves.apply(TokenState(x=x, size=size, num_prefix=prefix), result)
        return state.x, state.size, result.dest

    def scores(self, query, key, size):
        """Attention to the image tokens, [B, n] float32."""
        bias = jnp.log(size) if self.prop_attn else None
        rows = query[:, :1]
        if self.rule == "peaks":
            mean = ops.mean_query(query)
            rows = jnp.concatenate([rows.astype(mean.dtype), mean], axis=1)
        return ops.mean_attention(rows, key, bias)[:, self.num_prefix :]

    def metric(self, key):
        """Return the features that are compared, [B, n, d] float32."""
        return jnp.mean(key[:, self.num_prefix :], axis=2, dtype=jnp.float32)

    def gap(self, query, key, x, size):
        """Return the smallest gap that one image's decision depends on.

        Its unit is the gap that rounding explains: up to 1 it is a tie. The arrays are
        one image's ([1, N, ..]).
        """
        scores = np.asarray(self.scores(query, key, size), np.float64)[0]
        ties = score_rounding(query, key) * scores
        ranked = np.argsort(-scores, kind="stable")
        n = len(scores)
        split = np.arange(len(scores))
        parity = self.num_prefix % 2
        gaps = [np.inf]
        if self.rule == "prune":  # the last kept token and the first dropped one
            border = ranked[self.n_out - 1 : self.n_out + 1]
            return min([*gaps, *_steps(scores[border], ties[border])])
        if self.rule == "join":  # slots are in the order of the scores
            gaps += [*_steps(scores[ranked], ties[ranked])]
            image = np.asarray(x, np.float32)[:, self.num_prefix :]
            rounding = cosine_rounding(image[:, :, None])
            sides = ranked[self.n_out :], ranked[: self.n_out]
            return min(gaps + _partner_gaps(image, rounding, sides, n - self.n_out))
        if self.rule == "peaks":  # who is earlier, slots by score times distance
            gaps += [*_steps(scores[ranked], ties[ranked])]
            image = np.asarray(x, np.float32)[:, self.num_prefix :]
            rounding = cosine_rounding(image[:, :, None])
            distance = _distances(image, ranked)
            ties = ties * distance + 2 * scores * rounding.max()
            values = scores * distance
            ranked = np.argsort(-values, kind="stable")
            border = ranked[: self.n_out + 1]
            gaps += [*_steps(values[border], ties[border])]
            sides = ranked[self.n_out :], ranked[: self.n_out]
            return min(gaps + _partner_gaps(image, rounding, sides, n - self.n_out))
        if self.rule == "retokenize":  # all candidates, whose order makes the sides
            split = ranked[n - self.candidates :]
            border = ranked[n - self.candidates - 1 :]
            gaps += [*_steps(scores[border], ties[border])]
            parity = 0
        sides = split[parity::2], split[1 - parity :: 2]
        metric = self.metric(key)
        rounding = cosine_rounding(key[:, self.num_prefix :])
        return min(gaps + _partner_gaps(metric, rounding, sides, n - self.n_out))


def _distances(features, ranked):
    """1 minus the highest cosine to a token that is ranked before. [1, n, d] -> [n]."""
    cosines = np.asarray(ops.cosine(features), np.float64)[0]
    distance = np.full(len(ranked), 2.0)
    for place, token in enumerate(ranked[1:], start=1):
        distance[token] = 1 - cosines[token, ranked[:place]].max()
    return distance


def _partner_gaps(features, rounding, sides, absorbed):
    """Gaps of the decisions which `absorbed` tokens of one side join which of another.

    features: [1, n, d], what is compared; rounding: [n], as of `cosine_rounding`
    """
    cosines = np.asarray(ops.cosine(*(features[:, side] for side in sides)))[0]
    ties = rounding[sides[0]][:, None] + rounding[sides[1]]
    # Highest first: the two best of each row, and the rows by their best.
    best_two = np.argsort(-cosines, axis=1, kind="stable")[:, :2]
    cosines = np.take_along_axis(cosines, best_two, axis=1)
    ties = np.take_along_axis(ties, best_two, axis=1)
    rows = np.argsort(-cosines[:, 0], kind="stable")
    border = rows[absorbed - 1 : absorbed + 1]
    gaps = [*_steps(cosines[border, 0], ties[border, 0])]
    # The partner of each absorbed token.
    for row in rows[: absorbed + 1]:
        gaps += [*_steps(cosines[row], ties[row])]
    return gaps


def score_rounding(query, key):
    """Return the relative error of attention that rounding explains.

    query, key: [1, N, H, d], one image. A logit's absolute error is its exponential's
    relative one: that of a sum of d products, and of what is subtracted from it, the
    highest logit or the logarithm of the sum. Then two exps, and sums over tokens and
    heads.
    """
    query = np.asarray(query, np.float64)[0]
    key = np.asarray(key, np.float64)[0]
    tokens, heads, width = key.shape
    terms = np.abs(query[0] * key).sum(axis=-1).max() / np.sqrt(width)
    logit = np.sqrt(width) * terms + 2 * (terms + np.log(tokens))
    return EPS * (logit + 2 * EXP + np.sqrt(tokens) + np.sqrt(heads))


def cosine_rounding(key):
    """Return what each of two tokens adds to the absolute error of their cosine, [n].

    key: [1, n, H, d], one image. The magnitudes of a unit vector's products sum to 1
    at most, of d terms; so do the squares that it is divided by. The mean over heads
    comes before, and loses what the heads cancel.
    """
    key = np.asarray(key, np.float64)[0]
    _, heads, width = key.shape
    mean = np.linalg.norm(key.mean(axis=1), axis=-1)
    absolute = np.linalg.norm(np.abs(key).mean(axis=1), axis=-1)
    lost = absolute / np.maximum(mean, EPS)
    return EPS * (np.sqrt(width) + np.sqrt(heads) * lost)


def assert_agrees(reduction, arrays):
    """Both forms of a OneReduction decide one batch alike but for near ties.

    Under 1 % of the images differ, all within what rounding explains; the outputs of
    the others are equal up to two units in the last place of their largest number.
    """
    ours = [np.asarray(a) for a in reduction(*arrays)]
    fast = dataclasses.replace(reduction, fast=True)
    theirs = [np.asarray(a) for a in fast(*arrays)]
    same = np.all(ours[2] == theirs[2], axis=1)
    same &= np.all(ours[1] == theirs[1], axis=1)
    gaps = [
        float(reduction.gap(*(array[i : i + 1] for array in arrays)))
        for i in np.flatnonzero(~same)
    ]
    assert all(gap <= 1 for gap in gaps), gaps
    assert 100 * len(gaps) < len(same)
    a, b = (np.asarray(x[same], np.float64) for x in (ours[0], theirs[0]))
    place = float(jnp.finfo(ours[0].dtype).eps)
    assert np.abs(a - b).max() <= 2 * place * np.abs(a).max()


def reductions(n):
    """What EViT keeps, ImagePiece and ToMe merge, most attended, peaks, of `n`."""
    candidates = int(0.3 * n)
    merges = min(round(0.08 * (n + 1)), candidates // 2)
    return (
        OneReduction("prune", int(0.7 * n)),
        OneReduction("retokenize", n - merges, candidates),
        OneReduction("bipartite", n - min(13, n // 2)),
        OneReduction("join", n // 2, prop_attn=True),
        OneReduction("peaks", n // 2, prop_attn=True),
    )


def random_inputs(seed, batch, n, heads, width, dtype):
    """Return (query, key, x, size) of a class token and `n` others, of sizes 1 to 4."""
    keys = jax.random.split(jax.random.key(seed), 4)
    shape = (batch, n + 1, heads, width)
    query, key = (jax.random.normal(k, shape, dtype) for k in keys[:2])
    x = jax.random.normal(keys[2], (batch, n + 1, heads * width), dtype)
    size = jax.random.randint(keys[3], (batch, n + 1), 1, 5).astype("float32")
    return query, key, x, size


def _steps(values, rounding):
    """Gaps between neighbors, over the larger one's rounding. [m] twice -> [m - 1]."""
    rounding = np.maximum(rounding[1:], rounding[:-1])
    return np.abs(np.diff(values)) / np.maximum(rounding, np.finfo(np.float32).tiny)
