"""DynamicViT: a small network learns which tokens to keep (Rao et al., NeurIPS 2021).

Training draws masks; it starts from a trained model, which is also its teacher.
"""

import dataclasses
import math

import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.common.fields import rate, weight
from imagepiece_jax.reduction import token_selector
from imagepiece_jax.reduction.methods.method import InStages, Method, ParamGroup
from imagepiece_jax.reduction.reducers import MaskingReducer, keep_highest
from imagepiece_jax.reduction.token_selector import logit_loss, ratio_loss, token_loss
from imagepiece_jax.reduction.tokens import Masking


class KeepPredictor(nn.Module, MaskingReducer):
    """Keep what a learned score ranks highest; in a masked plan, mask a random draw."""

    @nn.compact
    def __call__(self, taps, counts, train=False):
        scores = token_selector.KeepScores(name="scores")(taps.x, taps.mask)
        if counts.n_out < counts.n_in:
            return keep_highest(scores[..., 0], counts.n_out)
        return Masking(token_selector.draw_mask(scores, taps.mask, taps.rng))

    @nn.nowrap
    def extra_macs(self, n_in, embed_dim, num_heads):
        return token_selector.keep_macs(n_in, embed_dim)


@dataclasses.dataclass(frozen=True)
class LearnedSelection(Method):
    """What methods with a learned selector share: losses, a teacher, learning rates.

    The weights are those of loss terms; cross entropy has 1.
    """

    needs_teacher = True

    # Share of live tokens against its target.
    ratio_weight: float = weight(2.0, training=True)
    kl_weight: float = weight(0.5, training=True)  # logits against the teacher's
    # Live tokens against the teacher's, after the last norm.
    token_weight: float = weight(0.5, training=True)
    # Share of the rate that all but the selectors get.
    backbone_lr: float = rate(0.01, training=True)
    # First epochs in which only the selectors learn.
    frozen_epochs: float = weight(5.0, training=True)

    def loss(self, outputs, teacher_outputs, plan):
        """Live shares to their targets, logits and tokens to the teacher's.

        The means are over this device's images; `plan` is that of masked training.
        Raises InputError for a teacher of other tokens, width or classes.
        """
        token_selector.check_teacher(outputs, teacher_outputs)
        masks = [r.keep for r in outputs.results if isinstance(r, Masking)]
        shares = self.live_shares(masks)
        targets = self.target_shares(plan)
        return {
            "ratio": self.ratio_weight * ratio_loss(shares, targets),
            "kl": self.kl_weight * logit_loss(outputs.logits, teacher_outputs.logits),
            "tokens": self.token_weight * token_loss(outputs, teacher_outputs),
        }

    def live_shares(self, masks):
        """Share of live tokens in each image, at each masking step. -> [B] each."""
        return [jnp.mean(mask, axis=1) for mask in masks]

    def target_shares(self, plan):
        """Share of the initial tokens that evaluation keeps at each masking step."""
        layers = [layer for layer in plan if layer.counts]
        shares = []
        for layer in layers:
            step = layer.step
            stage = layer.counts.stage
            if step.tokens is None:
                shares.append(step.rule.rate)
                continue
            tokens = step.tokens
            if step.rule.packages:  # which are no tokens that stay
                tokens -= stage
            shares.append(tokens / layers[0].counts.n_in)
        return shares

    def backbone_rate(self, lr, peak):
        """Learning rate of the backbone under the schedule's `lr`."""
        return self.backbone_lr * lr

    def param_groups(self, path):
        """Selectors follow the schedule, the backbone a share of it, later.

        Prefix tokens and positions stay as they are.
        """
        name = path.split("/")[0]
        if name.startswith("reducer_"):
            return ParamGroup()
        if name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
            return ParamGroup(frozen_epochs=math.inf)
        return ParamGroup(self.backbone_rate, self.frozen_epochs)


@dataclasses.dataclass(frozen=True)
class DynamicViT(InStages, LearnedSelection):
    """Before the s-th of `blocks` keep int(n0 * keep_rate**s) tokens, n0 at first."""

    def steps(self, depth):
        return self.stages(KeepPredictor(), site="pre", when_masked=0)
