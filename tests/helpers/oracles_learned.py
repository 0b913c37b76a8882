"""Slow NumPy oracles of learned reductions, one image at a time, in float64.

Written from the papers' definitions; nothing here is imported from the package.
Parameters are nested dictionaries of arrays as Flax names them. Legend: n tokens, D
width, H heads, N tokens with the prefix.
"""

import math

import numpy as np

from tests.helpers.oracles import dense, gelu, layer_norm, log_softmax, sigmoid


def keep_scores(parameters, x, mask=None):
    """Log probabilities of (keep, drop), from the token and the mean of live tokens.

    x [n, D], mask [n] -> [n, 2].
    """
    n, dim = x.shape
    mask = np.ones(n) if mask is None else np.asarray(mask)
    rows = gelu(dense(layer_norm(x, parameters["norm"], 1e-5), parameters["embed"]))
    mean = mask @ rows[:, dim // 2 :] / (mask.sum() + 1e-6)
    rows = np.hstack([rows[:, : dim // 2], np.tile(mean, (n, 1))])
    for name in ("half", "quarter"):
        rows = gelu(dense(rows, parameters[name]))
    return log_softmax(dense(rows, parameters["score"]))


def select(parameters, x, heads, mask=None):
    """SPViT's selector, with one score network for all heads.

    x [n, D] -> log probabilities [n, 2] and keep probabilities [n]. Both are means over
    heads, weighted by each token's votes.
    """
    parts = np.split(x, heads, axis=1)
    means = np.stack([part.mean(axis=1) for part in parts], axis=1)
    votes = gelu(dense(means, parameters["vote_in"]))
    votes = sigmoid(dense(votes, parameters["vote_out"]))
    votes /= votes.sum(axis=1, keepdims=True)
    logs = np.zeros((len(x), 2))
    kept = np.zeros(len(x))
    for part, vote in zip(parts, votes.T, strict=True):
        scores = keep_scores(parameters["scores"], part, mask)
        logs += vote[:, None] * scores
        kept += vote * np.exp(scores[:, 0])
    return logs, kept


def package(probability, dropped, x):
    """The mean of dropped tokens. [n], [n] bool, [n, D] -> [D]."""
    weight = probability * dropped
    return weight @ x / (weight.sum() + 1e-6)


def masked_attention(q, k, v, mask, bias, eps=1e-6):
    """Attention where only a masked token itself attends to it.

    q, k, v [N, H, d], mask [N], bias [N] of the logits -> [N, H, d].
    """
    n, heads, width = q.shape
    out = np.zeros(v.shape)
    for h in range(heads):
        logits = q[:, h] @ k[:, h].T / math.sqrt(width) + bias
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        odds *= np.where(np.eye(n), 1.0, mask)
        shares = (odds + eps / n) / (odds.sum(axis=1, keepdims=True) + eps)
        out[:, h] = shares @ v[:, h]
    return out
