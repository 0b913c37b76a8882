"""ImagePiece: merge unimportant tokens, reassess them, then prune (AAAI 2025)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.fields import blocks, choice, optional, rate, switch
from imagepiece_jax.reduction.layer_plan import Step
from imagepiece_jax.reduction.methods.method import Method, metric, score
from imagepiece_jax.reduction.ops import cosine_within, gather_rows, invert, pick, rank
from imagepiece_jax.reduction.reducers import (
    Ranking,
    TopK,
    find_partners,
    merge_in_place,
)
from imagepiece_jax.reduction.token_counts import Keep, Merge


@dataclasses.dataclass(frozen=True)
class Retokenize(Ranking):
    """Merge unimportant tokens with their most similar partners (ImagePiece, step II).

    The `candidates` tokens of the lowest scores (the paper's is class attention),
    ordered by score, alternate between two sides; those of side A whose best partner on
    side B is most similar are merged into it, at its place. All other tokens keep their
    order.
    """

    order: str = "descending"  # starts with the highest candidate
    parity: int = 0  # which of the first two candidates is on side A
    metric: str = "key"  # the compared feature: "key", "query", "value" or "token"
    size_weighting: bool = True  # a merged token is the mean over patches, not tokens

    def __call__(self, taps, counts, train=False):
        n = counts.n_in
        b = counts.candidates
        r = counts.n_in - counts.n_out
        score = jax.lax.stop_gradient(self.scores(taps, counts))
        # The candidates by their place, the highest first; side A before side B.
        place = np.arange(b)
        if self.order == "ascending":
            place = place[::-1]
        side_a = place[self.parity :: 2]
        side_b = place[1 - self.parity :: 2]
        place = np.concatenate([side_a, side_b])
        first = (b + 1 - self.parity) // 2
        candidates = invert(rank(score), n - b + place)  # [B, b]
        similarity = self.similarity(taps, candidates, first)
        best, partner = find_partners(similarity, candidates[:, first:])
        absorbed, partners = pick(rank(best), r, candidates[:, :first], partner)
        result = merge_in_place(absorbed, partners, counts)
        if self.size_weighting:
            return result
        return result.replace(weight=jnp.ones_like(taps.size))

    def similarity(self, taps, candidates, first):
        """Side A, the `first` candidates, to side B. -> [B, first, b - first]."""
        metric = gather_rows(jax.lax.stop_gradient(taps.metric), candidates)
        return cosine_within(metric)[:, :first, first:]


@dataclasses.dataclass(frozen=True)
class ImagePiece(Method):
    """Merge steps over the least attended tokens, then prune steps by class attention.

    `inattentive` says what becomes of the least attended tokens: "merge" is ImagePiece,
    and "drop" a control with the same token counts.
    """

    amounts = ("keep_rate", "merge_ratio")

    keep_rate: float = rate(0.8)  # of the image tokens, at each prune step
    merge_ratio: float = rate(0.08)  # of all tokens, class token included
    candidate_ratio: float = rate(0.3)  # the least attended share, which may be merged
    # "B": merge 0 1 3 4 6 7, prune 2 5 8; "A": one block later.
    schedule: str = choice("B", ("A", "B"))
    merge_blocks: tuple[int, ...] | None = optional(blocks())  # override the schedule
    prune_blocks: tuple[int, ...] | None = optional(blocks())
    # What merge_ratio counts; at most half of the candidates merge, into the others.
    merge_base: str = choice("all", ("all", "candidates"))
    # Candidates are split most attended first, or least.
    order: str = choice("descending", ("descending", "ascending"))
    parity: int = choice(0, (0, 1))  # which of the first two candidates may leave
    metric: str = metric()
    size_weighting: bool = switch(True)  # a merged token is the mean over its patches
    score: str = score()
    inattentive: str = choice("merge", ("merge", "drop"))

    def scaled(self, strength, depth, patches):
        """Both rates together, from 1 and 0 through its own to the end of one.

        Where it does not prune, only the merge ratio.
        """
        drop = 1 - self.keep_rate
        merge = self.merge_ratio
        if self.prune_blocks == ():
            return dataclasses.replace(self, merge_ratio=round(strength, 6))
        far = strength / max(drop, merge, 1e-6)
        keep = round(1 - drop * far, 6)
        merge = round(merge * far, 6)
        return dataclasses.replace(self, keep_rate=keep, merge_ratio=merge)

    def step_at(self, block, depth, tokens):
        steps = self.steps(depth)
        at = {step.block: step for step in steps}
        if block not in at:
            listed = ", ".join(map(str, at))
            allowed = f"changes at {listed}, or other merge_blocks and prune_blocks"
            self.refuse("counts", allowed, f"changes at block {block}")
        return at[block]

    def steps(self, depth):
        merge = self.merge_blocks
        prune = self.prune_blocks
        if merge is None:
            merge, _ = self.scheduled_blocks(depth)
        if prune is None:
            _, prune = self.scheduled_blocks(depth)
        steps = [*map(self.merge_step, merge), *map(self.prune_step, prune)]
        return tuple(sorted(steps, key=lambda step: step.block))

    def merge_step(self, block: int) -> Step:
        """A step that merges unimportant tokens, or drops as many."""
        rule = Merge(self.merge_ratio, self.candidate_ratio, self.merge_base)
        if self.inattentive == "drop":
            return Step(block, TopK(score=self.score), rule)
        switches = (self.order, self.parity, self.metric, self.size_weighting)
        return Step(block, Retokenize(*switches, score=self.score), rule)

    def prune_step(self, block: int) -> Step:
        """A step that removes tokens; combinations with other methods override it."""
        return Step(block, TopK(score=self.score), Keep(self.keep_rate))

    def scheduled_blocks(self, depth):
        """(merge blocks, prune blocks) of the schedule: merge, merge, prune, repeated.

        "B" counts the paper's layer numbers from one, "A" takes them as block indices;
        "B" agrees with the reported speeds. Both leave out the last blocks: there are
        depth // 4 cycles.
        """
        cycles = depth // 4
        if cycles == 0:
            allowed = "a depth of 4 or more, or merge_blocks and prune_blocks"
            problem = f"is {self.schedule!r} with a depth of {depth}"
            self.refuse("schedule", allowed, problem)
        first = 1 if self.schedule == "A" else 0
        merge = []
        prune = []
        for cycle in range(cycles):
            block = first + 3 * cycle
            merge += [block, block + 1]
            prune.append(block + 2)
        return tuple(merge), tuple(prune)
