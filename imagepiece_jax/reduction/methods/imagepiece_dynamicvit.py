"""ImagePiece + DynamicViT: retokenise, and where it prunes a learned score decides.

Two ways to train: "mask" removes nothing at the prune steps and draws masks, as
DynamicViT does; "topk" removes what evaluation would, by scores with noise, and is
faster. Merge steps merge in both. Parameters and evaluation are the same.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.reduction import schedule, token_selector
from imagepiece_jax.reduction.methods import dynamicvit, imagepiece
from imagepiece_jax.reduction.methods.method import Method, takes_fields_of
from imagepiece_jax.reduction.reducers import keep_highest
from imagepiece_jax.reduction.tokens import Masking


class NoisyTopK(nn.Module):
    """Keep what a learned score ranks highest, in training after Gumbel noise.

    There a kept token is multiplied by a factor that is 1 and has the gradient of its
    keep probability: so the score learns.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"rng"})

    @nn.compact
    def __call__(self, taps, counts, train=False):
        score = token_selector.KeepScores(name="scores")(taps.x, taps.mask)[..., 0]
        if not train:
            return keep_highest(score, counts.n_out)
        noisy = score + token_selector.gumbel(taps.rng, score.shape[1:])
        factor = token_selector.straight_through(jnp.ones_like(score), jnp.exp(score))
        chosen = keep_highest(jax.lax.stop_gradient(noisy), counts.n_out)
        return chosen.replace(weight=factor, mean=False)

    @nn.nowrap
    def extra_macs(self, n_in, embed_dim, num_heads):
        return token_selector.keep_macs(n_in, embed_dim)


# mode -> (reducer, tokens that the masked plan adds: None, it removes them)
MODES = {"mask": (dynamicvit.Predictor, 0), "topk": (NoisyTopK, None)}


@takes_fields_of(imagepiece.recipe)
def recipe(depth, mode="mask", predictor_pos="mid", **fields):
    """ImagePiece's steps; those that prune keep as many, by a learned score.

    mode: how the score is trained, "mask" or "topk"; predictor_pos: whether it reads
    the tokens between attention and MLP ("mid") or before the block ("pre").
    """
    schedule.check_choice("mode", mode, tuple(MODES))
    schedule.check_choice("predictor_pos", predictor_pos, ("mid", "pre"))
    reducer, when_masked = MODES[mode]
    learns = {"reducer": reducer(), "site": predictor_pos, "when_masked": when_masked}
    return tuple(
        dataclasses.replace(step, **learns) if step.rule == "keep" else step
        for step in imagepiece.recipe(depth, **fields)
    )


def kept_shares(plan, n0):
    """Share of its tokens that evaluation keeps up to each masking step of `plan`.

    The products of n_out / n_in over the prune steps; merge steps do not count.
    """
    steps = [layer.step for layer in plan if layer.step]
    shares, share = [], 1.0
    for layer in schedule.build(len(plan), n0, steps):
        if layer.counts and layer.step.when_masked is not None:
            share *= layer.counts.n_out / layer.counts.n_in
            shares.append(share)
    return shares


def loss(
    outputs, teacher_outputs, plan, ratio_weight=2.0, kl_weight=0.5, token_weight=0.5
):
    """DynamicViT's, with the counts of evaluation as targets; no targets for "topk".

    Where the student merged tokens the teacher's are merged alike, then compared.
    """
    masks = [r.keep for r in outputs.results if isinstance(r, Masking)]
    shares = [jnp.mean(mask, axis=1) for mask in masks]
    n0 = outputs.taps[0].x.shape[1] if masks else 0
    targets = kept_shares(plan, n0) if masks else []
    return dynamicvit.weighted(
        outputs, teacher_outputs, shares, targets, ratio_weight, kl_weight, token_weight
    )


METHOD = Method(
    recipe=recipe,
    loss=loss,
    param_groups=dynamicvit.param_groups,
    needs_teacher=True,
)
