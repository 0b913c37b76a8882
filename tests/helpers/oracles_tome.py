"""Slow oracle of ToMe, one image at a time, prefix tokens included.

Written from the paper's definition with loops over pairs; nothing here is imported from
the package.
"""

import numpy as np


def bipartite(similarity, r, num_prefix):
    """Bipartite soft matching. similarity [N, N] of all tokens -> groups of positions.

    Tokens at even positions (A) each point to the most similar one at an odd position
    (B); the `r` most similar pairs merge, at most half of the image tokens. The class
    token (position 0) never leaves, the distillation token (position 1) is never
    merged into. The groups stand in the order of the output: those of A that stay, by
    position (by falling similarity where there is no class token), then B. Ties: the
    earlier position wins.
    """
    total = len(similarity)
    r = max(0, min(r, (total - num_prefix) // 2))
    best = {}
    for a in range(0, total, 2):
        for b in range(1, total, 2):
            if a < num_prefix or b < num_prefix:
                continue
            if a not in best or similarity[a][b] > similarity[a][best[a]]:
                best[a] = b
    leaving = sorted(best, key=lambda a: (-similarity[a][best[a]], a))
    merged = leaving[:r]
    staying = leaving[r:]
    groups = {b: [b] for b in range(1, total, 2)}
    for a in merged:
        groups[best[a]].append(a)
    if num_prefix:
        rest = [a for a in range(0, total, 2) if a not in merged]
    else:
        rest = staying
    if num_prefix == 2:  # both prefix tokens stay in front
        return [[0], groups.pop(1), *([a] for a in rest if a), *groups.values()]
    return [[a] for a in rest] + list(groups.values())


def slots(groups, num_prefix):
    """Slot of every image token, prefix left out of both counts. -> [n] int."""
    slot = {}
    for place, group in enumerate(groups):
        slot |= {i: place for i in group}
    return np.array([slot[i] for i in range(num_prefix, len(slot))]) - num_prefix
