"""DiffRate: prune and merge in one step, by searched rates (Chen et al., ICCV 2023).

The search of the rates is not part of this: its published results are.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from imagepiece_jax.common.fields import choice, counts, optional, weight
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.layer_plan import Step
from imagepiece_jax.reduction.methods.diffrate_schedules import SCHEDULES
from imagepiece_jax.reduction.methods.method import Method, along
from imagepiece_jax.reduction.ops import cosine, gather_rows, invert, rank
from imagepiece_jax.reduction.reducers import (
    SCORES,
    Ranking,
    find_partners,
    keep_and_join,
)
from imagepiece_jax.reduction.token_counts import Rule
from imagepiece_jax.reduction.tokens import DROPPED, Assignment, SlotIndex

BY_WIDTH = {192: "deit_ti", 384: "deit_s", 768: "deit_b"}
# Of those that a model has, the target that its authors report accuracies of; DeiT-Ti:
# the one of the same share.
DEFAULT = {"deit_ti": 0.8, "deit_s": 2.9, "deit_b": 11.5, "mae_b": 11.5}


@dataclasses.dataclass(frozen=True)
class PruneThenMerge(Rule):
    """At most `pruned` image tokens stay, then at most `merged` of them."""

    pruned: int
    merged: int

    def n_out(self, n, n0, stage):
        left = min(self.pruned, self.merged, n)
        return None if left == n else left


@dataclasses.dataclass(frozen=True)
class PruneAndMerge(Ranking):
    """Of the `kept` highest scores the last join the most similar others.

    All others are dropped. Features are plain means; a token that joins adds to the
    attention size only as much as it is like its partner (cosine of the tokens).
    """

    kept: int

    def __call__(self, taps, counts, train=False):
        n, n_out = counts.n_in, counts.n_out
        x, score = jax.lax.stop_gradient((taps.x, self.scores(taps, counts)))
        order = rank(score)
        tokens = invert(order, min(self.kept, n))
        if tokens.shape[1] == n_out:  # none joins: no arrays of no tokens
            return Assignment(
                dest=jnp.where(order < n_out, order, DROPPED),
                index=SlotIndex.of_kept(tokens),
                n_out=n_out,
                attn_size=taps.attn_size,
            )
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

    target: GMACs of a published schedule of the model's size (`SCHEDULES`; MAE-B by
    name, or where the head reads the mean), None: the one of `DEFAULT`. prune, merge:
    tokens of each block instead, class token included. score: what takes the place of
    class attention.
    """

    model_fields: ClassVar[dict[str, bool]] = {"prop_attn": True}
    small: ClassVar[dict[str, Any]] = {"prune": (26, 22, 17), "merge": (26, 19, 14)}

    target: float | None = optional(weight())
    prune: tuple[int, ...] | None = optional(counts(least=2))
    merge: tuple[int, ...] | None = optional(counts(least=2))
    score: str = choice("auto", tuple(SCORES))

    def __post_init__(self):
        super().__post_init__()
        if (self.prune is None) != (self.merge is None):
            raise InputError(
                f"config.reduction.prune is {self.prune} and merge is {self.merge}; "
                "allowed are both or neither"
            )
        if self.prune is None:
            return
        for pruned, merged in zip(self.prune, self.merge, strict=False):
            if merged > pruned:
                raise InputError(
                    f"config.reduction.merge has {merged} where prune has {pruned}; "
                    "allowed are as many tokens or fewer"
                )

    def knob(self, depth):
        targets = {target for own in SCHEDULES.values() for target in own}
        return along("target", sorted(targets))

    def resolved(self, model):
        """With the lists of the model's size; InputError where none was published."""
        method = super().resolved(model)
        if self.prune is not None:
            tokens = f"the {model.patches} image tokens and the class token"
            self.check_most("prune", model.patches + 1, tokens, least=2)
            return method
        name = BY_WIDTH.get(model.embed_dim)
        mae = model.pool == "mean" or ".mae" in (model.name or "")
        if name == "deit_b" and mae:
            name = "mae_b"
        if name is None or (model.depth, model.patches) != (12, 196):
            raise InputError(
                f"config.reduction.target has no schedule for {model.depth} blocks of "
                f"width {model.embed_dim} and {model.patches} patches; published are "
                "those of DeiT-Ti, S, B and MAE-B with 196: name "
                "config.reduction.prune and merge"
            )
        target = DEFAULT[name] if self.target is None else self.target
        if target not in SCHEDULES[name]:
            raise InputError(
                f"config.reduction.target is {target}; allowed for {name} are "
                f"{', '.join(map(str, SCHEDULES[name]))}"
            )
        lists = [tuple(map(int, text.split())) for text in SCHEDULES[name][target]]
        return dataclasses.replace(method, prune=lists[0], merge=lists[1])

    def steps(self, depth):
        if self.prune is None:
            raise InputError(
                "config.reduction.prune is None; a model's size decides it"
            )
        for name in ("prune", "merge"):
            if len(getattr(self, name)) != depth:
                raise InputError(
                    f"config.reduction.{name} has {len(getattr(self, name))} entries; "
                    f"allowed are {depth}, one for each block"
                )
        lists = enumerate(zip(self.prune, self.merge, strict=True))
        return tuple(
            Step(
                block,
                PruneAndMerge(pruned - 1, score=self.score),
                PruneThenMerge(pruned - 1, merged - 1),
            )
            for block, (pruned, merged) in lists
        )
