"""One transformer block: attention, token reduction, MLP."""

import dataclasses
from collections.abc import Callable, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from imagepiece_jax.common.rng import root_key
from imagepiece_jax.errors import titled_errors
from imagepiece_jax.kernels.array_shapes import TokenRows
from imagepiece_jax.kernels.attention import attend_merged, attention_map
from imagepiece_jax.kernels.token_layout import add_branch, call_on_rows, flatten_tokens
from imagepiece_jax.models.attention import Attention, DirectedAttention
from imagepiece_jax.models.config import Execution, ViTConfig
from imagepiece_jax.models.layers import LayerNorm, LayerScale, Mlp
from imagepiece_jax.reduction import contract, moves
from imagepiece_jax.reduction.block_plan import BlockPlan, StepCounts
from imagepiece_jax.reduction.reducers import ATTENTION_SCORES, shift_shares
from imagepiece_jax.reduction.state import ReducerInputs, TokenState

NamedScores = dict[str, jax.Array]  # of image tokens, by name
Probe = Callable[[TokenState], jax.Array]
Factor = Float[Array, " batch"] | None  # drop path's, of a branch; None: 1


class Decision(NamedTuple):
    """What a reducer read, and its result."""

    inputs: ReducerInputs
    result: Any


@dataclasses.dataclass(frozen=True)
class BlockReduction:
    """One block's reduction: from tokens and scores to fewer tokens."""

    block_index: int
    counts: StepCounts
    reducer: Any  # the plan's reducer, bound to its parameters
    num_heads: int
    keys: dict[str, jax.Array] | None = None  # `keys` of the model's call
    # attention from the pool's probe to a state's image tokens; None without an
    # attention pool
    probe: Probe | None = None

    def __call__(
        self, state: TokenState, scores: NamedScores, train: bool = False
    ) -> tuple[TokenState, Decision]:
        """Reduce a state: (new state, Decision)."""
        inputs = self._collect_inputs(state, scores, train)
        result = self.reducer(inputs, self.counts, train)
        with titled_errors(f"block {self.block_index}, {type(self.reducer).__name__}"):
            contract.check_form(result, self.counts)
        return moves.apply_result(state, result), Decision(inputs, result)

    def _collect_inputs(self, state, scores, train):
        """Collect the reducer's inputs from a state and its scores."""
        reducer = self.reducer
        fields: dict[str, Any] = {
            "x": state.image_rows(state.x),
            "size": state.image_rows(state.size),
            "attn_size": state.image_rows(state.effective_size),
            "metric": scores.get(reducer.metric),
            **{name: scores.get(name) for name in (*ATTENTION_SCORES, "shift")},
            "mask": state.mask,
            "grid": state.grid,
            "num_prefix": state.num_prefix,
            "num_heads": self.num_heads,
            "all_x": state.x,
        }
        if reducer.metric == "key":
            fields["all_metric"] = scores.get("all_keys")  # of DirectedAttention
        if reducer.metric == "token":
            fields["metric"] = fields["x"]
        if "key" in reducer.needed_inputs:
            fields["key"] = scores["key"]
        if self.probe and "probe" in reducer.needed_inputs:
            fields["probe"] = self.probe(state)
        if reducer.draws_random(self.counts, train):
            if self.keys is None:  # fixed keys, one per image
                image_indices = jnp.arange(len(state.x))
                fold_in_indices = jax.vmap(jax.random.fold_in, (None, 0))
                image_keys = fold_in_indices(root_key(0), image_indices)
            else:
                image_keys = self.keys["reducer"]
            fold_in = jax.vmap(jax.random.fold_in, (0, None))
            fields["rng"] = fold_in(image_keys, self.block_index)
        return ReducerInputs(**fields)


class Block(nn.Module):
    """A block: attention, token reduction, MLP. `vit.ViT` explains shared fields."""

    config: ViTConfig
    execution: Execution
    index: int  # from 0
    block_plan: BlockPlan
    prop_attn: bool = False
    # Only the first `num_queries` tokens attend and are returned, which are prefix
    # tokens. None: all tokens.
    num_queries: int | None = None

    def setup(self) -> None:
        arch = self.config.arch
        dtype = self.execution.dtype
        hidden_dim = round(self.config.embed_dim * self.config.mlp_ratio)
        self.norm1 = LayerNorm(dtype, arch.norm_eps)
        is_directed = self.execution.size_encoding == "direction"
        attention_class = DirectedAttention if is_directed else Attention
        self.attn = attention_class(self.config, self.execution, self.prop_attn)
        self.norm2 = LayerNorm(dtype, arch.norm_eps)
        hidden_eps = arch.norm_eps if arch.mlp_norm else None
        self.mlp = Mlp(hidden_dim, arch.gelu, dtype, arch.mlp, hidden_eps)
        self.ls1 = LayerScale() if arch.layer_scale else lambda x: x
        self.ls2 = LayerScale() if arch.layer_scale else lambda x: x

    def __call__(
        self,
        state: TokenState,
        scores: NamedScores,
        reduction: BlockReduction | None = None,
        drop_path: tuple[Factor, Factor] = (None, None),
        train: bool = False,
    ) -> tuple[TokenState, NamedScores, Decision | None]:
        """Run the block: (state, scores, the reduction's Decision or None).

        state, scores: tokens and token scores from the block before
        reduction: None keeps all tokens
        drop_path: factors of the two residual branches
        """
        site = self.block_plan.site
        score_names = self.block_plan.attention_reads
        if self.num_queries and site == "mid":  # no image token is left to reduce
            site = None
            score_names = frozenset()
        attend = Block.attend
        feed_forward = Block.feed_forward
        if self.execution.remat and train:
            # nn.remat takes methods of the class; 3 and 4 are score_names and train.
            attend = nn.remat(attend, static_argnums=(3, 4))
            feed_forward = nn.remat(feed_forward)
        decision = None
        if reduction and site == "pre":
            state, decision = reduction(state, scores, train)
        if reduction and site == "attention":
            state, scores, decision = self.attend_reduced(
                state, reduction, drop_path[0], train
            )
        else:
            x, scores = attend(self, state, drop_path[0], score_names, train)
            state = dataclasses.replace(self._cut_to_queries(state), x=x)
        if reduction and site == "mid":
            state, decision = reduction(state, scores, train)
        state = dataclasses.replace(state, x=feed_forward(self, state.x, drop_path[1]))
        return state, scores, decision

    def attend(
        self, state: TokenState, factor: Factor, score_names: Set[str], train: bool
    ) -> tuple[TokenRows, NamedScores]:
        """The attention branch: (x + factor * attention(norm(x)), scores)."""
        normed_x = self._norm_input(state.x)
        out, scores = self.attn(normed_x, state, score_names, train, self.num_queries)
        branch = self._scale_output(out)
        if "shift" in score_names:
            mask = state.mask
            # The mask is 0 or 1, but has a gradient, so it is floats.
            live_mask = None if mask is None else (mask > 0.5).astype(jnp.float32)
            scores["shift"] = shift_shares(state.image_rows(branch), live_mask)
        # The branch has rows of the queries alone, so x gets the same rows.
        return add_branch(self._cut_to_queries(state).x, branch, factor), scores

    def attend_reduced(
        self, state: TokenState, reduction: BlockReduction, factor: Factor, train: bool
    ) -> tuple[TokenState, NamedScores, Decision]:
        """Attention with a reduction inside: (state, scores, Decision)."""
        # Queries and keys see all tokens. Values are computed after the reduction, for
        # the remaining tokens.
        normed_x = self._norm_input(state.x)
        heads = self.attn.project_heads(normed_x, state, with_value=False)
        attention = attention_map(heads.query, heads.key, heads.key_bias, heads.mask)
        if self.num_queries:  # of [batch, heads, queries, tokens]
            attention = attention[:, :, : self.num_queries]
        scores = self.attn.token_scores(heads, self.block_plan.attention_reads, state)
        size_before = state.size
        state, decision = reduction(state, scores, train)
        value = self.attn.project_values(self._norm_input(state.x))
        merged_heads = attend_merged(attention, value, decision.result, size_before)
        branch = self._scale_output(self.attn.project_output(merged_heads))
        state = self._cut_to_queries(state)
        x = add_branch(state.x, branch, factor)
        return dataclasses.replace(state, x=x), scores, decision

    def feed_forward(self, x: TokenRows, factor: Factor = None) -> TokenRows:
        """x + mlp(norm(x))."""
        if self.config.arch.post_norm:
            branch = self.norm2(self.mlp(flatten_tokens(x)))
        else:
            branch = self.mlp(self.norm2(flatten_tokens(x)))
        return add_branch(x, self.ls2(branch), factor)

    def _cut_to_queries(self, state):
        """Cut `state` to the tokens returned by the block, which nothing reduces."""
        if not self.num_queries:
            return state
        x = state.x[:, : self.num_queries]
        size = state.size[:, : self.num_queries]
        return TokenState(x=x, size=size, num_prefix=self.num_queries)

    def _norm_input(self, x):
        """Attention's input: norm(x), or x if the norm follows attention."""
        return x if self.config.arch.post_norm else call_on_rows(self.norm1, x)

    def _scale_output(self, out):
        """Apply post norm and layer scale to attention's output."""
        if self.config.arch.post_norm:
            out = call_on_rows(self.norm1, out)
        return self.ls1(out)
