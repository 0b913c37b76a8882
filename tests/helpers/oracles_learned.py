"""Slow NumPy oracles of learned reductions, one image at a time, in float64.

Written from the papers' definitions with loops over tokens and heads. Nothing here is
imported from the package. Parameters are nested dictionaries of arrays as Flax names
them. Legend: n tokens, D width, H heads, N tokens with the prefix.
"""

import math

import numpy as np

from tests.helpers.oracles import dense, gelu, layer_norm, log_softmax, sigmoid


def keep_scores(parameters, x, mask=None):
    """Log probabilities of (keep, drop), from the token and the mean of live tokens.

    x [n, D], mask [n] -> [n, 2].
    """
    n, dim = x.shape
    mask = np.ones(n) if mask is None else mask
    own = []
    mean = np.zeros(dim - dim // 2)
    for token in range(n):
        row = layer_norm(x[token], parameters["norm"], 1e-5)
        row = gelu(dense(row, parameters["embed"]))
        own.append(row[: dim // 2])
        mean += mask[token] * row[dim // 2 :]
    mean /= sum(mask) + 1e-6
    out = []
    for token in range(n):
        row = gelu(dense(np.concatenate([own[token], mean]), parameters["half"]))
        row = gelu(dense(row, parameters["quarter"]))
        out.append(log_softmax(dense(row, parameters["score"])))
    return np.array(out)


def select(parameters, x, heads, mask=None):
    """SPViT's selector, with one score network for all heads.

    x [n, D] -> log probabilities [n, 2] and keep probabilities [n]. Both are means over
    heads, weighted by each token's votes.
    """
    n, dim = x.shape
    width = dim // heads
    parts = [x[:, h * width : (h + 1) * width] for h in range(heads)]
    scores = [keep_scores(parameters["scores"], part, mask) for part in parts]
    logs = np.zeros((n, 2))
    kept = np.zeros(n)
    for token in range(n):
        means = np.array([part[token].mean() for part in parts])
        hidden = gelu(dense(means, parameters["vote_in"]))
        votes = sigmoid(dense(hidden, parameters["vote_out"]))
        for h in range(heads):
            logs[token] += votes[h] * scores[h][token] / sum(votes)
            kept[token] += votes[h] * math.exp(scores[h][token][0]) / sum(votes)
    return logs, kept


def package(probability, dropped, x):
    """The mean of dropped tokens. [n], [n] bool, [n, D] -> [D]."""
    total = np.zeros(x.shape[1])
    share = 0.0
    for token in np.flatnonzero(dropped):
        total += probability[token] * x[token]
        share += probability[token]
    return total / (share + 1e-6)


def masked_attention(q, k, v, mask, bias, eps=1e-6):
    """Attention where only a masked token itself attends to it.

    q, k, v [N, H, d], mask [N], bias [N] of the logits -> [N, H, d].
    """
    n, heads, width = q.shape
    out = np.zeros(v.shape)
    for h in range(heads):
        for i in range(n):
            logits = [q[i, h] @ k[j, h] / math.sqrt(width) + bias[j] for j in range(n)]
            odds = [math.exp(value - max(logits)) for value in logits]
            odds = [o if i == j else o * mask[j] for j, o in enumerate(odds)]
            for j in range(n):
                share = (odds[j] + eps / n) / (sum(odds) + eps)
                out[i, h] += share * v[j, h]
    return out


def kl(student, teacher):
    """KL(teacher || student) of logits, mean over rows. [B, C] twice -> float."""
    total = 0.0
    for a, b in zip(student, teacher, strict=True):
        a = log_softmax(a)
        b = log_softmax(b)
        total += sum(math.exp(t) * (t - s) for s, t in zip(a, b, strict=True))
    return total / len(student)
