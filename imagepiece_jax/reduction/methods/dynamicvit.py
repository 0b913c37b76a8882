"""DynamicViT: a small network learns which tokens to keep (Rao et al., NeurIPS 2021).

Training draws masks. It starts from a trained model, which is also the teacher.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from imagepiece_jax.reduction import token_selector
from imagepiece_jax.reduction.block_plan import BlockPlan, Step
from imagepiece_jax.reduction.methods import method
from imagepiece_jax.reduction.reducers import MaskingReducer, keep_highest
from imagepiece_jax.reduction.state import Masking, Outputs


class KeepPredictor(nn.Module, MaskingReducer):
    """Keep the tokens with the highest learned scores; masked training draws a mask."""

    @nn.compact
    def __call__(self, inputs, counts, train=False):
        scores = token_selector.KeepScores(name="scores")(inputs.x, inputs.mask)
        if counts.n_out < counts.n_in:
            return keep_highest(scores[..., 0], counts.n_out)
        return Masking(token_selector.draw_mask(scores, inputs.mask, inputs.rng))

    @nn.nowrap
    def extra_macs(self, n_in: int, embed_dim: int, num_heads: int) -> int:
        return token_selector.score_macs(n_in, embed_dim)


@dataclasses.dataclass(frozen=True)
class LearnedSelection(method.Method):
    """Base of methods with a learned selector: losses, a teacher, learning rates."""

    needs_teacher = True

    # Weights of loss terms; cross entropy has the weight 1:
    # live token shares against their targets
    ratio_weight: float = method.training_field(2.0, least=0)
    # logits against the teacher's logits
    kl_weight: float = method.training_field(0.5, least=0)
    # live tokens after the final norm against the teacher's tokens
    token_weight: float = method.training_field(0.5, least=0)
    # learning rate of the backbone / learning rate of the selectors
    backbone_lr: float = method.training_field(0.01, least=0, most=1)
    # number of first epochs that train only the selectors
    frozen_epochs: float = method.training_field(5.0, least=0)

    def loss(  # pyrefly: ignore[bad-override]
        self, outputs: Outputs, teacher_outputs: Outputs, plan: tuple[BlockPlan, ...]
    ) -> dict[str, Float[Array, ""]]:
        """Compute {name: loss term}, as means over this device's images.

        plan: planned for masked training
        Raises InputError if the teacher's patches, width or classes differ.
        """
        results = outputs.results
        masks = [result.keep for result in results if isinstance(result, Masking)]
        shares = self.kept_token_shares(masks)
        targets = self.target_kept_shares(plan)
        squared_errors = []  # empty without steps
        for share, target in zip(shares, targets, strict=True):
            squared_errors.append(jnp.mean((share - target) ** 2))
        ratio_loss = sum(squared_errors, jnp.float32(0)) / max(1, len(squared_errors))
        kl = token_selector.kl_divergence(outputs.logits, teacher_outputs.logits)
        token_loss = token_selector.token_loss(outputs, teacher_outputs)
        return {
            "ratio": self.ratio_weight * ratio_loss,
            "kl": self.kl_weight * jnp.mean(kl),
            "tokens": self.token_weight * token_loss,
        }

    def kept_token_shares(self, masks: list[jax.Array]) -> list[jax.Array]:
        """Shares of tokens kept by each step per image, [batch] each.

        masks: [batch, tokens] per step
        """
        return [jnp.mean(mask, axis=1) for mask in masks]

    def target_kept_shares(self, plan: tuple[BlockPlan, ...]) -> list[float]:
        """Shares of initial tokens kept in evaluation, per masking step."""
        shares = []
        num_initial = None  # image tokens before the first step
        for block_plan in plan:
            if block_plan.step is None or block_plan.counts is None:
                continue
            rule: Any = block_plan.step.rule
            num_initial = num_initial or block_plan.counts.n_in  # of the first step
            if block_plan.step.tokens is None:
                shares.append(rule.rate)
                continue
            # A package is not a staying token; every step so far has added one.
            num_packages = block_plan.counts.stage if rule.packages else 0
            shares.append((block_plan.step.tokens - num_packages) / num_initial)
        return shares

    def backbone_rate(self, lr: Any, peak_lr: float) -> Any:
        return self.backbone_lr * lr

    def param_groups(self, path: str) -> method.ParamGroup:  # pyrefly: ignore[bad-override]
        # Selectors have the scheduled learning rate. The backbone learns slower, after
        # the frozen epochs. Prefix tokens and positions are not trained.
        part = path.split("/")[0]  # of blocks_3/attn/q/kernel: blocks_3
        if part.startswith("reducer_"):
            return method.ParamGroup()
        if part in ("cls_token", "dist_token", "reg_token", "pos_embed"):
            return method.ParamGroup(frozen_epochs=math.inf)
        return method.ParamGroup(self.backbone_rate, self.frozen_epochs)


@dataclasses.dataclass(frozen=True)
class DynamicViT(method.InStages, LearnedSelection):
    """Before the s-th of `blocks`, keep floor(n0 * keep_rate**s) of n0 image tokens."""

    def steps(self, facts: method.ModelFacts) -> tuple[Step, ...]:
        return self.stage_steps(facts, KeepPredictor(), site="pre", added_when_masked=0)
