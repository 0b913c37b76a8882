"""One block of the network: attention, the reduction of its tokens, MLP."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.errors import InputError
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.attention import Attention, AttentionTaps
from imagepiece_jax.models.layers import LayerNorm, LayerScale, Mlp
from imagepiece_jax.reduction import contract, kernels, merging
from imagepiece_jax.reduction.layer_plan import Counts, LayerPlan
from imagepiece_jax.reduction.reducers import SCORES
from imagepiece_jax.reduction.tokens import Taps, TokenState


def lacking_scores(arch):
    """{score: the part that it needs} of the scores that a model does not have."""
    lacking = {} if arch.class_token else {"class": "class token"}
    return lacking | ({} if arch.pool == "map" else {"probe": "attention-pooling head"})


def check_plan(plan, arch, grid):
    """InputError for a step that needs what the model, or the grid, does not have."""
    for block, layer in enumerate(plan):
        if layer.step is None:
            continue
        with contract.naming(layer.step.reducer, block):
            contract.check_needs(layer.step.reducer)
        needs = layer.step.reducer.needs
        lacking = lacking_scores(arch)
        for score, part in lacking.items():
            if SCORES[score] in needs:
                allowed = f"allowed is a model that has a {part}"
                if hasattr(layer.step.reducer, "score"):
                    rest = ", ".join(s for s in SCORES if s not in lacking)
                    allowed = f"allowed values of config.reduction.score are {rest}"
                raise InputError(
                    f"config.reduction at block {block} ranks tokens by the score "
                    f"{score!r}, but the model has no {part}; {allowed}"
                )
        seen = needs & {"cls_attn", "attn_columns", "energy", "metric"}
        before = plan[block - 1] if block else None
        if layer.step.site == "pre" and seen:
            if before is None:
                raise InputError(
                    "config.reduction has a step before block 0 that reads the "
                    "attention of the block before it; allowed are blocks from 1"
                )
            if before.counts and before.step.site != "pre":
                raise InputError(
                    f"config.reduction has a step before block {block} that reads the "
                    f"attention of block {block - 1}, in which tokens change; allowed "
                    "are other blocks"
                )
        if layer.step.site == "attention" and layer.step.reducer.metric == "value":
            raise InputError(
                f"config.reduction compares values at block {block} before they are "
                "made; allowed are 'key', 'query', 'token'"
            )
        if layer.counts:
            layer.step.reducer.check_grid(grid)
            grid = None


class Block(nn.Module):
    """A pre-norm block: attention, the reduction of its tokens, MLP.

    `layer` is its plan. A reduction at site "pre" comes before the attention and reads
    that of the block before: so `following`, the next block's plan, says what else this
    attention has to compute. `index` counts the `depth` blocks from 0; `dim` is the
    width of the tokens; the other fields are those of `vit.ViT`.
    """

    index: int
    depth: int
    layer: LayerPlan
    following: LayerPlan | None
    dim: int
    num_heads: int
    mlp_ratio: float
    arch: Architecture = Architecture()
    backend: str = "xla"
    dtype: jnp.dtype = jnp.float32
    prop_attn: bool = False
    kernels: str | None = None
    remat: bool = False

    def setup(self):
        arch, hidden = self.arch, round(self.dim * self.mlp_ratio)
        self.norm1 = LayerNorm(self.dtype, arch.norm_eps)
        self.attn = Attention(self.num_heads, self.backend, self.dtype, arch)
        self.norm2 = LayerNorm(self.dtype, arch.norm_eps)
        eps = arch.norm_eps if arch.mlp_norm else None
        self.mlp = Mlp(hidden, arch.gelu, self.dtype, arch.mlp, eps)
        if arch.layer_scale:
            self.ls1, self.ls2 = LayerScale(), LayerScale()

    def __call__(
        self,
        state: TokenState,
        seen: AttentionTaps,
        reducer=None,
        keys=None,
        scale=None,
        train: bool = False,
        probe=None,
    ):
        """State and attention taps of the block before -> this block's, and a record.

        The record is (result, taps) of the reduction, None where there is none.
        `reducer` is the step's, bound to its parameters, or None if it has nothing to
        do; `keys` as for the model; `scale` [B, depth, 2] is drop path's; `probe`
        gives the attention of the head's probe to the tokens of a state, [B, n].
        """
        site, record = reducer and self.layer.step.site, None
        if site == "pre":
            state, record = self.reduce(state, seen, reducer, keys, train, probe)
        branches = (None, None)
        if scale is not None:
            branches = scale[:, self.index, 0], scale[:, self.index, 1]
        needs, metric = self._needs(state)
        options = {
            "needs": needs,
            "metric": metric,
            "margin": 0.75 * (1 - self.index / self.depth),  # PiToMe's
            "num_prefix": state.num_prefix,
            "train": train,
        }
        attend = functools.partial(Block.attend, **options)
        feed_forward = Block.feed_forward
        if self.remat and train:
            attend, feed_forward = nn.remat(attend), nn.remat(feed_forward)
        # Before the first reduction all sizes are 1.
        key_bias = jnp.log(state.counted) if self.prop_attn and not state.grid else None
        mask = with_prefix(state.mask, state.num_prefix)
        given = (branches[0], key_bias, mask, self._turns(state))
        reduce = functools.partial(
            self.reduce, reducer=reducer, keys=keys, train=train, probe=probe
        )
        if site == "attention":
            state, seen, record = self.attend_merging(state, given, options, reduce)
        else:
            x, seen = attend(self, state.x, *given)
            state = state.replace(x=x)
        if site == "mid":
            state, record = reduce(state, seen)
        state = state.replace(x=feed_forward(self, state.x, branches[1]))
        return state, seen, record

    def attend(self, x, scale=None, key_bias=None, mask=None, turns=None, **options):
        """x + attention(norm(x)), and the taps.

        [B, N, D]; `scale` [B] is drop path's, `turns` are rotary positions'.
        """
        normed = self.norm1(_rows(x)).reshape(x.shape)
        out, taps = self.attn(normed, key_bias, mask, turns, **options)
        out = self.ls1(out) if self.arch.layer_scale else out
        return _add(x, out, scale), taps

    def attend_merging(self, state, given, options, reduce):
        """As `attend`, with the reduction between attention's scores and its values.

        Residual and values are those of the reduced tokens, and the map is merged as
        these are. -> (state, taps, record), see `__call__`.
        """
        done = []

        def merge(weights, taps):
            after, record = reduce(state, taps)
            done[:] = after, record
            if record is not None:  # else it only makes its parameters
                size = state.size[:, state.num_prefix :]
                weights = merging.merge_map(weights, record[0], size)
            return weights, self.norm1(_rows(after.x)).reshape(after.x.shape)

        scale, *given = given
        normed = self.norm1(_rows(state.x)).reshape(state.x.shape)
        out, taps = self.attn(normed, *given, merge=merge, **options)
        out = self.ls1(out) if self.arch.layer_scale else out
        after, record = done
        return after.replace(x=_add(after.x, out, scale)), taps, record

    def feed_forward(self, x, scale=None):
        """x + mlp(norm(x)). [B, N, D] -> [B, N, D]."""
        out = self.mlp(self.norm2(_rows(x)))
        out = self.ls2(out) if self.arch.layer_scale else out
        return _add(x, out, scale)

    def reduce(self, state, seen, reducer, keys, train, probe=None):
        """(state after the reduction, its (result, taps)); see `__call__`."""
        counts = self.layer.counts
        if counts is None:  # initialization: its parameters exist at every rate
            n = state.x.shape[1] - state.num_prefix
            counts = Counts(n_in=n, n_out=n)
        rng = None
        if reducer.draws(counts, train):
            rng = self._rng(keys, len(state.x))
        taps = self._taps(state, seen, reducer, rng, probe)
        with contract.naming(reducer, self.index):
            if self.layer.counts is None:
                reducer(contract.Declared(taps, reducer.needs), counts, train)
                return state, None
            if kernel := self._kernel(state):
                state, result = kernel(seen.query, seen.key, state, counts)
            else:
                result = reducer(contract.Declared(taps, reducer.needs), counts, train)
                contract.check_form(result, counts)
                state = merging.apply(state, result)
        return state, (result, taps)

    def _kernel(self, state):
        """The kernel that does the reduction of this block, or None."""
        if self.layer.counts is None:
            return None
        kernel = kernels.find(self.layer.step, self, self.kernels)
        return kernel if kernel and kernel.supports(state) else None

    def _turns(self, state):
        """By how much rotary positions turn each token; None: there are none."""
        rotary = self.arch.rotary
        if rotary is None:
            return None
        width, prefix = self.dim // self.num_heads, state.num_prefix
        if state.grid:  # up to the first reduction the same for all images
            return rotary.grid_turns(state.grid, width, prefix)
        return rotary.turns(state.coordinates, width, prefix)

    def _needs(self, state):
        """(what attention computes for reducers, the metric that they compare)."""
        needs, metric = set(), None
        here = ("attention", "mid")
        for layer, sites in ((self.layer, here), (self.following, ("pre",))):
            step = layer and layer.step
            if not step or step.site not in sites:
                continue
            if step.site == "mid" and (kernel := self._kernel(state)):
                needs |= kernel.reads
            elif layer.counts or self.is_initializing():
                needs |= step.reducer.needs
                metric = step.reducer.metric or metric
        return needs, metric

    def _taps(self, state, seen, reducer, rng, probe):
        image = state.x[:, state.num_prefix :]
        metric = image if reducer.metric == "token" else seen.metric
        return Taps(
            x=image,
            size=state.size[:, state.num_prefix :],
            attn_size=state.counted[:, state.num_prefix :],
            metric=metric,
            cls_attn=seen.cls_attn,
            attn_columns=seen.attn_columns,
            energy=seen.energy,
            probe=probe(state) if "probe" in reducer.needs else None,
            mask=state.mask,
            rng=rng,
            grid=state.grid,
            num_prefix=state.num_prefix,
            num_heads=self.num_heads,
        )

    def _rng(self, keys, batch):
        """Keys of this block, fixed ones where none are given. -> [batch]."""
        if keys is None:
            start = jax.random.key(0, impl="threefry2x32")
            keys = jax.vmap(jax.random.fold_in, (None, 0))(start, jnp.arange(batch))
        else:
            keys = keys["reducer"]
        return jax.vmap(jax.random.fold_in, (0, None))(keys, self.index)


def with_prefix(mask, prefix):
    """Mask of image tokens -> of all tokens: the prefix is always live."""
    if mask is None:
        return None
    return jnp.pad(mask, ((0, 0), (prefix, 0)), constant_values=1)


def _rows(x):
    """All tokens as one matrix, [B, N, D] -> [B N, D].

    With three dimensions XLA may choose layouts with the batch innermost, and then
    transposes whole arrays in the backward pass.
    """
    return x.reshape(-1, x.shape[-1])


def _add(x, branch, scale):
    """x + branch, of which each image has its `scale` [B]. [B, N, D], any shape."""
    branch = _rows(branch)
    if scale is not None:
        scale = scale.astype(branch.dtype)[:, None]
        scale = jnp.broadcast_to(scale, x.shape[:2]).reshape(-1, 1)
        branch = branch * scale
    return (_rows(x) + branch).reshape(x.shape)
