"""One block of the network: attention, the reduction of its tokens, MLP."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.attention import Attention, read_by
from imagepiece_jax.models.layers import LayerNorm, LayerScale, Mlp
from imagepiece_jax.reduction import contract, tokens
from imagepiece_jax.reduction.kernels.fused import Kernel
from imagepiece_jax.reduction.layer_plan import LayerPlan
from imagepiece_jax.reduction.ops import shift_shares
from imagepiece_jax.reduction.tokens import Taps, TokenState


@dataclasses.dataclass(frozen=True)
class Reduction:
    """The step of one block, bound to a model: reduces a state by its scores."""

    block: int
    layer: LayerPlan
    reducer: Any  # the step's, bound to its parameters
    num_heads: int
    kernel: Kernel | None = None  # a fused kernel that decides as the reducer does
    keys: dict[str, jax.Array] | None = None  # random keys of the model's call
    # attention of the head's probe to a state's image tokens; None: no probe
    probe: Callable[[TokenState], jax.Array] | None = None

    def __call__(self, state, scores, train=False):
        """(state after the reduction, (result, taps)); see `Attention.scores`."""
        counts = self.layer.counts
        kernel = self.kernel_for(state)
        taps = self._taps(state, scores, train)
        with contract.naming(self.reducer, self.block):
            if kernel:
                state, result = kernel(*scores[kernel.reads], state, counts)
            else:
                readable = contract.Declared(taps, self.reducer.needs)
                result = self.reducer(readable, counts, train)
                contract.check_form(result, counts)
                state = tokens.apply(state, result)
        return state, (result, taps)

    def kernel_for(self, state):
        """The kernel that reduces `state`; None: the reducer does."""
        return self.kernel if self.kernel and self.kernel.supports(state) else None

    def _taps(self, state, scores, train):
        reducer = self.reducer
        x = state.x[:, state.num_prefix :]
        metric = x if reducer.metric == "token" else scores.get(reducer.metric)
        return Taps(
            x=x,
            size=state.size[:, state.num_prefix :],
            attn_size=state.effective_size[:, state.num_prefix :],
            metric=metric,
            key=scores["key"] if "key" in reducer.needs else None,
            cls_attn=scores.get("cls_attn"),
            attn_columns=scores.get("attn_columns"),
            shift=scores.get("shift"),
            probe=self.probe(state) if "probe" in reducer.needs else None,
            mask=state.mask,
            rng=self._rng(len(x)) if reducer.draws(self.layer.counts, train) else None,
            grid=state.grid,
            num_prefix=state.num_prefix,
            num_heads=self.num_heads,
        )

    def _rng(self, batch):
        """Keys of this block, fixed ones where none are given. -> [batch]."""
        if self.keys is None:
            start = jax.random.key(0, impl="threefry2x32")
            keys = jax.vmap(jax.random.fold_in, (None, 0))(start, jnp.arange(batch))
        else:
            keys = self.keys["reducer"]
        return jax.vmap(jax.random.fold_in, (0, None))(keys, self.block)


class Block(nn.Module):
    """A block: attention, the reduction of its tokens, MLP.

    Fields without a comment are those of `vit.ViT`.
    """

    index: int  # from 0
    layer: LayerPlan  # its plan
    dim: int  # width of the tokens
    num_heads: int
    mlp_ratio: float
    arch: Architecture = Architecture()
    backend: str = "xla"
    dtype: jnp.dtype = jnp.float32
    prop_attn: bool = False
    remat: bool = False
    # Only the first so many tokens, of the prefix, attend and leave; None: all.
    queries: int | None = None

    def setup(self):
        arch = self.arch
        hidden = round(self.dim * self.mlp_ratio)
        self.norm1 = LayerNorm(self.dtype, arch.norm_eps)
        self.attn = Attention(
            self.dim, self.num_heads, arch, self.prop_attn, self.backend, self.dtype
        )
        self.norm2 = LayerNorm(self.dtype, arch.norm_eps)
        eps = arch.norm_eps if arch.mlp_norm else None
        self.mlp = Mlp(hidden, arch.gelu, self.dtype, arch.mlp, eps)
        if arch.layer_scale:
            self.ls1 = LayerScale()
            self.ls2 = LayerScale()

    def __call__(
        self, state, scores, reduction=None, drop_path=(None, None), train=False
    ):
        """State and scores of this block, and (result, taps) of its reduction or None.

        state, scores: TokenState and scores of the block before
        reduction: the Reduction of this block, if it has one
        drop_path: a factor an image for either branch, [B] or None each
        """
        site = reduction and self.layer.step.site
        reads = self.layer.reads
        record = None
        if self.queries and site == "mid":  # none of its tokens leaves
            site = None
            reads = frozenset()
        attend = Block.attend
        feed_forward = Block.feed_forward
        if self.remat and train:
            attend = nn.remat(attend, static_argnums=(3, 4))
            feed_forward = nn.remat(feed_forward)
        if site == "pre":
            state, record = reduction(state, scores, train)
        if site == "mid" and (kernel := reduction.kernel_for(state)):
            reads = frozenset({kernel.reads})
        if site == "attention":
            state, scores, record = self.attend_reduced(
                state, reduction, drop_path[0], train
            )
        else:
            x, scores = attend(self, state, drop_path[0], reads, train)
            state = self._outgoing(state).replace(x=x)
        if site == "mid":
            state, record = reduction(state, scores, train)
        state = state.replace(x=feed_forward(self, state.x, drop_path[1]))
        return state, scores, record

    def attend(self, state, factor, reads, train):
        """(x + attention(norm(x)) [B, N, D], its scores); `factor`: drop path's."""
        x = self._normed(state.x)
        out, scores = self.attn(x, state, reads, train, self.queries)
        out = self._scaled(out)
        if "shift" in reads:
            mask = state.mask
            change = out[:, state.num_prefix :]
            live = None if mask is None else (mask > 0.5).astype(jnp.float32)
            scores["shift"] = shift_shares(change, live)
        return _add(self._outgoing(state).x, out, factor), scores

    def attend_reduced(self, state, reduction, factor, train):
        """As `attend`, with the reduction between scores and values; and its record."""
        heads = self.attn.project(self._normed(state.x), state, with_value=False)
        weights = self.attn.weights(heads)
        if self.queries:
            weights = weights[:, :, : self.queries]
        scores = self.attn.scores(heads, self.layer.reads, state)
        size = state.size[:, state.num_prefix :]
        state, record = reduction(state, scores, train)
        weights = tokens.merge_map(weights, record[0], size)
        value = self.attn.value(self._normed(state.x))
        out = self.attn.output(read_by(weights, value))
        state = self._outgoing(state)
        x = _add(state.x, self._scaled(out), factor)
        return state.replace(x=x), scores, record

    def feed_forward(self, x, factor=None):
        """x + mlp(norm(x)). [B, N, D] -> [B, N, D]."""
        if self.arch.post_norm:
            out = self.norm2(self.mlp(_rows(x)))
        else:
            out = self.mlp(self.norm2(_rows(x)))
        out = self.ls2(out) if self.arch.layer_scale else out
        return _add(x, out, factor)

    def _outgoing(self, state):
        """`state` with only the tokens that leave the block, all of the prefix."""
        if not self.queries:
            return state
        x = state.x[:, : self.queries]
        size = state.size[:, : self.queries]
        return TokenState(x=x, size=size, num_prefix=self.queries)

    def _normed(self, x):
        """What attention gets."""
        return x if self.arch.post_norm else self.norm1(_rows(x)).reshape(x.shape)

    def _scaled(self, out):
        """What is added of attention's output."""
        if self.arch.post_norm:
            out = self.norm1(_rows(out)).reshape(out.shape)
        return self.ls1(out) if self.arch.layer_scale else out


def _rows(x):
    """All tokens as one matrix, whose layout XLA leaves. [B, N, D] -> [B N, D]."""
    return x.reshape(-1, x.shape[-1])


def _add(x, branch, factor):
    """x + branch * factor. [B, N, D], any shape, [B] or None -> [B, N, D]."""
    branch = _rows(branch)
    if factor is not None:
        factor = factor.astype(branch.dtype)[:, None]
        factor = jnp.broadcast_to(factor, x.shape[:2]).reshape(-1, 1)
        branch = branch * factor
    return (_rows(x) + branch).reshape(x.shape)
