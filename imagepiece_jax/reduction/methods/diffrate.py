"""DiffRate: prune and merge in one step, by searched rates (Chen et al., ICCV 2023).

The search of the rates is not part of this: its published results are.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp

from imagepiece_jax.common.fields import counts, optional, weight
from imagepiece_jax.reduction.layer_plan import Step
from imagepiece_jax.reduction.methods.method import Method, score
from imagepiece_jax.reduction.ops import cosine, gather_rows, invert, rank
from imagepiece_jax.reduction.reducers import Ranking, find_partners, keep_and_join
from imagepiece_jax.reduction.schedules import powered_shares, rounded
from imagepiece_jax.reduction.token_counts import Rule
from imagepiece_jax.reduction.tokens import DROPPED, Assignment, SlotIndex

# The published schedules of models of 197 tokens: a model, GMACs, and the tokens that
# each block keeps after pruning; below them those after merging, class token included.
# Source: compression_rate.json of the authors' code, OpenGVLab/DiffRate.
PUBLISHED = """\
deit_ti  0.6  197 196 180 157 130 107 86 73 63 51 40 3
              197 187 167 139 114 90 76 66 57 45 37 3
deit_ti  0.7  197 196 194 180 150 123 98 82 68 60 52 3
              197 196 192 158 133 103 88 72 64 58 49 3
deit_ti  0.8  197 197 196 186 166 147 117 103 92 80 74 3
              197 196 190 172 154 125 107 96 84 78 70 3
deit_ti  0.9  197 197 196 190 182 166 141 125 113 105 99 3
              197 196 194 188 172 147 129 115 107 103 96 3
deit_ti  1.0  197 197 196 194 188 184 178 164 156 137 129 21
              197 197 196 190 186 154 148 156 145 135 125 21
deit_s   2.3  197 192 168 143 121 105 92 74 62 45 33 3
              197 180 156 127 109 98 80 66 52 37 31 3
deit_s   2.5  197 192 174 156 131 115 111 99 76 50 39 3
              197 186 160 133 119 107 96 82 66 43 37 3
deit_s   2.7  197 196 182 160 141 127 115 105 88 66 49 3
              197 188 170 147 131 119 109 96 76 54 45 3
deit_s   2.9  197 196 190 168 150 139 129 117 99 78 58 3
              197 194 176 156 141 133 121 107 88 64 56 3
deit_s   3.1  197 197 194 180 160 147 137 129 115 92 76 3
              197 196 186 164 150 141 133 121 103 78 68 3
deit_b   8.7  197 192 172 156 131 107 90 72 56 33 17 3
              197 178 162 141 115 96 78 60 47 21 13 3
deit_b  10.0  197 194 182 168 148 129 113 101 82 49 25 3
              197 186 174 156 137 117 105 90 66 31 19 3
deit_b  10.4  197 196 188 174 156 141 121 103 90 58 25 3
              197 190 184 164 145 131 107 94 74 31 21 3
deit_b  11.5  197 197 197 188 170 154 139 123 107 72 43 3
              197 197 192 178 158 145 127 111 94 50 35 3
deit_b  12.5  197 197 196 192 184 170 154 139 129 94 58 3
              197 196 194 190 176 160 145 131 115 68 47 3
mae_b    8.7  197 192 166 143 119 103 86 72 54 43 37 23
              197 176 150 127 107 92 76 58 47 41 23 23
mae_b   10.0  197 194 173 154 135 120 108 92 76 64 52 40
              197 181 160 141 122 116 95 80 67 60 40 40
mae_b   10.4  197 195 179 159 140 122 105 100 89 71 56 45
              197 187 166 145 125 109 102 97 75 64 45 45
mae_b   11.5  197 196 182 172 162 147 131 109 101 94 70 49
              197 192 178 164 150 133 115 101 96 82 49 49
"""
ALL = sys.maxsize  # tokens stay after pruning: none is dropped
BY_WIDTH = {192: "deit_ti", 384: "deit_s", 768: "deit_b"}
# The target whose accuracies the authors report; for DeiT-Ti the one of the same share.
DEFAULT = {"deit_ti": 0.8, "deit_s": 2.9, "deit_b": 11.5, "mae_b": 11.5}


def published(model):
    """The schedules of a model: {GMACs: (tokens after pruning, after merging)}."""
    found, lines = {}, PUBLISHED.splitlines()
    for first, merge in zip(lines[::2], lines[1::2], strict=True):
        name, gmacs, *prune = first.split()
        if name == model:
            lists = (tuple(map(int, words)) for words in (prune, merge.split()))
            found[float(gmacs)] = tuple(lists)
    return found


@dataclasses.dataclass(frozen=True)
class AtMost(Rule):
    """At most `tokens` image tokens stay."""

    tokens: int

    def n_out(self, n, n0, stage):
        return None if self.tokens >= n else self.tokens


@dataclasses.dataclass(frozen=True)
class PruneAndMerge(Ranking):
    """The `kept` highest scores stay, of which the last join the most similar others.

    All other tokens are dropped. Features are plain means; a token that joins adds to
    the attention size only as much as it is like its partner (cosine of the tokens).
    """

    kept: int

    def __call__(self, taps, counts, train=False):
        n, n_out = counts.n_in, counts.n_out
        x, score = jax.lax.stop_gradient((taps.x, self.scores(taps, counts)))
        order = rank(score)
        tokens = invert(order, min(max(self.kept, n_out), n))
        if tokens.shape[1] == n_out:  # none joins: no arrays of no tokens
            dest = jnp.where(order < n_out, order, DROPPED)
            index, sizes = SlotIndex.one_each(tokens), taps.attn_size
            return Assignment(dest, attn_size=sizes, index=index, n_out=n_out)
        keep, joining = tokens[:, :n_out], tokens[:, n_out:]
        alike = cosine(gather_rows(x, joining), gather_rows(x, keep))
        _, target = find_partners(alike, jnp.arange(n_out, dtype=jnp.int32)[None])
        holds = joining[:, None, :] == jnp.arange(n, dtype=jnp.int32)[None, :, None]
        best = jnp.max(alike, axis=-1)[:, None, :]
        part = jnp.sum(jnp.where(holds, best, 0), axis=-1)
        return keep_and_join(keep, joining, target, n).replace(
            weight=jnp.ones_like(taps.size),
            attn_size=taps.attn_size * jnp.where(order < n_out, 1.0, part),
        )


@dataclasses.dataclass(frozen=True)
class DiffRate(Method):
    """Each block keeps so many tokens after pruning, and so many after merging.

    The published schedules of MAE-B hold for models with its name, or whose head reads
    the mean.
    """

    model_fields = {"prop_attn": True}
    amounts = ("target", "prune", "merge")
    small = {"prune": (26, 22, 17), "merge": (26, 19, 14)}

    # GMACs of a published schedule of the model's size; None: the one of `DEFAULT`.
    target: float | None = optional(weight())
    # Instead, tokens of each block after pruning and after merging, class token too.
    prune: tuple[int, ...] | None = optional(counts(least=2))
    merge: tuple[int, ...] | None = optional(counts(least=2))
    score: str = score()

    def __post_init__(self):
        super().__post_init__()
        if (self.prune is None) != (self.merge is None):
            problem = f"is {self.prune} and merge is {self.merge}"
            self.refuse("prune", "both or neither", problem)
        if self.prune is None:
            return
        for pruned, merged in zip(self.prune, self.merge, strict=False):
            if merged > pruned:
                problem = f"has {merged} where prune has {pruned}"
                self.refuse("merge", "as many tokens or fewer", problem)

    def resolved(self, model):
        """With the lists of the model's size. Raises InputError where it has none."""
        method = super().resolved(model)
        if self.counts is not None:
            return method
        if self.prune is not None:
            self.check_most("prune", model, model.patches + 1, least=2)
            return method
        name = BY_WIDTH.get(model.embed_dim)
        mae = model.pool == "mean" or ".mae" in (model.name or "")
        if name == "deit_b" and mae:
            name = "mae_b"
        if name is None or (model.depth, model.patches) != (12, 196):
            allowed = "DeiT-Ti, S, B and MAE-B with 196 patches, or prune and merge"
            problem = f"has no schedule for {model.depth} blocks of width "
            problem += f"{model.embed_dim} and {model.patches} patches"
            self.refuse("target", allowed, problem)
        target = DEFAULT[name] if self.target is None else self.target
        lists = published(name)
        if target not in lists:
            listed = ", ".join(map(str, lists))
            self.refuse("target", listed, f"is {target} for {name}")
        prune, merge = lists[target]
        return dataclasses.replace(method, prune=prune, merge=merge)

    def scaled(self, strength, depth, patches):
        """Both lists, as shares of all tokens, to a power."""
        prune, merge = (
            tuple(
                max(2, 1 + rounded(patches * share))
                for share in powered_shares([(n - 1) / patches for n in kept], strength)
            )
            for kept in (self.prune, self.merge)
        )
        return dataclasses.replace(self, prune=prune, merge=merge)

    def step_at(self, block, depth, tokens):
        """None is dropped: all that leave join the most attended."""
        return Step(block, PruneAndMerge(ALL, score=self.score), AtMost(0))

    def steps(self, depth):
        if self.prune is None:
            self.refuse("prune", "lists, which a model's size decides")
        for name in ("prune", "merge"):
            if len(getattr(self, name)) != depth:
                problem = f"has {len(getattr(self, name))} entries"
                self.refuse(name, f"{depth}, one for each block", problem)
        lists, steps = zip(self.prune, self.merge, strict=True), []
        for block, (pruned, merged) in enumerate(lists):
            reducer = PruneAndMerge(pruned - 1, score=self.score)
            steps.append(Step(block, reducer, AtMost(merged - 1)))
        return tuple(steps)
