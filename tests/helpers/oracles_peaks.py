"""Slow oracle of peaks, one image at a time, in float64.

Written from the method's definition with loops over tokens and heads. Nothing here is
imported from the package. Legend: N tokens with the prefix, n image tokens, n_out of
them left, H heads, d width of a head, D width.
"""

import math
from typing import NamedTuple

import numpy as np

from tests.helpers import oracles, slow_deit


def attention_row(query, key, size, live):
    """Attention from one query to all tokens, mean over heads. -> [N].

    query [H, d], key [N, H, d], size [N] > 0, live [N] bool. Tokens that are not live
    get no attention.
    """
    row = np.zeros(len(key))
    for head in range(key.shape[1]):
        logits = np.full(len(key), -math.inf)
        for token in np.flatnonzero(live):
            product = query[head] @ key[token, head] / math.sqrt(key.shape[2])
            logits[token] = product + math.log(size[token])
        powers = np.exp(logits - logits.max())
        row += powers / powers.sum() / key.shape[1]
    return row


def scores(name, query, key, size=None, live=None):
    """Scores of all tokens, prefix included. query, key [N, H, d] -> [N].

    name: "class", "mean" or "class_and_mean", the mean of both
    size, live: None: all are 1
    """
    query = np.asarray(query, float)
    key = np.asarray(key, float)
    size = np.ones(len(key)) if size is None else np.asarray(size, float)
    live = np.ones(len(key), bool) if live is None else np.asarray(live) > 0.5
    rows = {"class": attention_row(query[0], key, size, live)}
    mean = sum(query[token] for token in np.flatnonzero(live)) / live.sum()
    rows["mean"] = attention_row(mean, key, size, live)
    rows["class_and_mean"] = (rows["class"] + rows["mean"]) / 2
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
    n = len(score)
    value = np.zeros(n)
    for token in range(n):
        nearest = -1.0
        for other_token in range(n):
            higher = score[other_token] > score[token]
            earlier = score[other_token] == score[token] and other_token < token
            if higher or earlier:
                nearest = max(nearest, cosines[token, other_token])
        value[token] = score[token] * (1 - nearest)
    kept = sorted(range(n), key=lambda token: (-value[token], token))[:n_out]
    slot = np.zeros(n, int)
    alike = np.ones(n)
    for token in range(n):
        if token in kept:
            slot[token] = kept.index(token)
            continue
        kept_cosines = [cosines[token, other_token] for other_token in kept]
        slot[token] = kept_cosines.index(max(kept_cosines))  # the first of ties
        alike[token] = max(kept_cosines)
    return Decision(kept, slot, alike, value)


def mean_weights(decision, score, least=0.0):
    """Share of every token in every slot's mean, by score. -> [n_out, n].

    least: the scores' lower limit. Tokens of a slot without attention have equal
    shares.
    """
    shares = np.zeros((len(decision.kept), len(score)))
    for token, slot in enumerate(decision.slot):
        shares[slot, token] = max(float(score[token]), least)
    for row, slot in enumerate(shares):
        if slot.sum() == 0:
            shares[row] = decision.slot == row
    return shares / shares.sum(axis=1, keepdims=True)


def attention_sizes(decision, size):
    """A kept token's size, plus size times cosine of the tokens that join it.

    Returns [n_out], above 0.
    """
    out = np.zeros(len(decision.kept))
    for token, slot in enumerate(decision.slot):
        out[slot] += size[token] * decision.alike[token]
    return np.maximum(out, np.finfo(np.float32).tiny)


class Step(NamedTuple):
    """One step's inputs and decisions, and its tokens' patches, [n_out]."""

    score: np.ndarray  # [n]
    cosines: np.ndarray  # [n, n]
    decision: Decision
    patches: np.ndarray


def reduce_tokens(x, score, size, patches, n_out):
    """Reduce x [n, D] to n_out tokens: (x, size, Step).

    size, patches: [n], sizes in attention and patch counts
    """
    cosines = oracles.cosine(x, x)
    decision = decide(score, cosines, n_out)
    summed = [sum(patches[decision.slot == slot]) for slot in range(n_out)]
    step = Step(score, cosines, decision, np.array(summed))
    return mean_weights(decision, score) @ x, attention_sizes(decision, size), step


def forward(params, image, counts, *, heads, patch, name="class_and_mean"):
    """A DeiT reduced by peaks. image [S, S, 3] -> (logits, size [N], Steps).

    counts: {block: image tokens after it}
    name: the score's
    size: final sizes in attention
    """
    x = slow_deit.embed(params, image, patch)
    size = np.ones(len(x))
    patches = np.ones(len(x) - 1)
    steps = []
    for i in range(sum(key.startswith("blocks_") for key in params)):
        block = params[f"blocks_{i}"]
        normed = oracles.layer_norm(x, block["norm1"])
        out, record = slow_deit.attention(normed, block["attn"], heads, size)
        x = x + out
        if i in counts:
            query = oracles.dense(normed, block["attn"]["q"]).reshape(record.key.shape)
            score = scores(name, query, record.key, size)[1:]
            merged, sizes, step = reduce_tokens(
                x[1:], score, size[1:], patches, counts[i]
            )
            x = np.concatenate([x[:1], merged])
            size = np.concatenate([size[:1], sizes])
            patches = step.patches
            steps.append(step)
        normed = oracles.layer_norm(x, block["norm2"])
        hidden = oracles.gelu(oracles.dense(normed, block["mlp"]["fc1"]))
        x = x + oracles.dense(hidden, block["mlp"]["fc2"])
    tokens = oracles.layer_norm(x, params["norm"])
    return oracles.dense(tokens[0], params["head"]), size, steps
