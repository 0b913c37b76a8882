"""ToFu: prune in early blocks, fuse in late blocks (Kim et al., WACV 2024).

Pruning ends in the middle of the model, as in PiToMe's public code.
"""

import dataclasses

import jax
import jax.numpy as jnp

from imagepiece_jax.common.checks import option
from imagepiece_jax.kernels.merging import DROPPED, is_in_slot
from imagepiece_jax.kernels.similarity import vector_lengths
from imagepiece_jax.reduction.block_plan import KeepAtLeastHalf, Step
from imagepiece_jax.reduction.methods.method import KeepingShare, ModelFacts
from imagepiece_jax.reduction.reducers import Bipartite


class Discard(Bipartite):
    """Drop the tokens merged by ToMe."""

    def __call__(self, inputs, counts, train=False):
        assignment = super().__call__(inputs, counts, train)
        is_kept = _is_kept(assignment, inputs)
        slot_of_token = jnp.where(is_kept, assignment.slot_of_token, DROPPED)
        return dataclasses.replace(
            assignment, slot_of_token=slot_of_token, merges=False
        )


@dataclasses.dataclass(frozen=True)
class Fuse(Bipartite):
    """Merge the tokens merged by ToMe, but into plain means scaled per group."""

    def __call__(self, inputs, counts, train=False):
        assignment = super().__call__(inputs, counts, train)
        # [batch, slots, tokens] both
        is_member = is_in_slot(assignment.slot_of_token, counts.n_out)
        is_kept = is_member & _is_kept(assignment, inputs)[:, None, :]
        # Large tokens are divided per image, so that squares fit into float32: only
        # ratios of lengths count, which stay the same.
        x = inputs.x.astype(jnp.float32)  # [batch, tokens, dim]
        magnitude = jnp.abs(jax.lax.stop_gradient(x))
        max_magnitude = jnp.max(magnitude, axis=(1, 2), keepdims=True)
        scaled_x = x / jnp.where(max_magnitude > 2.0**56, max_magnitude, 1.0)
        # A group's scale is the greatest length of its tokens, divided by the length of
        # the token kept by the slot.
        length = vector_lengths(scaled_x)[:, None, :]
        num_members = jnp.sum(is_member, axis=-1)
        greatest_length = jnp.max(jnp.where(is_member, length, 0), axis=-1)
        kept_length = jnp.sum(jnp.where(is_kept, length, 0), axis=-1)
        # With these weights, a group's weighted sum is its scaled mean.
        slot_weight = greatest_length / kept_length / num_members.astype(jnp.float32)
        weight = jnp.sum(jnp.where(is_member, slot_weight[:, :, None], 0), axis=1)
        return dataclasses.replace(assignment, weight=weight, mean=False)


def _is_kept(assignment, inputs):
    """Whether a token is on side B, or stays on side A: A's slots stand first."""
    num_tokens = inputs.x.shape[1]
    first_token = inputs.num_prefix % 2
    num_b = (num_tokens + first_token) // 2
    is_b = jnp.arange(num_tokens) % 2 != first_token
    return (assignment.slot_of_token < assignment.n_out - num_b) | is_b[None]


@dataclasses.dataclass(frozen=True)
class ToFu(KeepingShare):
    """Remove floor((1 - keep_rate) N) of N tokens in every block, at most half.

    Blocks up to the middle of the model drop tokens; later blocks fuse tokens.
    """

    # of all tokens, in every block
    keep_rate: float = option(0.925, least=0, most=1)
    metric: str = "key"

    def steps(self, facts: ModelFacts) -> tuple[Step, ...]:
        rule = KeepAtLeastHalf(self.keep_rate, counts_class_token=True)
        steps = []
        for block in range(facts.depth):
            reducer_class = Discard if block <= facts.depth // 2 else Fuse
            steps.append(Step(block, reducer_class(self.metric), rule))
        return tuple(steps)
