"""DynamicViT: a small network learns which tokens to keep (Rao et al., NeurIPS 2021).

Training draws masks. It starts from a trained model, which is also the teacher.
"""

import dataclasses
import math

import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.common.checks import check_range
from imagepiece_jax.reduction import token_selector
from imagepiece_jax.reduction.methods.method import (
    InStages,
    Method,
    ParamGroup,
    of_training,
)
from imagepiece_jax.reduction.reducers import MaskingReducer, keep_highest
from imagepiece_jax.reduction.state import Masking
from imagepiece_jax.reduction.token_selector import (
    kl_divergence,
    ratio_loss,
    token_loss,
)


class KeepPredictor(nn.Module, MaskingReducer):
    """Keeps the tokens of the highest learned scores.

    In masked training it masks tokens by a random draw.
    """

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
    """Base of methods with a learned selector: losses, a teacher, learning rates."""

    needs_teacher = True

    # Weights of loss terms, where cross entropy has the weight 1:
    # shares of live tokens compared with their targets
    ratio_weight: float = of_training(2.0)
    # logits compared with the teacher's
    kl_weight: float = of_training(0.5)
    # live tokens after the final norm compared with the teacher's
    token_weight: float = of_training(0.5)
    # learning rate of the backbone / that of the selectors
    backbone_lr: float = of_training(0.01)
    # number of first epochs in which only the selectors learn
    frozen_epochs: float = of_training(5.0)

    def __post_init__(self):
        super().__post_init__()
        for name in ("ratio_weight", "kl_weight", "token_weight", "frozen_epochs"):
            check_range(name, getattr(self, name), 0)
        check_range("backbone_lr", self.backbone_lr, 0, 1)

    def loss(self, outputs, teacher_outputs, plan):
        """{name: loss term}, as means over the images of this device.

        plan: the plan of masked training
        Raises InputError for a teacher of other tokens, width or classes.
        """
        token_selector.check_teacher(outputs, teacher_outputs)
        masks = [r.keep for r in outputs.results if isinstance(r, Masking)]
        shares = self.live_shares(masks)
        targets = self.target_shares(plan)
        kl = kl_divergence(outputs.logits, teacher_outputs.logits)
        return {
            "ratio": self.ratio_weight * ratio_loss(shares, targets),
            "kl": self.kl_weight * jnp.mean(kl),
            "tokens": self.token_weight * token_loss(outputs, teacher_outputs),
        }

    def live_shares(self, masks):
        """Shares of live tokens in each image: an array [B] for each masking step."""
        return [jnp.mean(mask, axis=1) for mask in masks]

    def target_shares(self, plan):
        """Shares of the initial tokens that evaluation keeps at the masking steps."""
        layers = [layer for layer in plan if layer.counts]
        shares = []
        for layer in layers:
            step = layer.step
            stage = layer.counts.stage
            if step.tokens is None:
                shares.append(step.rule.rate)
                continue
            tokens = step.tokens
            if step.rule.packages:  # packages are not among the tokens that stay
                tokens -= stage
            shares.append(tokens / layers[0].counts.n_in)
        return shares

    def backbone_rate(self, lr, peak):
        """Learning rate of the backbone under the schedule's `lr`."""
        return self.backbone_lr * lr

    def param_groups(self, path):
        """How each parameter is trained.

        Selectors have the schedule's learning rate. The backbone learns slower, after
        the frozen epochs. Prefix tokens and positions are not trained.
        """
        name = path.split("/")[0]
        if name.startswith("reducer_"):
            return ParamGroup()
        if name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
            return ParamGroup(frozen_epochs=math.inf)
        return ParamGroup(self.backbone_rate, self.frozen_epochs)


@dataclasses.dataclass(frozen=True)
class DynamicViT(InStages, LearnedSelection):
    """Before the s-th of `blocks`, int(n0 * keep_rate**s) of n0 image tokens stay."""

    def steps(self, depth):
        return self.stages(KeepPredictor(), site="pre", when_masked=0)
