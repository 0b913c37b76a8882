"""The vision transformer (DeiT), and the only place where a plan meets the reducers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from imagepiece_jax.models import custom_vjp
from imagepiece_jax.models.attention import INIT, AttentionTaps
from imagepiece_jax.models.block import Block, LayerNorm
from imagepiece_jax.models.stems import FOLDED_STEMS, STEMS
from imagepiece_jax.reduction import apply, tokens
from imagepiece_jax.reduction.schedule import Counts, LayerPlan
from imagepiece_jax.reduction.tokens import Taps, TokenState

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, RGB, of pixels in [0, 1]
STD = (0.229, 0.224, 0.225)


@struct.dataclass
class Outputs:
    """What a forward pass gives; what is not used is not computed under jit.

    logits: [B, num_classes] float32; tokens: [B, N, D] after the final norm; state: the
    tokens before it; results: what each step that changes something decided;
    taps: what each of these steps was told.
    """

    logits: jax.Array
    tokens: jax.Array
    state: TokenState
    results: tuple
    taps: tuple[Taps, ...]


def drop_path_scale(keys, depth, rate):
    """Factor of each residual branch, 0 or 1 / (1 - p). [B] keys -> [B, depth, 2].

    p grows linearly over the blocks up to `rate` and is the same for both branches of a
    block (stochastic depth as in DeiT). The two draws of a block are independent.
    """
    keep = 1 - jnp.linspace(0.0, rate, depth, dtype=jnp.float32)[:, None]

    def draw(key):
        alive = jax.random.uniform(key, (depth, 2)) < keep
        return alive / keep

    return jax.vmap(draw)(keys)


class ViT(nn.Module):
    """DeiT with a plan of token reductions; without one, the dense model.

    `plan` has one LayerPlan a block (reduction.schedule.build). `prop_attn` adds
    log(size) to the attention logits; `trace_source` keeps the map from patches to
    tokens; `axis_name` is the device axis over which batch norm is synchronised;
    `remat` computes the halves of a block again in the backward pass of training
    instead of keeping what they computed; `folded` is the form for inference, whose
    stem has variables of its own (stems.fold). `kernels` names the device whose fused
    kernels do the reductions that have one ("cpu", or a GPU's compute capability): they
    decide alike, but leave scores and features out of `taps`.
    Without `class_token` the head reads the mean over patches (each token counts by its
    size). Parameters are float32, the arithmetic of the layers is in `dtype`; scores,
    softmax and logits are float32. `mean` and `std` are those of the images that it was
    trained on: who hands it pixels normalizes with them first (data.normalize).
    `class_names` are for whoever reads the logits: a name, or None, for each class.
    """

    plan: tuple[LayerPlan, ...]
    embed_dim: int
    num_heads: int
    patch_size: int = 16
    num_classes: int = 1000
    mlp_ratio: float = 4.0
    stem: str = "patch"
    gelu: str = "exact"
    class_token: bool = True
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    drop_path_rate: float = 0.0
    prop_attn: bool = False
    trace_source: bool = False
    backend: str = "xla"
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    remat: bool = False
    kernels: str | None = None
    folded: bool = False
    # Names change no program: models that differ in them alone are equal.
    class_names: tuple[str | None, ...] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )

    @nn.compact
    def __call__(self, images, train=False, keys=None):
        """images [B, H, W, 3], normalized by `mean` and `std` -> Outputs.

        `keys`: {"drop_path": [B] keys, "reducer": [B] keys}, one a sample; drop path
        needs its in training, reducers that draw take theirs in evaluation too (fixed
        ones where there are none).
        """
        x, grid = self._embed(images, train)
        state = tokens.start(x, int(self.class_token), self.trace_source)
        scale = None
        if train and self.drop_path_rate:
            if keys is None:
                raise ValueError(
                    'train=True draws for drop path: keys={"drop_path": [B] keys} is '
                    "missing"
                )
            depth = len(self.plan)
            scale = drop_path_scale(keys["drop_path"], depth, self.drop_path_rate)
        records, seen = [], AttentionTaps()
        for i, layer in enumerate(self.plan):
            step = _Reduction(self, i, layer, grid, train, keys)
            if layer.step and layer.step.site == "pre":
                state = step.reduce(state, seen, records)
            block = Block(
                self.embed_dim,
                self.num_heads,
                self.mlp_ratio,
                self.gelu,
                self.backend,
                self.dtype,
                name=f"blocks_{i}",
            )
            branch = (None, None) if scale is None else (scale[:, i, 0], scale[:, i, 1])
            needs, metric = self._wanted(i, state)
            attend = functools.partial(
                Block.attend,
                needs=needs,
                metric=metric,
                num_prefix=state.num_prefix,
                train=train,
            )
            feed_forward = Block.feed_forward
            if self.remat and train:
                attend, feed_forward = nn.remat(attend), nn.remat(feed_forward)
            x, seen = attend(
                block,
                state.x,
                branch[0],
                # Before the first reduction all sizes are 1.
                jnp.log(state.size) if self.prop_attn and records else None,
                _with_prefix(state.mask, state.num_prefix),
            )
            state = state.replace(x=x)
            if layer.step and layer.step.site == "mid":
                state = step.reduce(state, seen, records)
            state = state.replace(x=feed_forward(block, state.x, branch[1]))
            grid = None if layer.counts else grid
        norm = LayerNorm(self.dtype, name="norm")
        head = nn.Dense(
            self.num_classes, kernel_init=INIT, dtype=jnp.float32, name="head"
        )
        if self.class_token:
            # The head reads one row; norm of the others is computed only if it is used.
            pooled = norm(state.x[:, 0])
        else:
            size = state.size if state.mask is None else state.size * state.mask
            # At least 1, but for an image in which all is masked.
            share = size / jnp.maximum(jnp.sum(size, axis=1, keepdims=True), 1.0)
            weighted = norm(state.x).astype(jnp.float32) * share[:, :, None]
            pooled = jnp.sum(weighted, axis=1)
        return Outputs(
            logits=head(pooled),
            tokens=norm(state.x),
            state=state,
            results=tuple(result for result, _ in records),
            taps=tuple(taps for _, taps in records),
        )

    def _fuses(self, block, state):
        """Whether one kernel does the reduction in this block."""
        layer = self.plan[block]
        plain = self.kernels is None or state.mask is not None
        return not plain and bool(layer.counts) and kernel_of(layer) is not None

    def _wanted(self, block, state):
        """What block's attention must tell: its own reducer's needs, and the next's."""
        if self._fuses(block, state):
            return {"heads"}, None
        needs, metric = set(), None
        following = self.plan[block + 1] if block + 1 < len(self.plan) else None
        for layer, site in ((self.plan[block], "mid"), (following, "pre")):
            active = layer and layer.step and layer.step.site == site
            if active and (layer.counts or self.is_initializing()):
                needs |= layer.step.reducer.needs
                metric = getattr(layer.step.reducer, "metric", metric)
        return needs, metric

    def _embed(self, images, train):
        """[B, H, W, 3] -> [B, prefix + n, D] with positions, and the patch grid."""
        stems = FOLDED_STEMS if self.folded else STEMS
        normed = self.stem == "conv" and not self.folded
        options = {"axis_name": self.axis_name} if normed else {}
        stem = stems[self.stem](
            self.embed_dim,
            self.patch_size,
            dtype=self.dtype,
            name="patch_embed",
            **options,
        )
        x = stem(images.astype(self.dtype), train)
        batch, height, width, dim = x.shape
        x = x.reshape(batch, height * width, dim)
        if self.class_token:
            cls_token = self.param("cls_token", INIT, (1, 1, dim)).astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(cls_token, (batch, 1, dim)), x], 1)
        pos_embed = self.param("pos_embed", INIT, (1, x.shape[1], dim))
        x = x + pos_embed.astype(self.dtype)
        return custom_vjp.token_major(x), (height, width)


def kernel_of(layer):
    """Name of the fused kernel for a layer's reduction; None: it has none.

    Fused kernels stand between attention and MLP, and read keys of that attention.
    """
    if layer.step is None or layer.step.site != "mid":
        return None
    return getattr(layer.step.reducer, "kernel", None)


class _Reduction:
    """The reduction of one block: binds the reducer, tells it, applies what it says."""

    def __init__(self, model, block, layer, grid, train, keys):
        self.model, self.block, self.layer = model, block, layer
        self.grid, self.train, self.keys = grid, train, keys

    def reduce(self, state, seen, records):
        """The state after it; `records` grows by (result, taps)."""
        reducer, counts = self.layer.step.reducer, self.layer.counts
        learned = isinstance(reducer, nn.Module)
        if counts is None and not (learned and self.model.is_initializing()):
            return state
        if learned:
            name = f"reducer_{self.block}"
            reducer = reducer.clone(parent=self.model, name=name)
        taps = self._taps(state, seen, reducer)
        if self.model._fuses(self.block, state):
            state, result = reducer.fused(
                seen.query, seen.key, state, counts, self.model.prop_attn
            )
            records.append((result, taps))
            return state
        if counts is None:  # its parameters exist at every rate
            n = taps.x.shape[1]
            reducer(taps, Counts(n_in=n, n_out=n), self.train)
            return state
        result = reducer(taps, counts, self.train)
        records.append((result, taps))
        return apply.apply(state, result)

    def _taps(self, state, seen, reducer):
        prefix = state.num_prefix
        image = state.x[:, prefix:]
        metric = image if getattr(reducer, "metric", None) == "token" else seen.metric
        return Taps(
            x=image,
            size=state.size[:, prefix:],
            metric=metric,
            cls_attn=seen.cls_attn,
            attn_columns=seen.attn_columns,
            mask=state.mask,
            rng=self._rng(image.shape[0]) if "rng" in reducer.needs else None,
            grid=self.grid,
            num_prefix=prefix,
            num_heads=self.model.num_heads,
        )

    def _rng(self, batch):
        if self.keys is None:
            start = jax.random.key(0, impl="threefry2x32")
            keys = jax.vmap(jax.random.fold_in, (None, 0))(start, jnp.arange(batch))
        else:
            keys = self.keys["reducer"]
        return jax.vmap(jax.random.fold_in, (0, None))(keys, self.block)


def _with_prefix(mask, prefix):
    """Mask of image tokens -> of all tokens: the prefix is always live."""
    if mask is None:
        return None
    return jnp.pad(mask, ((0, 0), (prefix, 0)), constant_values=1)
