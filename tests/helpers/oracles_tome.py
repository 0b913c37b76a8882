"""Slow oracle of ToMe, one image at a time, prefix tokens included.

Written from the paper's definition with loops over pairs. Nothing here is imported from
the package.
"""

import numpy as np


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
    r = max(0, min(r, (total - num_prefix) // 2))
    nearest = {}
    for a in range(0, total, 2):
        for b in range(1, total, 2):
            if a < num_prefix or b < num_prefix:
                continue
            if a not in nearest or similarity[a][b] > similarity[a][nearest[a]]:
                nearest[a] = b
    by_similarity = sorted(nearest, key=lambda a: (-similarity[a][nearest[a]], a))
    merged = by_similarity[:r]
    staying = by_similarity[r:]
    groups = {b: [b] for b in range(1, total, 2)}
    for a in merged:
        groups[nearest[a]].append(a)
    if num_prefix:
        remaining = [a for a in range(0, total, 2) if a not in merged]
    else:
        remaining = staying
    if num_prefix == 2:  # both prefix tokens stay in front
        return [[0], groups.pop(1), *([a] for a in remaining if a), *groups.values()]
    return [[a] for a in remaining] + list(groups.values())


def slots(groups, num_prefix):
    """Slot of every image token, both counted without the prefix. -> [n] int."""
    slot = {}
    for place, group in enumerate(groups):
        slot |= {i: place for i in group}
    return np.array([slot[i] for i in range(num_prefix, len(slot))]) - num_prefix
