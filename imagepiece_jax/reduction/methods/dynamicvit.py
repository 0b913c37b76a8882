"""DynamicViT: a small network learns which tokens to keep (Rao et al., NeurIPS 2021).

Training draws masks and removes nothing; evaluation keeps the best, as many as the rate
says. It starts from a trained model, with that model, frozen, as its teacher.
"""

import functools
import math
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.reduction import token_selector
from imagepiece_jax.reduction.methods.method import Group, Method
from imagepiece_jax.reduction.reducers import keep_highest
from imagepiece_jax.reduction.schedule import (
    Step,
    check_blocks,
    check_rate,
    check_weight,
)
from imagepiece_jax.reduction.tokens import Masking


class Predictor(nn.Module):
    """Keep what a learned score ranks highest; in a masked plan, mask a random draw."""

    needs: ClassVar[frozenset[str]] = frozenset({"rng"})

    @nn.compact
    def __call__(self, taps, counts, train=False):
        scores = token_selector.KeepScores(name="scores")(taps.x, taps.mask)
        if counts.n_out < counts.n_in:
            return keep_highest(scores[..., 0], counts.n_out)
        return Masking(token_selector.draw_mask(scores, taps.mask, taps.rng))

    @nn.nowrap
    def extra_macs(self, n_in, embed_dim, num_heads):
        return token_selector.keep_macs(n_in, embed_dim)


def recipe(depth, keep_rate=0.7, blocks=(3, 6, 9)):
    """Before the s-th of `blocks` keep int(n0 * keep_rate**s) tokens, n0 at first."""
    keep_rate = check_rate("keep_rate", keep_rate)
    blocks = check_blocks("blocks", blocks)
    return tuple(
        Step(block, Predictor(), "keep_initial", keep_rate**s, "pre", when_masked=0)
        for s, block in enumerate(sorted(blocks), start=1)
    )


def loss(
    outputs, teacher_outputs, plan, ratio_weight=2.0, kl_weight=0.5, token_weight=0.5
):
    """Each image's live share at its target, logits and live tokens at the teacher's.

    The means are over this device's images; `plan` is that of masked training.
    """
    shares = [jnp.mean(result.keep, axis=1) for result in outputs.results]
    targets = [layer.step.amount for layer in plan if layer.counts]
    return weighted(
        outputs, teacher_outputs, shares, targets, ratio_weight, kl_weight, token_weight
    )


def weighted(
    outputs, teacher_outputs, shares, targets, ratio_weight, kl_weight, token_weight
):
    """The three terms: ratio (one share and one target a stage), kl and tokens."""
    ratio_weight = check_weight("ratio_weight", ratio_weight)
    kl_weight = check_weight("kl_weight", kl_weight)
    token_weight = check_weight("token_weight", token_weight)
    ratio = ratio_weight * token_selector.ratio_loss(shares, targets)
    rest = token_selector.distillation(
        outputs, teacher_outputs, kl_weight, token_weight
    )
    return {"ratio": ratio} | rest


def param_groups(path, backbone_lr=0.01, frozen_epochs=5.0):
    """Predictors follow the schedule, the backbone a share of it, later.

    `backbone_lr` times the schedule's rate, 0 for the first `frozen_epochs`; class
    token and positions stay as they are.
    """
    backbone_lr = check_rate("backbone_lr", backbone_lr)
    frozen_epochs = check_weight("frozen_epochs", frozen_epochs)
    return group_of(path, _backbone(backbone_lr, frozen_epochs))


def group_of(path, backbone):
    """Group of a parameter: predictors, the fixed ones, or `backbone` for the rest."""
    name = path.split("/")[0]
    if name.startswith("reducer_"):
        return Group()
    return FIXED if name in ("cls_token", "pos_embed") else backbone


FIXED = Group(frozen_epochs=math.inf)


@functools.cache  # one group, equal to itself, for all parameters of the backbone
def _backbone(share, frozen_epochs):
    return Group(lambda rate, peak: share * rate, frozen_epochs)


METHOD = Method(recipe=recipe, loss=loss, param_groups=param_groups, needs_teacher=True)
