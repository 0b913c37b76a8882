"""Slow oracle of peaks, one image at a time, in float64.

Written from the method's definition; nothing here is imported from the package.
Legend: N tokens with the prefix, n image tokens, n_out of them left, H heads, d width
of a head, D width.
"""

import math
from typing import NamedTuple

import numpy as np

from tests.helpers import oracles, slow_deit


def attention_row(query, key, size, live):
    """Attention from one query to all live tokens, mean over heads. -> [N].

    query [H, d], key [N, H, d], size [N], live [N] bool
    """
    bias = np.where(live, np.log(np.where(live, size, 1.0)), -math.inf)
    _, weights = oracles.attention(query[None], key, key, bias)
    return weights[:, 0].mean(axis=0)


def scores(name, query, key, size=None, live=None):
    """Scores of all tokens, prefix included. query, key [N, H, d] -> [N].

    name: "class", "mean" or "class_and_mean", the mean of both
    size, live: None: all are 1
    """
    query = np.asarray(query, float)
    size = np.ones(len(key)) if size is None else np.asarray(size, float)
    live = np.ones(len(key), bool) if live is None else np.asarray(live) > 0.5
    by_class = attention_row(query[0], key, size, live)
    by_mean = attention_row(query[live].mean(axis=0), key, size, live)
    rows = {"class": by_class, "mean": by_mean}
    rows["class_and_mean"] = (by_class + by_mean) / 2
    return rows[name]


class Decision(NamedTuple):
    kept: list  # tokens, in the order of their slots
    slot: np.ndarray  # [n] int
    alike: np.ndarray  # [n]: cosine to the token kept in its slot; a kept token's is 1
    value: np.ndarray  # [n]: score times distance


def decide(score, cosines, n_out):
    """Choose kept tokens and all slots. score [n], cosines [n, n]."""
    score = np.asarray(score, float)
    cosines = np.asarray(cosines, float)
    value = np.zeros(len(score))
    ranked = oracles.by_score(score)
    for place, token in enumerate(ranked):
        nearest = max([-1.0, *cosines[token, ranked[:place]]])
        value[token] = score[token] * (1 - nearest)
    kept = oracles.by_score(value)[:n_out]
    slot = cosines[:, kept].argmax(axis=1)  # the first of ties
    slot[kept] = np.arange(n_out)
    alike = cosines[:, kept].max(axis=1)
    alike[kept] = 1.0
    return Decision(kept, slot, alike, value)


def mean_weights(decision, score):
    """Share of every token in every slot's mean, by score. -> [n_out, n].

    Tokens of a slot without attention have equal shares.
    """
    members = decision.slot == np.arange(len(decision.kept))[:, None]
    shares = members * np.asarray(score, float)
    shares = np.where(shares.sum(axis=1, keepdims=True) == 0, members, shares)
    return shares / shares.sum(axis=1, keepdims=True)


def attention_sizes(decision, size):
    """A kept token's size, plus size times cosine of the tokens that join it.

    Returns [n_out], above 0.
    """
    sizes = np.bincount(decision.slot, size * decision.alike)
    return np.maximum(sizes, np.finfo(np.float32).tiny)


class Step(NamedTuple):
    """One step's inputs and decisions, and its tokens' patches, [n_out]."""

    score: np.ndarray  # [n]
    cosines: np.ndarray  # [n, n]
    decision: Decision
    patches: np.ndarray


def forward(params, image, counts, *, name="class_and_mean", **sizes):
    """A DeiT reduced by peaks. image [S, S, 3] -> (logits, size [N], Steps).

    counts: {block: image tokens after it}
    name: the score's
    size: final sizes in attention
    """
    steps = []

    def reduce_tokens(block, x, size, record):
        if block not in counts:
            return x, size
        score = scores(name, record.query, record.key, record.size)[1:]
        cosines = oracles.cosine(x, x)
        decision = decide(score, cosines, counts[block])
        patches = steps[-1].patches if steps else np.ones(len(x))
        summed = [sum(patches[decision.slot == n]) for n in range(counts[block])]
        steps.append(Step(score, cosines, decision, np.array(summed)))
        return mean_weights(decision, score) @ x, attention_sizes(decision, size)

    sizes |= {"reduce_tokens": reduce_tokens, "prop_attn": True}
    logits, _, size, _ = slow_deit.forward(params, image, **sizes)
    return logits, size, steps
