"""Slow NumPy oracles of reductions, one image at a time, in float64.

Written from the papers' definitions with Python loops and sorts. Nothing here is
imported from the package, so a mistake cannot be on both sides of a comparison.
Legend: n image tokens, n_out of them left, n0 patches, D width, H heads, d = D / H.
"""

import math
from fractions import Fraction

import numpy as np

DROPPED = -1


def keep_count(rate, n):
    """Tokens kept of `n`: ceil(rate * n), at least 1; `rate` is a decimal."""
    return max(1, math.ceil(Fraction(str(rate)) * n))


def merge_counts(n, merge_ratio, candidate_ratio, base="all"):
    """ImagePiece's (candidates, merges) for `n` image tokens.

    base="all": ceil(m * (n + 1)) merges (the class token counts), base="candidates":
    ceil(m * candidates); at most half of the candidates.
    """
    candidates = math.floor(Fraction(str(candidate_ratio)) * n)
    base_count = n + 1 if base == "all" else candidates
    uncapped = math.ceil(Fraction(str(merge_ratio)) * base_count)
    return candidates, min(uncapped, candidates // 2)


def by_score(scores):
    """Tokens by falling score: ties to the lower index, a NaN is minus infinity."""
    scores = np.asarray(scores, float)
    falling = np.where(np.isnan(scores), math.inf, -scores)
    return np.argsort(falling, kind="stable").tolist()


def rank_by_score(scores):
    """Place of every token in `by_score`. [n] -> [n] int."""
    return np.argsort(by_score(scores))


def top_k(scores, k):
    """Slot map that keeps the `k` best tokens in spatial order. [n] -> dest [n]."""
    dest = np.full(len(scores), DROPPED)
    dest[sorted(by_score(scores)[:k])] = np.arange(k)
    return dest


def cosine(a, b, eps=1e-6):
    """Cosine of all pairs of rows, `eps` inside the roots. [n, d], [m, d] -> [n, m]."""
    a, b = (np.asarray(rows, float) for rows in (a, b))
    lengths = [np.sqrt((rows**2).sum(axis=1) + eps) for rows in (a, b)]
    return (a @ b.T) / np.outer(*lengths)


def retokenize(scores, similarity, candidates, merges, parity=0):
    """ImagePiece's merge. scores [n], similarity [n, n] -> dest [n], slots in order.

    The last `candidates` tokens by score form a line, the highest score first. Its
    tokens are in A and B in turn; `parity` 0: the first is in A. The `merges` most
    similar tokens of A join their nearest B. The earlier token in the line wins ties.
    """
    n = len(scores)
    ranked_candidates = by_score(scores)[n - candidates :]
    movers = ranked_candidates[parity::2]
    targets = ranked_candidates[1 - parity :: 2]
    nearest = {}
    for a in movers if targets else ():
        nearest[a] = max(targets, key=lambda b: similarity[a][b])  # first of ties
    closest = sorted(nearest, key=lambda a: -similarity[a][nearest[a]])  # stable
    partner_of_token = {a: nearest[a] for a in closest[:merges]}
    left = [token for token in range(n) if token not in partner_of_token]
    return np.array([left.index(partner_of_token.get(t, t)) for t in range(n)])


def bipartite(similarity, r, num_prefix):
    """Bipartite soft matching. similarity [N, N] of all tokens -> groups of positions.

    Each token at an even position (A) points to the most similar token at an odd
    position (B). The `r` most similar pairs merge, at most half of the image tokens.
    The class token (position 0) never leaves, and no token joins the distillation
    token (position 1). Groups are in the output's order: tokens of A that stay, by
    position (without a class token by falling similarity), then B. The earlier
    position wins ties.
    """
    total = len(similarity)
    movers = [a for a in range(0, total, 2) if a >= num_prefix]
    targets = [b for b in range(1, total, 2) if b >= num_prefix]
    nearest = {}
    for a in movers if targets else ():
        nearest[a] = max(targets, key=lambda b: similarity[a][b])  # first of ties
    closest = sorted(nearest, key=lambda a: -similarity[a][nearest[a]])  # stable
    merged = closest[: max(0, min(r, (total - num_prefix) // 2))]
    groups = {b: [b] for b in range(1, total, 2)}
    for a in merged:
        groups[nearest[a]].append(a)
    if num_prefix == 0:
        return [[a] for a in closest[len(merged) :]] + list(groups.values())
    front = [[0]]
    if num_prefix == 2:  # both prefix tokens stay in front
        front.append(groups.pop(1))
    return front + [[a] for a in movers if a not in merged] + list(groups.values())


def bipartite_slots(groups, num_prefix):
    """Slot of every image token, both counted without the prefix. -> [n] int."""
    slot = {}
    for place, group in enumerate(groups):
        slot |= {i: place for i in group}
    return np.array([slot[i] for i in range(num_prefix, len(slot))]) - num_prefix


def apply_map(x, size, dest, weight=None, n_out=None, mean=True):
    """Move tokens to their slots. x [n, D], size [n], dest [n] -> [n_out, D], [n_out].

    Features are averaged with `weight` (None: size), or summed where `mean` is false;
    sizes are added. `n_out` None: one more than the highest slot.
    """
    size = np.asarray(size, float)
    weight = size if weight is None else np.asarray(weight, float)
    if n_out is None:
        n_out = max(dest) + 1
    joins = np.equal(dest, np.arange(n_out)[:, None])
    shares = joins * weight
    moved = shares @ np.asarray(x, float)
    if mean:
        moved /= shares.sum(axis=1, keepdims=True)
    return moved, joins @ size


def compose(outer, inner):
    """Slot maps joined, `inner` first; dropped patches stay dropped."""
    return np.where(inner == DROPPED, DROPPED, np.asarray(outer)[inner])


def count_sources(source, n):
    """Patch counts of `n` slots. source [n0] -> [n]."""
    return np.bincount(source[source != DROPPED], minlength=n)


def patch_values(values, steps, fill):
    """Every patch's value: its token's in `values` [n, D], after all steps.

    steps: pairs of the tokens [n, D] before a step and its slot map [n]
    fill: a dropped token has the value of the most similar kept token ("nearest"), or
        its own before the step ("last")
    """
    out = []
    for token in range(len(steps[0][1] if steps else values)):
        for x, dest in steps:
            if dest[token] == DROPPED and fill == "last":
                out.append(x[token])
                break
            if dest[token] == DROPPED:
                cosines = cosine(x[token : token + 1], x)[0]
                token = np.where(np.equal(dest, DROPPED), -math.inf, cosines).argmax()
            token = dest[token]
        else:
            out.append(values[token])
    return np.stack(out)


def layer_norm(x, params, eps=1e-6):
    """[.., D] normalized, times params["scale"], plus params["bias"]."""
    x = np.asarray(x, float)
    centered = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps)
    return centered / deviation * params["scale"] + params["bias"]


def dense(x, params):
    """One linear layer. [.., D] -> [.., D']."""
    return x @ np.asarray(params["kernel"], float) + params["bias"]


def convolution(image, kernel, stride=1, pad=0):
    """By loops over the output's pixels. [H, W, C], [k, k, C, D] -> [H', W', D]."""
    image = np.pad(np.asarray(image, float), ((pad, pad), (pad, pad), (0, 0)))
    side = len(kernel)
    kernel = np.asarray(kernel, float)
    rows, columns = (range(0, n - side + 1, stride) for n in image.shape[:2])
    out = np.zeros((len(rows), len(columns), kernel.shape[3]))
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            window = image[top : top + side, left : left + side]
            out[i, j] = np.tensordot(window, kernel, 3)
    return out


def softmax(logits):
    powers = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def attention(query, key, value, bias=0.0):
    """One image, [N, H, d] each, bias [N] of the logits. -> [N, H, d], [H, N, N]."""
    query, key, value = (np.asarray(a, float) for a in (query, key, value))
    logits = np.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[2])
    weights = softmax(logits + np.asarray(bias, float))
    return np.einsum("hqk,khd->qhd", weights, value), weights


def log_softmax(logits):
    logits = np.asarray(logits, float)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def kl(teacher, student):
    """KL(teacher || student) of logits, [B, C] twice -> [B]."""
    logs = log_softmax(teacher)
    return (np.exp(logs) * (logs - log_softmax(student))).sum(axis=-1)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x, form="exact"):
    """x times the normal distribution function of x, or one of its approximations."""
    if form == "quick":
        return x * sigmoid(1.702 * x)
    if form == "tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    erf = np.vectorize(math.erf, otypes=[float])
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))
